//! What is read and written is what QEMU's tools see.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use tintype_image::{
    Access, Cache, Content, CreateParams, Error, ErrorKind, ImageHost, ImageSpec, PullParams,
    StatusFlags,
};
use tintype_types::{ByteCount, Extent};

use crate::tools::{Numbers, format, index, place, run};

const SIZE: u64 = 9 << 20;

#[test]
fn random_writes_are_what_qemu_sees() {
    let Some(place) = place() else { return };
    for (name, cache) in [
        ("raw", Cache::Buffered),
        ("qcow2", Cache::Buffered),
        ("raw", Cache::Direct),
        ("qcow2", Cache::Direct),
        ("vmdk", Cache::Buffered),
    ] {
        let file = format!("{name}-{cache:?}");
        let path = place.create(&file, name, &[&SIZE.to_string()]);
        let spec = ImageSpec { cache, ..ImageSpec::writable(&path, format(name)) };
        let host = place.open(spec).unwrap();
        let image = host.image(0);
        assert_eq!(image.size(), ByteCount(SIZE));
        let mut numbers = Numbers(41);
        let mut model = vec![0; index(SIZE)];
        for _ in 0..100 {
            let offset = numbers.below(SIZE / 512) * 512;
            let len = ((1 + numbers.below(400)) * 512).min(SIZE - offset);
            let range = index(offset)..index(offset + len);
            if numbers.below(3) == 0 {
                image.write_zeroes(Extent { offset, len }).unwrap();
                model[range].fill(0);
            } else {
                let bytes = numbers.bytes(range.len());
                image.write_at(offset, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
        }
        image
            .push(4, |writer| {
                writer.write_at(0, &[9; 4096])?;
                writer.write_zeroes(Extent { offset: 4096, len: 4096 })
            })
            .unwrap();
        model[..4096].fill(9);
        model[4096..8192].fill(0);
        let mut seen = vec![0xee; model.len()];
        image.read_at(0, &mut seen).unwrap();
        assert!(seen == model, "{file}");
        host.close().unwrap();
        let flat = place.path("flat");
        std::fs::write(&flat, &model).unwrap();
        let (flat, path) = (flat.to_str().unwrap(), path.to_str().unwrap());
        run("qemu-img", &["compare", "-f", "raw", "-F", name, flat, path]);
        if name == "qcow2" {
            run("qemu-img", &["check", "-q", "-f", name, path]);
        }
    }
    place.assert_tidy();
}

#[test]
fn a_pull_and_the_map_agree_with_the_image() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["64M"]);
    let commands = ["write -P 7 1M 1M", "write -P 8 40M 192k", "write -z 50M 64k"];
    let mut arguments = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(path.to_str().unwrap());
    run("qemu-io", &arguments);
    let host = place.open(ImageSpec::read_only(&path, format("qcow2"))).unwrap();
    let whole = Extent { offset: 0, len: 64 << 20 };
    let map = host.image(0).extents(whole).unwrap();
    let data: u64 = map
        .iter()
        .filter(|status| !status.flags.has(StatusFlags::ZERO))
        .map(|status| status.extent.len)
        .sum();
    assert_eq!(data, (1 << 20) + (192 << 10));
    let mut sum = 0;
    host.image(0)
        .pull(Some(whole), &PullParams::default(), |extent, content| {
            if let Content::Data(bytes) = content {
                assert!(bytes.iter().all(|&byte| byte == bytes[0]));
                sum += extent.len * u64::from(bytes[0]);
            }
            Ok::<(), Error>(())
        })
        .unwrap();
    assert_eq!(sum, (7 << 20) + 8 * (192 << 10));
    let error = host.image(0).write_at(0, &[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Access);
    host.close().unwrap();
}

#[test]
fn several_images_and_threads_share_one_host() {
    let Some(place) = place() else { return };
    let specs = ["a", "b", "c"]
        .map(|name| ImageSpec::writable(&place.create(name, "qcow2", &["8M"]), format("qcow2")));
    let host = ImageHost::open(&place.config(), &specs).unwrap();
    std::thread::scope(|scope| {
        for (number, image) in host.images().iter().enumerate() {
            for part in 0..4_u8 {
                scope.spawn(move || {
                    let byte = u8::try_from(number).unwrap() * 16 + part + 1;
                    let offset = u64::from(part) << 21;
                    image.write_at(offset, &vec![byte; 2 << 20]).unwrap();
                });
            }
        }
    });
    host.close().unwrap();
    let host = ImageHost::open(&place.config(), &specs).unwrap();
    for (number, image) in host.images().iter().enumerate() {
        for part in 0..4 {
            let mut byte = [0];
            image.read_at(part << 21, &mut byte).unwrap();
            assert_eq!(u64::from(byte[0]), u64::try_from(number).unwrap() * 16 + part + 1);
        }
    }
    host.close().unwrap();
}

#[test]
fn images_are_created_with_size_and_mode() {
    let Some(place) = place() else { return };
    for (name, size) in [("raw", 5 << 20), ("qcow2", (7 << 20) + 512), ("vdi", 8 << 20)] {
        let path = place.path(name);
        let params = CreateParams {
            path: path.clone(),
            format: format(name),
            size: ByteCount(size),
            mode: 0o600,
            backing: None,
        };
        ImageHost::create(&place.config(), &params).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let info = run("qemu-img", &["info", "-f", name, "--output=json", path.to_str().unwrap()]);
        assert!(info.contains(&format!("\"virtual-size\": {size}")), "{info}");
        let before = std::fs::read(&path).unwrap();
        let error = ImageHost::create(&place.config(), &params).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Create);
        assert!(std::fs::read(&path).unwrap() == before);
    }
    let path = place.path("huge");
    let huge = CreateParams {
        path: path.clone(),
        format: format("qcow2"),
        size: ByteCount(u64::MAX),
        mode: 0o600,
        backing: None,
    };
    let error = ImageHost::create(&place.config(), &huge).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Qemu, "{error}");
    assert!(!path.exists());
    place.assert_tidy();
}

#[test]
fn a_resized_image_keeps_what_it_keeps() {
    let Some(place) = place() else { return };
    for name in ["raw", "qcow2"] {
        let path = place.create(name, name, &["4M"]);
        let mut host = place.open(ImageSpec::writable(&path, format(name))).unwrap();
        host.image(0).write_at(0, &vec![3; 4 << 20]).unwrap();
        host.resize(0, ByteCount(6 << 20)).unwrap();
        assert_eq!(host.image(0).size(), ByteCount(6 << 20));
        let mut bytes = vec![1; 6 << 20];
        host.image(0).read_at(0, &mut bytes).unwrap();
        assert!(bytes[..4 << 20].iter().all(|&byte| byte == 3));
        assert!(bytes[4 << 20..].iter().all(|&byte| byte == 0));
        let error = host.resize(0, ByteCount(u64::MAX)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Qemu, "{error}");
        assert_eq!(host.image(0).size(), ByteCount(6 << 20));
        host.resize(0, ByteCount((1 << 20) + 512)).unwrap();
        host.image(0).write_at(1 << 20, &[5; 512]).unwrap();
        assert_eq!(host.image(0).size(), ByteCount((1 << 20) + 512));
        host.close().unwrap();
        let info = run("qemu-img", &["info", "-f", name, "--output=json", path.to_str().unwrap()]);
        assert!(info.contains("\"virtual-size\": 1049088"), "{info}");
    }
}

#[test]
fn odd_sizes_of_raw_files_are_rounded_up() {
    let Some(place) = place() else { return };
    for len in [0, 1, 511, 513, 65_537] {
        let path = place.path("odd");
        let bytes = Numbers(5).bytes(len);
        std::fs::write(&path, &bytes).unwrap();
        let host = place.open(ImageSpec::read_only(&path, format("raw"))).unwrap();
        let size = index(host.image(0).size().get());
        assert_eq!(size, len.next_multiple_of(512));
        let mut seen = vec![1; size];
        host.image(0).read_at(0, &mut seen).unwrap();
        assert!(seen[..len] == bytes && seen[len..].iter().all(|&byte| byte == 0));
        host.close().unwrap();
    }
}

#[test]
fn a_block_device_is_an_image() {
    let Some(place) = place() else { return };
    let file = place.path("file");
    std::fs::write(&file, vec![1; 4 << 20]).unwrap();
    let Some(device) = LoopDevice::of(&file) else { return };
    let mut host = place.open(ImageSpec::writable(&device.0, format("raw"))).unwrap();
    assert_eq!(host.image(0).size(), ByteCount(4 << 20));
    host.image(0).write_at(1 << 20, &[2; 4096]).unwrap();
    host.image(0).write_zeroes(Extent { offset: 2 << 20, len: 1 << 20 }).unwrap();
    let error = place.open(ImageSpec::read_only(&device.0, format("raw"))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    let error = host.resize(0, ByteCount(8 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Qemu, "{error}");
    host.image(0).flush().unwrap();
    host.close().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let at = |offset: usize| bytes[offset];
    assert_eq!(
        [at(0), at(1 << 20), at((1 << 20) + 4096), at(2 << 20), at(3 << 20)],
        [1, 2, 1, 0, 1]
    );
}

/// A block device on a file; it is detached with its scope.
struct LoopDevice(std::path::PathBuf);

impl LoopDevice {
    fn of(file: &std::path::Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            other => {
                eprintln!("skipped: no loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn what_cannot_be_opened_says_why() {
    let Some(place) = place() else { return };
    let check = |path: &std::path::Path, name, expected: &str| {
        let error = place.open(ImageSpec::read_only(path, format(name))).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Open, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(&place.path("nothing"), "raw", "does not exist");
    check(place.directory(), "raw", "neither a regular file nor a block device");
    check(std::path::Path::new("/dev/null"), "raw", "neither a regular file nor a block device");
    let text = place.path("text");
    std::fs::write(&text, "no image").unwrap();
    check(&text, "qcow2", "not in qcow2 format");
    place.assert_tidy();
}

#[test]
fn the_first_read_comes_soon() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["10G"]);
    let mut all = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let host = place.open(ImageSpec::read_only(&path, format("qcow2"))).unwrap();
        let opened = start.elapsed();
        host.image(0).read_at(0, &mut [0; 4096]).unwrap();
        let read = start.elapsed();
        host.close().unwrap();
        all.push((read, opened, start.elapsed()));
    }
    all.sort();
    let (read, opened, closed) = all[2];
    eprintln!("start to open {opened:?}, to the first read {read:?}, to closed {closed:?}");
}

#[test]
fn bulk_reads_are_fast() {
    let Some(place) = place() else { return };
    const LEN: u64 = 256 << 20;
    let bytes = Numbers(17).bytes(index(LEN));
    let raw = place.path("raw");
    std::fs::write(&raw, &bytes).unwrap();
    let qcow2 = place.path("qcow2");
    let paths = [raw.to_str().unwrap(), qcow2.to_str().unwrap()];
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", paths[0], paths[1]]);
    for (name, path) in [("raw", &raw), ("qcow2", &qcow2)] {
        let host = place.open(ImageSpec::read_only(path, format(name))).unwrap();
        for window in [1, 2, 4, 8, 16] {
            let params = PullParams { window, ..PullParams::default() };
            let start = Instant::now();
            let mut seen = 0;
            host.image(0)
                .pull(Some(Extent { offset: 0, len: LEN }), &params, |extent, content| {
                    let Content::Data(data) = content else { panic!("{extent:?}") };
                    assert_eq!(data[0], bytes[index(extent.offset)]);
                    seen += extent.len;
                    Ok::<(), Error>(())
                })
                .unwrap();
            assert_eq!(seen, LEN);
            eprintln!("{name}, window {window}: 256 MiB in {:?}", start.elapsed());
        }
        host.close().unwrap();
    }
    let spec = ImageSpec::writable(&raw, format("raw"));
    assert_eq!(spec.access, Access::ReadWrite);
    let host = place.open(spec).unwrap();
    for window in [1, 4, 8] {
        let start = Instant::now();
        host.image(0)
            .push(window, |writer| {
                let pieces = bytes.chunks(1 << 20).zip((0..).map(|piece| piece << 20));
                pieces.into_iter().try_for_each(|(piece, offset)| writer.write_at(offset, piece))
            })
            .unwrap();
        eprintln!("raw, window {window}: 256 MiB written in {:?}", start.elapsed());
    }
    host.close().unwrap();
}
