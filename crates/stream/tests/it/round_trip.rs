//! Real QEMU's streams: taken apart, put together, and loaded by another QEMU.

use tintype_stream::{DeviceState, Limits};

use crate::memory::Saved;
use crate::qemu::{self, Qemu};

const RICH: &[&str] = &[
    "-device",
    "virtio-rng-pci",
    "-netdev",
    "user,id=net",
    "-device",
    "e1000,netdev=net",
    "-device",
    "VGA",
    "-uuid",
    "9b9e8e5e-33a5-4c0d-8f0e-2d3f7d1c4a11",
];

/// Captures with these capabilities, restores, compares memory and goes on.
fn check(machine: &str, more: &[&str], capabilities: &[&str], stopped: bool) {
    if !qemu::is_installed() {
        return;
    }
    let arguments = [&["-M", machine], more].concat();
    let mut source = Qemu::start(&arguments);
    source.wait_for_guest();
    if stopped {
        source.ask("stop", serde_json::json!({}));
    }
    source.set_capabilities(capabilities);
    let stream = source.capture();
    let saved = Saved::parse(&stream, 1 << 20);
    assert!(
        saved
            .state
            .machine()
            .starts_with(&format!("pc-{}", if machine == "pc" { "i440fx" } else { machine }))
    );
    let memory = saved.block("pc.ram");
    assert_eq!(memory.len(), 16 << 20);
    let counters = qemu::counters(&memory);
    qemu::assert_one_instant(&counters);
    if stopped {
        let seen = source.memory(16 << 20);
        assert!(seen[..0xa0000] == memory[..0xa0000] && seen[1 << 20..] == memory[1 << 20..]);
    }
    let sections = saved.state.sections().unwrap();
    assert!(sections.iter().any(|section| section.name.ends_with("/virtio-blk")));
    let again = DeviceState::from_bytes(saved.state.as_bytes(), Limits::default()).unwrap();
    assert_eq!(again, saved.state);

    let mut target = Qemu::start(&[&arguments[..], &["-incoming", "defer"]].concat());
    target.load(&saved.restore());
    if stopped {
        assert_eq!(target.status(), "paused");
        let copy = Saved::parse(&target.capture(), 1 << 16);
        assert_eq!(copy.state.ram_blocks(), saved.state.ram_blocks());
        assert!(copy.pages == saved.pages);
        target.ask("cont", serde_json::json!({}));
    }
    assert_eq!(target.status(), "running");
    std::thread::sleep(std::time::Duration::from_millis(50));
    target.ask("stop", serde_json::json!({}));
    let later = qemu::counters(&target.memory(0x90 << 12));
    qemu::assert_one_instant(&later);
    assert!(later[0] > counters[0]);
}

#[test]
fn stopped_q35() {
    check("q35", &[], &[], true);
}

#[test]
fn stopped_pc_with_devices() {
    check("pc", RICH, &[], true);
}

#[test]
fn running_q35_with_devices() {
    check("q35", RICH, &["events"], false);
}

#[test]
fn copy_on_write_q35_with_devices() {
    check("q35", RICH, &["background-snapshot"], false);
}

#[test]
fn copy_on_write_pc_stopped() {
    check("pc", &[], &["background-snapshot"], true);
}
