//! What the client makes of a real server: `qemu-nbd`.

use std::path::Path;
use std::time::Instant;

use tintype_nbd::codec::{ExportFlags, StatusFlags};
use tintype_nbd::{Client, ConnectParams, Content, Error, ErrorKind, PullParams};
use tintype_types::Extent;

use crate::tools::{Numbers, QemuNbd, have, run};

fn create(directory: &Path, format: &str, size: &str) -> std::path::PathBuf {
    let image = directory.join("disk");
    run("qemu-img", &["create", "-q", "-f", format, image.to_str().unwrap(), size]);
    image
}

#[test]
fn size_flags_and_status_are_those_of_the_image() {
    if !have("qemu-nbd") || !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = create(directory.path(), "qcow2", "10M");
    let path = image.to_str().unwrap();
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 1M 128k", "-c", "write -z 4M 64k", path]);
    let peer = QemuNbd::serve(directory.path(), &image, "qcow2", &[]);
    let mut client = peer.client();
    assert_eq!(client.size().get(), 10 << 20);
    assert!(client.flags().has(ExportFlags::FLUSH.with(ExportFlags::WRITE_ZEROES)));
    assert_eq!(client.block_sizes().maximum, 32 << 20);
    let status = client.block_status(Extent { offset: 0, len: 10 << 20 }).unwrap();
    let data: Vec<_> =
        status.iter().filter(|status| !status.flags.has(StatusFlags::ZERO)).collect();
    assert_eq!(data.len(), 1);
    assert_eq!(data[0].extent, Extent { offset: 1 << 20, len: 128 << 10 });
    let mut bytes = [0; 4];
    client.read_at((1 << 20) - 2, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0, 7, 7]);
}

#[test]
fn odd_sizes_are_exact() {
    if !have("qemu-nbd") {
        return;
    }
    for size in [0, 1, 511, 512, 4097, 65_537] {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk");
        let bytes = Numbers(99).bytes(size);
        std::fs::write(&image, &bytes).unwrap();
        let peer = QemuNbd::serve(directory.path(), &image, "raw", &["--read-only"]);
        let mut client = peer.client();
        // QEMU rounds the size of a raw file up to whole sectors.
        let served = client.size().get();
        assert_eq!(served, u64::try_from(size.next_multiple_of(512)).unwrap());
        let mut seen = vec![0; usize::try_from(served).unwrap()];
        client.read_at(0, &mut seen).unwrap();
        assert!(seen[..size] == bytes && seen[size..].iter().all(|&byte| byte == 0));
        let error = client.write_at(0, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Impossible);
    }
}

#[test]
fn a_dirty_bitmap_can_be_asked_for() {
    if !have("qemu-nbd") || !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = create(directory.path(), "qcow2", "10M");
    let path = image.to_str().unwrap();
    run("qemu-img", &["bitmap", "-f", "qcow2", "--add", "-g", "64k", path, "b0"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write 3M 64k", path]);
    let peer = QemuNbd::serve(directory.path(), &image, "qcow2", &["--read-only", "--bitmap=b0"]);
    let name = "qemu:dirty-bitmap:b0";
    let params = ConnectParams { contexts: vec![name.into()], ..ConnectParams::new("disk") };
    let mut client = Client::connect(&peer.socket, &params).unwrap();
    assert!(client.has_context(name));
    let status = client.status_of(name, Extent { offset: 0, len: 10 << 20 }).unwrap();
    let dirty: Vec<_> = status.iter().filter(|status| status.flags.0 == 1).collect();
    assert_eq!(dirty.len(), 1);
    assert_eq!(dirty[0].extent, Extent { offset: 3 << 20, len: 64 << 10 });
    let error = client.status_of("qemu:dirty-bitmap:b1", dirty[0].extent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Impossible);
}

#[test]
fn a_server_without_the_export_refuses() {
    if !have("qemu-nbd") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    std::fs::write(&image, [0; 512]).unwrap();
    let peer = QemuNbd::serve(directory.path(), &image, "raw", &[]);
    let error = Client::connect(&peer.socket, &ConnectParams::new("other")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("`other`"), "{error}");
    let nowhere = directory.path().join("nowhere");
    let error = Client::connect(&nowhere, &ConnectParams::new("disk")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Connect);
}

#[test]
fn a_failed_read_leaves_the_connection_good() {
    if !have("qemu-nbd") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    std::fs::write(&image, vec![5; 4 << 20]).unwrap();
    let broken = format!(
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={},\
         file.inject-error.0.event=read_aio,file.inject-error.0.sector=4096,\
         file.inject-error.0.errno=5",
        image.display()
    );
    let mut peer = QemuNbd::start(directory.path(), &["--image-opts", &broken]);
    let mut client = peer.client();
    let error = client.read_at(2 << 20, &mut [0; 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    assert!(error.to_string().contains("read of 4096 bytes at offset 2097152"), "{error}");
    assert!(error.to_string().contains("errno 5"), "{error}");
    let mut byte = [0];
    client.read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    peer.kill();
    let error = client.read_at(0, &mut byte).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(matches!(client.flush(), Err(Error::Broken { .. })));
}

#[test]
fn a_sink_can_stop_a_pull() {
    if !have("qemu-nbd") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    std::fs::write(&image, vec![5; 4 << 20]).unwrap();
    let peer = QemuNbd::serve(directory.path(), &image, "raw", &[]);
    let mut client = peer.client();
    let params = PullParams { window: 8, request_len: 128 << 10, grain: 4096 };
    let mut calls = 0;
    let outcome: Result<(), Box<dyn std::error::Error>> =
        client.pull(Some(Extent { offset: 0, len: 4 << 20 }), &params, |_, _| {
            calls += 1;
            Err("enough".into())
        });
    assert_eq!(outcome.unwrap_err().to_string(), "enough");
    assert_eq!(calls, 1);
    client.read_at(0, &mut [0; 512]).unwrap();
}

#[test]
fn writes_in_flight_arrive() {
    if !have("qemu-nbd") || !have("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = create(directory.path(), "qcow2", "32M");
    let bytes = Numbers(3).bytes(32 << 20);
    {
        let peer = QemuNbd::serve(directory.path(), &image, "qcow2", &[]);
        let mut client = peer.client();
        let mut pipeline = client.pipeline(8);
        let mut offset = 0;
        for piece in bytes.chunks(700_000) {
            pipeline.write_at(offset, piece).unwrap();
            offset += u64::try_from(piece.len()).unwrap();
        }
        pipeline.write_zeroes(Extent { offset: 1 << 20, len: 1 << 20 }).unwrap();
        let error = pipeline.write_at(offset, &[0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Impossible);
        pipeline.finish().unwrap();
        client.flush().unwrap();
        let mut seen = vec![0xaa; 32 << 20];
        client.read_at(0, &mut seen).unwrap();
        let mut expected = bytes.clone();
        expected[1 << 20..2 << 20].fill(0);
        assert!(seen == expected);
    }
}

#[test]
fn a_whole_disk_comes_quickly() {
    if !have("qemu-nbd") || !have("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    let bytes = Numbers(5).bytes(64 << 20);
    std::fs::write(&image, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(100 << 30).unwrap();
    let peer = QemuNbd::serve(directory.path(), &image, "raw", &["--read-only"]);
    let mut client = peer.client();
    for window in [1, 2, 4, 8, 16] {
        let params = PullParams { window, ..PullParams::default() };
        let start = Instant::now();
        let (mut data, mut zero) = (0, 0);
        client
            .pull(Some(Extent { offset: 0, len: 4 << 30 }), &params, |extent, content| {
                match content {
                    Content::Data(_) => data += extent.len,
                    Content::Zero => zero += extent.len,
                }
                Ok::<(), Error>(())
            })
            .unwrap();
        assert_eq!((data, zero), (64 << 20, (4 << 30) - (64 << 20)));
        eprintln!("window {window}: 64 MiB of data and 4 GiB of holes in {:?}", start.elapsed());
    }
}
