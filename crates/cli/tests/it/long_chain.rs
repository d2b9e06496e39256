//! A disk on a long chain of overlays, as snapshots of other tools leave behind.

use std::path::Path;

use tintype_testkit::Qemu;

use crate::bare_vm::{BareVm, image_tool};

/// More than JSON is followed into, at one level for each overlay.
const OVERLAYS: usize = 128;

#[test]
fn a_disk_on_a_long_chain_is_taken_and_put_back() {
    let vm = BareVm::start_with(&Qemu::system().unwrap(), 1 << 20, |folder| {
        let top = chain(folder);
        ["-blockdev", &format!("qcow2,node-name=node-dc,file.driver=file,file.filename={top}")]
            .into_iter()
            .chain(["-device", "virtio-blk-pci,id=dc,drive=node-dc"])
            .map(str::to_owned)
            .collect()
    });
    let image = vm.path(&format!("{OVERLAYS}.qcow2"));
    let convert = ["convert", "-U", "-f", "qcow2", "-O", "raw"];
    let compare = |command: &[&str]| image_tool(command, &[&image, &vm.path("then")], &[]);
    vm.io("dc", "write -P 8 4k 4k");
    vm.io("dc", "flush");
    compare(&convert);
    vm.tintype.json(&["take", "web", "--name", "deep"]);
    vm.io("dc", "write -P 9 0 64k");
    vm.tintype.json(&["revert", "web", "deep"]);
    compare(&["compare", "-U", "-q", "-f", "qcow2", "-F", "raw"]);
}

/// Makes a chain with data at its end, and returns the image on top.
fn chain(folder: &Path) -> String {
    let name = |at: usize| folder.join(format!("{at}.qcow2"));
    image_tool(&["create", "-q", "-f", "qcow2"], &[&name(0)], &["1M"]);
    let bare = ["bench", "-q", "-w", "-c", "8", "-s", "4096", "--pattern=7", "-f", "qcow2"];
    image_tool(&bare, &[&name(0)], &[]);
    for at in 1..=OVERLAYS {
        let below = name(at - 1).display().to_string();
        let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below];
        image_tool(&create, &[&name(at)], &[]);
    }
    name(OVERLAYS).display().to_string()
}
