//! Writes an initramfs: a cpio archive in the "newc" form that the kernel reads
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The same entries
//! give the same bytes; there is no compression, since unpacking costs more time
//! under emulation than loading.

/// An archive in the making.
#[derive(Default)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

/// What an entry of the archive is.
enum Entry<'a> {
    Folder,
    Program(&'a [u8]),
    Data(&'a [u8]),
    /// A character device with its major and minor number.
    Device(u32, u32),
    End,
}

impl Initramfs {
    /// Starts an archive with the folders and the console that the kernel wants.
    pub(super) fn new() -> Self {
        let mut archive = Self::default();
        for folder in ["bin", "dev", "mod", "proc", "sys"] {
            archive.add(folder, &Entry::Folder);
        }
        archive.add("dev/console", &Entry::Device(5, 1));
        archive
    }

    /// Adds a program.
    pub(super) fn program(&mut self, path: &str, content: &[u8]) {
        self.add(path, &Entry::Program(content));
    }

    /// Adds a file that nobody runs.
    pub(super) fn data(&mut self, path: &str, content: &[u8]) {
        self.add(path, &Entry::Data(content));
    }

    /// Ends the archive and returns its bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", &Entry::End);
        self.bytes
    }

    fn add(&mut self, path: &str, entry: &Entry<'_>) {
        let none: &[u8] = &[];
        let (mode, content, (major, minor)) = match *entry {
            Entry::Folder => (0o040_755, none, (0, 0)),
            Entry::Program(content) => (0o100_755, content, (0, 0)),
            Entry::Data(content) => (0o100_644, content, (0, 0)),
            Entry::Device(major, minor) => (0o020_600, none, (major, minor)),
            Entry::End => (0, none, (0, 0)),
        };
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("no program of a guest has 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths here are literals");
        // inode, mode, uid, gid, links, time, size, device, special device, name size, check
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn another_program_reads_the_archive() {
        if !crate::process::is_installed("cpio") {
            eprintln!("skipped: there is no cpio to read the archive with");
            return;
        }
        let mut archive = Initramfs::new();
        archive.program("init", b"#!/bin/sh\n");
        archive.data("mod/order", b"one\ntwo\n");
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listing = cpio.wait_with_output().unwrap();
        assert!(listing.status.success());
        let text = String::from_utf8(listing.stdout).unwrap();
        for part in ["crw-------", "5,   1", "-rwxr-xr-x", "      10 ", "mod/order", "       8 "] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
