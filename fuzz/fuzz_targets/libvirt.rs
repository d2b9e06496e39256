//! Any bytes as the XML of a libvirt snapshot.
#![no_main]

use tintype_inspect::LibvirtSnapshot;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(snapshot) = LibvirtSnapshot::read(data) {
        assert!(!snapshot.name.is_empty() && !snapshot.disks.is_empty() && snapshot.created >= 0);
    }
});
