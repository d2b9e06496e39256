//! Any bytes as a qcow2 image.
#![no_main]

use tintype_inspect::{ImageFormat, inspect};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let image = data.to_vec();
    let Ok(report) = inspect(&image, ImageFormat::Qcow2) else { return };
    for snapshot in &report.snapshots {
        // What reads as one snapshot is an image without any.
        let Ok(head) = snapshot.header(&image) else { continue };
        let mut view = image.clone();
        view[..head.len()].copy_from_slice(&head);
        if let Ok(report) = inspect(&view, ImageFormat::Qcow2) {
            assert!(report.snapshots.is_empty());
        }
    }
});
