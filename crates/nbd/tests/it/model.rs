//! Random operations against plain bytes in memory.

use std::sync::Arc;

use tintype_nbd::{Client, Content, Error, MemoryExport, PullParams};
use tintype_types::Extent;

use crate::tools::{Numbers, QemuNbd, Served, have, run};

const SIZE: u64 = (3 << 20) + 512;

/// Checks that a client and plain bytes agree through many operations.
fn check(client: &mut Client, seed: u64, align: u64) {
    let mut numbers = Numbers(seed);
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    assert_eq!(client.size().get(), SIZE);
    for step in 0..300 {
        let offset = numbers.below(SIZE) / align * align;
        let len = (1 + numbers.below(200_000)).next_multiple_of(align).min(SIZE - offset);
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        match numbers.below(6) {
            0 | 1 => {
                let bytes = numbers.bytes(range.len());
                client.write_at(offset, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
            2 => {
                client.write_zeroes(Extent { offset, len }).unwrap();
                model[range].fill(0);
            }
            3 => {
                let mut bytes = vec![0xaa; range.len()];
                client.read_at(offset, &mut bytes).unwrap();
                assert!(bytes == model[range], "step {step}: {len} bytes at {offset}");
            }
            4 => check_status(client, &model, Extent { offset, len }),
            _ => check_pull(client, &model, &mut numbers),
        }
    }
    client.flush().unwrap();
    check_pull(client, &model, &mut numbers);
}

fn check_status(client: &mut Client, model: &[u8], extent: Extent) {
    let mut at = extent.offset;
    for status in client.block_status(extent).unwrap() {
        assert_eq!(status.extent.offset, at);
        at = status.extent.end();
        let bytes = &model[usize::try_from(status.extent.offset).unwrap()..];
        let bytes = &bytes[..usize::try_from(status.extent.len).unwrap()];
        let zero = tintype_nbd::codec::StatusFlags::ZERO;
        assert!(!status.flags.has(zero) || bytes.iter().all(|&byte| byte == 0));
    }
    assert_eq!(at, extent.end());
}

fn check_pull(client: &mut Client, model: &[u8], numbers: &mut Numbers) {
    let params = PullParams {
        window: usize::try_from(1 + numbers.below(16)).unwrap(),
        request_len: u32::try_from(1 + numbers.below(1 << 20)).unwrap(),
        grain: 1 << numbers.below(17),
    };
    let middle = numbers.below(SIZE);
    let extents =
        [Extent { offset: 0, len: middle }, Extent { offset: middle, len: SIZE - middle }];
    let mut seen = vec![0xee; model.len()];
    let mut total = 0;
    client
        .pull(extents, &params, |extent, content| {
            let start = usize::try_from(extent.offset).unwrap();
            let target = &mut seen[start..start + usize::try_from(extent.len).unwrap()];
            match content {
                Content::Data(bytes) => target.copy_from_slice(bytes),
                Content::Zero => target.fill(0),
            }
            total += extent.len;
            Ok::<(), Error>(())
        })
        .unwrap();
    assert_eq!(total, SIZE);
    assert!(seen == model, "{params:?}");
}

#[test]
fn our_client_and_our_server() {
    let export = Arc::new(MemoryExport::new(vec![0; usize::try_from(SIZE).unwrap()]));
    let served = Served::new(export);
    for seed in 1..6 {
        let mut client = served.client();
        client.write_zeroes(Extent { offset: 0, len: SIZE }).unwrap();
        check(&mut client, seed, 1);
    }
}

#[test]
fn our_client_and_qemu_nbd() {
    if !have("qemu-nbd") || !have("qemu-img") {
        return;
    }
    for (format, align) in [("raw", 1), ("qcow2", 1), ("raw", 512), ("qcow2", 512)] {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk");
        let path = image.to_str().unwrap();
        run("qemu-img", &["create", "-q", "-f", format, path, &SIZE.to_string()]);
        let peer = QemuNbd::serve(directory.path(), &image, format, &["--discard=unmap"]);
        check(&mut peer.client(), 7 + align, align);
    }
}
