//! Real QEMU's streams: taken apart, put together, and loaded by another QEMU.

use tintype_stream::{DeviceState, Limits, RestoreWriter};

use crate::judge;
use crate::memory::Saved;
use crate::qemu::{self, Qemu};

const RICH: &str = "-device virtio-rng-pci -netdev user,id=net -device e1000,netdev=net
    -device VGA -uuid 9b9e8e5e-33a5-4c0d-8f0e-2d3f7d1c4a11";

/// Devices of many kinds, for their sections: nothing drives them.
const MANY: &str = "-smp 3 -netdev user,id=net -device e1000e,netdev=net
    -drive if=none,id=scsi,driver=null-co,size=1M -device virtio-scsi-pci
    -device scsi-hd,drive=scsi -drive if=none,id=ide,driver=null-co,size=1M -device ahci
    -device ide-hd,drive=ide -device qemu-xhci -device usb-tablet -device usb-kbd
    -device virtio-balloon-pci -device virtio-serial-pci -device virtio-gpu-pci
    -device virtio-keyboard-pci -device virtio-net-pci,mq=on,vectors=10 -device rtl8139
    -device igb -device intel-hda -device pvpanic -device isa-serial -device vmcoreinfo
    -device vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87
    -device i6300esb -device pcie-root-port,chassis=1";

/// Memory that is plugged in pieces, and sends its layout before the pages.
const PLUGGABLE: &str = "-m 16M,maxmem=1G -object memory-backend-ram,id=more,size=64M
    -device virtio-mem-pci,memdev=more,requested-size=32M";

/// Captures with these capabilities, restores, compares memory and goes on.
fn check(machine: &str, more: &str, capabilities: &[&str], stopped: bool) {
    if !qemu::is_installed() {
        return;
    }
    let arguments: Vec<_> = ["-M", machine].into_iter().chain(more.split_whitespace()).collect();
    let mut source = Qemu::start(&arguments);
    source.wait_for_guest();
    if stopped {
        source.ask("stop", serde_json::json!({}));
    }
    source.set_capabilities(capabilities);
    let stream = source.capture();
    let saved = Saved::parse(&stream, 1 << 20);
    assert!(saved.state.machine().starts_with("pc-"));
    let memory = saved.block("pc.ram");
    assert_eq!(memory.len(), 16 << 20);
    let counters = qemu::counters(&memory);
    qemu::assert_one_instant(&counters);
    if stopped {
        let seen = source.memory(16 << 20);
        assert!(seen[..0xa0000] == memory[..0xa0000] && seen[1 << 20..] == memory[1 << 20..]);
    }
    judge::assert_agrees(&stream, &saved);
    let again = DeviceState::from_bytes(saved.state.as_bytes(), Limits::default()).unwrap();
    assert_eq!(again, saved.state);

    let mut target = Qemu::start(&[&arguments[..], &["-incoming", "defer"]].concat());
    target.load(&saved.restore(&[]));
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
    check("q35", "", &[], true);
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
    check("pc", "", &["background-snapshot"], true);
}

#[test]
fn stopped_q35_with_many_devices() {
    check("q35", MANY, &[], true);
}

#[test]
fn running_pc_of_an_old_version() {
    check("pc-i440fx-7.2", RICH, &[], false);
}

#[test]
fn stopped_q35_with_pluggable_memory() {
    check("q35", PLUGGABLE, &[], true);
}

/// Clones map one file, each privately, and read only the rest from a stream.
#[test]
fn clones_share_a_file() {
    if !qemu::is_installed() {
        return;
    }
    let mut source = Qemu::start(&["-M", "q35"]);
    source.wait_for_guest();
    let saved = Saved::parse(&source.capture(), 1 << 20);
    let memory = saved.block("pc.ram");
    let path = source.path("memory-file");
    std::fs::write(&path, &memory).unwrap();
    let backend = format!(
        "memory-backend-file,id=pc.ram,size=16M,share=off,mem-path={},\
         x-use-canonical-path-for-ramblock-id=off",
        path.display()
    );
    let arguments = ["-M", "q35,memory-backend=pc.ram", "-object", &backend, "-incoming", "defer"];
    for _ in 0..2 {
        let mut clone = Qemu::start(&arguments);
        clone.load(&saved.restore(&["pc.ram"]));
        clone.ask("stop", serde_json::json!({}));
        let seen = clone.memory(16 << 20);
        assert!(seen[1 << 20..] == memory[1 << 20..]);
        qemu::assert_one_instant(&qemu::counters(&seen));
        assert!(qemu::counters(&seen)[0] >= qemu::counters(&memory)[0]);
    }
    assert!(std::fs::read(&path).unwrap() == memory);
}

#[test]
fn a_restore_has_all_pages() {
    if !qemu::is_installed() {
        return;
    }
    let mut source = Qemu::start(&["-M", "pc"]);
    let saved = Saved::parse(&source.capture(), 1 << 20);
    let mut writer = RestoreWriter::new(&saved.state);
    let mut out = Vec::new();
    for (&(block, page), bytes) in saved.pages.iter().filter(|(key, _)| key.1.0 != 7) {
        writer.page(&mut out, block, page, bytes).unwrap();
    }
    let before = out.len();
    let error = writer.finish(&mut out).unwrap_err();
    assert_eq!(error.to_string(), "1 pages of RAM block `pc.ram` were not written, the first is 7");
    assert_eq!(out.len(), before);
}
