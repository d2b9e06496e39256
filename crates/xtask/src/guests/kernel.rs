//! The kernel of the guests and those of its modules that they need, taken out of
//! Debian's package without installing it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::cache::{Cache, Key};
use crate::failure::Failure;
use crate::process;
use crate::setup::Apt;

/// The modules that a guest needs, unless the kernel has them built in. What they
/// depend on is loaded before them.
const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "virtio_scsi",
    "sd_mod",
    "virtio_balloon",
    "nvme",
    "vmgenid",
];

/// The kernel's package that Debian's cloud images follow.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel that was taken out of its package.
pub(super) struct Kernel {
    /// The key of everything below.
    pub(super) key: Key,
    /// What boots.
    pub(super) image: Vec<u8>,
    /// The modules in the order in which they are to be loaded, by file name.
    pub(super) modules: Vec<(String, Vec<u8>)>,
}

impl Kernel {
    /// Finds the newest kernel of the machine's release in the cache, or fetches it.
    pub(super) fn ensure(cache: &Cache, apt: &Apt) -> Result<Self, Failure> {
        let package = apt.dependency(METAPACKAGE, "linux-image-")?;
        let version = apt.candidate(&package)?;
        let key = Key::of(&[
            package.as_bytes(),
            version.as_bytes(),
            WANTED.join(" ").as_bytes(),
            include_bytes!("kernel.rs"),
        ]);
        let folder = cache.ensure("kernel", &key, |target| {
            let unpacked = cache.scratch()?;
            apt.unpack(&[format!("{package}={version}")], unpacked.path())?;
            extract(unpacked.path(), target)
        })?;
        Self::read(&folder, key)
    }

    fn read(folder: &Path, key: Key) -> Result<Self, Failure> {
        let load = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(Failure::file("read", &path))
        };
        let order = String::from_utf8_lossy(&load("order")?).into_owned();
        let modules = order
            .lines()
            .map(|name| Ok((name.to_owned(), load(name)?)))
            .collect::<Result<_, Failure>>()?;
        Ok(Self { key, image: load("vmlinuz")?, modules })
    }

    /// Returns the text that lists the modules in the order of loading.
    pub(super) fn order(&self) -> String {
        self.modules.iter().map(|(name, _)| format!("{name}\n")).collect()
    }
}

/// Moves what matters from an unpacked package into a folder: `vmlinuz`, the
/// modules, and `order`.
fn extract(package: &Path, target: &Path) -> Result<(), Failure> {
    let folder = package.join("lib");
    if !folder.exists() {
        // Debian 13 has moved it below /usr, where `depmod` need not look.
        symlink("usr/lib", &folder).map_err(Failure::file("make", &folder))?;
    }
    let release = only_entry(&package.join("lib/modules"))?;
    let copy = |from: &Path, name: &str| {
        fs::copy(from, target.join(name)).map(drop).map_err(Failure::file("copy", from))
    };
    copy(&package.join("boot").join(format!("vmlinuz-{release}")), "vmlinuz")?;
    process::run(Command::new("depmod").arg("-b").arg(package).arg(&release))?;
    let modules = package.join("lib/modules").join(&release);
    let dependencies = modules.join("modules.dep");
    let text = fs::read_to_string(&dependencies).map_err(Failure::file("read", &dependencies))?;
    let mut order = String::new();
    for path in load_order(&text, WANTED) {
        let file = modules.join(path);
        if path.ends_with(".xz") {
            process::run(Command::new("xz").arg("--decompress").arg(&file))?;
        }
        let file = file.with_file_name(file_name(path));
        copy(&file, file_name(path))?;
        order.push_str(file_name(path));
        order.push('\n');
    }
    let path = target.join("order");
    fs::write(&path, order).map_err(Failure::file("write", &path))
}

/// Returns the paths of the modules to load, each after those it depends on.
/// `modules_dep` has a line `path: path…` for each module (modules.dep(5)).
fn load_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let lines: BTreeMap<&str, (&str, &str)> = modules_dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs)))
        .collect();
    let mut order = Vec::new();
    for (path, needs) in wanted.iter().filter_map(|name| lines.get(name)) {
        // The list names what is to be loaded first last.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

/// Returns a module's file name once it is decompressed: `virtio_blk.ko`.
fn file_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".xz").unwrap_or(name)
}

fn module_name(path: &str) -> &str {
    let name = file_name(path);
    name.strip_suffix(".ko").unwrap_or(name)
}

fn only_entry(folder: &Path) -> Result<String, Failure> {
    let mut entries = folder.read_dir().map_err(Failure::file("read", folder))?.flatten();
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry.file_name().to_string_lossy().into_owned()),
        _ => Err(Failure::Other(format!("{} should have one entry", folder.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need() {
        let check = |text, wanted: &[&str], expected: &[&str]| {
            assert_eq!(load_order(text, wanted), expected);
        };
        let text = "k/virtio_blk.ko: k/virtio.ko k/virtio_ring.ko\n\
                    k/virtio.ko: k/virtio_ring.ko\n\
                    k/virtio_ring.ko:\n\
                    k/net.ko.xz: k/virtio.ko k/virtio_ring.ko\n";
        check(text, &["virtio_blk"], &["k/virtio_ring.ko", "k/virtio.ko", "k/virtio_blk.ko"]);
        check(text, &["virtio", "net"], &["k/virtio_ring.ko", "k/virtio.ko", "k/net.ko.xz"]);
        check(text, &["built_in"], &[]);
        assert_eq!(file_name("k/net.ko.xz"), "net.ko");
    }
}
