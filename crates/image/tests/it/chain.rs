//! Backing chains: as the header names them, never probed.

use tintype_image::{Error, ErrorKind, ImageHost, ImageSpec, LayerSpec};

use crate::tools::{Place, format, place, run};

/// Makes `c` on `b` on `a`, with a byte of each.
fn chain(place: &Place, base: &str) {
    let a = place.create("a", base, &["1M"]);
    place.create("b", "qcow2", &["-b", "a", "-F", base]);
    let b = place.path("b");
    place.create("c", "qcow2", &["-b", b.to_str().unwrap(), "-F", "qcow2"]);
    let write = |path: &std::path::Path, name: &str, command: &str| {
        run("qemu-io", &["-f", name, "-c", command, path.to_str().unwrap()]);
    };
    write(&a, base, "write -P 1 0 192k");
    write(&b, "qcow2", "write -P 2 64k 128k");
    write(&place.path("c"), "qcow2", "write -P 3 128k 64k");
}

#[test]
fn a_chain_is_read_and_its_top_written() {
    let Some(place) = place() else { return };
    for base in ["raw", "qcow2"] {
        chain(&place, base);
        let before = std::fs::read(place.path("b")).unwrap();
        let host = place.open(ImageSpec::writable(&place.path("c"), format("qcow2"))).unwrap();
        let mut bytes = vec![9; 256 << 10];
        host.image(0).read_at(0, &mut bytes).unwrap();
        let at = |offset: usize| bytes[offset << 10];
        assert_eq!(
            [at(0), at(63), at(64), at(127), at(128), at(191), at(192)],
            [1, 1, 2, 2, 3, 3, 0]
        );
        host.image(0).write_at(0, &[7; 512]).unwrap();
        host.close().unwrap();
        assert!(std::fs::read(place.path("b")).unwrap() == before);
        let top = place.path("c");
        run(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                "read -P 7 0 512",
                "-c",
                "read -P 1 512 512",
                top.to_str().unwrap(),
            ],
        );
        for name in ["a", "b", "c"] {
            std::fs::remove_file(place.path(name)).unwrap();
        }
    }
}

#[test]
fn a_backing_file_without_a_format_is_refused() {
    let Some(place) = place() else { return };
    chain(&place, "raw");
    // The name of the header extension for the format is zeroed, as by an old tool.
    let path = place.path("b");
    let mut bytes = std::fs::read(&path).unwrap();
    let magic = [0xe2, 0x79, 0x2a, 0xca];
    let at = bytes.windows(4).position(|window| window == magic).unwrap();
    bytes[at..at + 4].copy_from_slice(&[0x11, 0x22, 0x33, 0x44]);
    std::fs::write(&path, bytes).unwrap();
    let error = place.open(ImageSpec::read_only(&place.path("c"), format("qcow2"))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Open);
    assert!(matches!(&error, Error::Backing { path: refused, .. } if *refused == path), "{error}");
    assert!(error.to_string().contains("never probed"), "{error}");
}

#[test]
fn strange_backing_files_are_refused() {
    let Some(place) = place() else { return };
    let check = |backing: &str, backing_format: &str, expected: &str| {
        let top = place.create("top", "qcow2", &["1M"]);
        let top_path = top.to_str().unwrap();
        run(
            "qemu-img",
            &["rebase", "-u", "-f", "qcow2", "-b", backing, "-F", backing_format, top_path],
        );
        let error = place.open(ImageSpec::read_only(&top, format("qcow2"))).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Open, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    check("nbd:unix:/nowhere", "raw", "not a file of this machine");
    check(
        r#"json:{"driver":"file","filename":"/etc/passwd"}"#,
        "raw",
        "not a file of this machine",
    );
    check("/etc/passwd", "nbd", "format that is not opened");
    check("missing", "raw", "does not exist");
    check("top", "qcow2", "circle");
    place.assert_tidy();
}

#[test]
fn of_a_given_chain_no_header_is_followed() {
    let Some(place) = place() else { return };
    chain(&place, "raw");
    let layer = |name: &str, driver: &str| LayerSpec {
        path: place.path(name),
        format: format(driver),
        head: None,
    };
    let first_bytes = |layers: Vec<LayerSpec>| {
        let host = place.open(ImageSpec::chain(layers)).unwrap();
        let mut bytes = [9; 3];
        for (at, byte) in [0, 64 << 10, 128 << 10].into_iter().zip(&mut bytes) {
            host.image(0).read_at(at, std::slice::from_mut(byte)).unwrap();
        }
        host.close().unwrap();
        bytes
    };
    let whole = vec![layer("c", "qcow2"), layer("b", "qcow2"), layer("a", "raw")];
    assert_eq!(first_bytes(whole), [1, 2, 3]);
    assert_eq!(first_bytes(vec![layer("c", "qcow2")]), [0, 0, 3]);
    assert_eq!(first_bytes(vec![layer("c", "qcow2"), layer("a", "raw")]), [1, 1, 3]);

    // As if it had been exchanged since somebody inspected it.
    let options = format!("data_file={}", place.path("elsewhere").display());
    place.create("c", "qcow2", &["-o", &options, "1M"]);
    let error = place.open(ImageSpec::chain(vec![layer("c", "qcow2")])).err().unwrap();
    assert!(error.to_string().contains("changed since it was inspected"), "{error}");
    place.assert_tidy();
}

#[test]
fn a_head_is_exchanged_and_the_image_stays() {
    let Some(place) = place() else { return };
    let image = place.create("image", "qcow2", &["1M"]);
    let path = image.to_str().unwrap();
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 64k", path]);
    run("qemu-img", &["snapshot", "-f", "qcow2", "-c", "one", path]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 2 0 64k", path]);
    let before = std::fs::read(&image).unwrap();
    // The first-level table of the first snapshot takes the place of the disk's.
    let table = usize::try_from(u64::from_be_bytes(*before[64..].first_chunk().unwrap())).unwrap();
    let mut head = before[..72].to_vec();
    head[40..48].copy_from_slice(&before[table..table + 8]);
    head[60..72].fill(0);
    let over = place.path("over");
    ImageHost::exchange_head(&place.config(), &image, &head, &over).unwrap();
    let layer = LayerSpec { path: image.clone(), format: format("qcow2"), head: Some(over) };
    let host = place.open(ImageSpec::chain(vec![layer])).unwrap();
    let mut byte = [9];
    host.image(0).read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    host.close().unwrap();
    assert!(std::fs::read(&image).unwrap() == before);
}
