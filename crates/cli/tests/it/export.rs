//! The memory of a real guest as a core: what QEMU itself dumps of it is the judge.

use std::fs;
use std::process::Command;

use serde_json::json;
use tintype_testkit::{Disk, Format, Guest, GuestKind};

use crate::subject::{Subject, is_built};

/// What a core has: its notes, and where in the file which part of memory is.
struct Core {
    bytes: Vec<u8>,
    notes: Vec<u8>,
    /// Address, length, place.
    parts: Vec<(u64, u64, usize)>,
}

impl Core {
    fn read(path: &str) -> Self {
        let bytes = fs::read(path).unwrap();
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        let half = |at: usize| usize::from(u16::from_le_bytes(*bytes[at..].first_chunk().unwrap()));
        assert!(bytes.starts_with(b"\x7fELF\x02\x01\x01"));
        let (start, count) = (usize::try_from(word(32)).unwrap(), half(56));
        let (mut notes, mut parts) = (Vec::new(), Vec::new());
        for at in (0..count).map(|number| start + 56 * number) {
            let (place, len) = (usize::try_from(word(at + 8)).unwrap(), word(at + 32));
            match bytes[at] {
                4 => notes = bytes[place..place + usize::try_from(len).unwrap()].to_vec(),
                1 => parts.push((word(at + 24), len, place)),
                other => panic!("a segment of type {other}"),
            }
        }
        Self { bytes, notes, parts }
    }

    /// Returns memory, if the core has all of it in one part.
    fn memory(&self, address: u64, len: u64) -> Option<&[u8]> {
        let holds =
            |part: &&(u64, u64, usize)| part.0 <= address && address + len <= part.0 + part.1;
        let (start, _, place) = self.parts.iter().find(holds)?;
        let at = place + usize::try_from(address - start).unwrap();
        Some(&self.bytes[at..at + usize::try_from(len).unwrap()])
    }
}

#[test]
fn a_core_is_what_qemu_dumps_of_the_same_guest() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2)];
    let builder = Guest::of(GuestKind::Tiny).memory_mib(128).disks(disks);
    let mut subject = Subject::start(builder);
    let folder = subject.guest.files().folder().to_owned();
    let text = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    subject.owner("stop");
    let (dump, saved) = (text("dump"), text("saved"));
    {
        let mut qmp = subject.guest.qmp().unwrap();
        let arguments = json!({ "paging": false, "protocol": format!("file:{dump}") });
        qmp.execute("dump-guest-memory", arguments).unwrap();
        let arguments = json!({ "val": 1 << 20, "size": 127 << 20, "filename": saved });
        qmp.execute("pmemsave", arguments).unwrap();
    }
    subject.take(&["--name", "still"]);
    let core = text("core");
    let export = ["export", "web@still", "--format", "elf-core", "--to", &core];
    subject.tintype.json(&export);
    let (own, qemus) = (Core::read(&core), Core::read(&dump));
    assert!(own.notes == qemus.notes, "the registers of each processor");
    assert!(own.memory(1 << 20, 127 << 20).unwrap() == fs::read(&saved).unwrap());
    // Below 1 MiB the firmware's ROMs may lie over what is shown.
    let mut compared = 0;
    for (start, len, _) in own.parts.iter().filter(|part| part.0 != 0xc_0000) {
        assert!(own.memory(*start, *len) == qemus.memory(*start, *len), "at {start:#x}");
        compared += len;
    }
    assert_eq!(compared, 0xa_0000, "{:x?}", own.parts);
    assert!(subject.tintype.run(&export).status.code() == Some(4), "it is there already");
    opens(&core, &own);

    let tar = text("all.tar");
    subject.tintype.json(&["export", "web@still", "--format", "tar", "--to", &tar]);
    let memory = Command::new("tar").args(["-xOf", &tar, "memory/pc.ram"]).output().unwrap().stdout;
    assert!(memory[1 << 20..] == fs::read(&saved).unwrap());
    let state = Command::new("tar").args(["-xOf", &tar, "device-state"]).output().unwrap().stdout;
    assert!(!state.is_empty());
}

/// Asserts that tools which read cores read this one.
fn opens(core: &str, own: &Core) {
    let instruction = u64::from_le_bytes(*own.notes[20 + 112 + 16 * 8..].first_chunk().unwrap());
    let cases: [(&str, &[&str], String); 2] = [
        ("readelf", &["--notes", "--segments", core], "NT_PRSTATUS".to_owned()),
        (
            "gdb",
            &["--nx", "--batch", "-ex", &format!("core-file {core}"), "-ex", "p/x $rip"],
            format!("{instruction:#x}"),
        ),
    ];
    for (program, arguments, expected) in cases {
        let Ok(output) = Command::new(program).args(arguments).output() else {
            eprintln!("{program} is not installed, and did not read the core");
            continue;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(&expected), "{program}: {output:?}");
    }
}
