//! What people have is accepted, and said to be what it is.

use std::path::Path;
use std::process::Command;

use tintype_inspect::{Backing, ImageFormat};

use crate::tools::{inspect_file, place, run};

const SIZE: u64 = 8 << 20;

#[test]
fn images_of_qemu_img_are_accepted() {
    let Some(place) = place() else { return };
    let cases: [(&str, ImageFormat, &[&str]); 14] = [
        ("qcow2", ImageFormat::Qcow2, &[]),
        ("qcow2", ImageFormat::Qcow2, &["-o", "compat=0.10"]),
        ("qcow2", ImageFormat::Qcow2, &["-c"]),
        ("qcow2", ImageFormat::Qcow2, &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", ImageFormat::Qcow2, &["-o", "extended_l2=on"]),
        ("qcow2", ImageFormat::Qcow2, &["-o", "cluster_size=512"]),
        ("qcow2", ImageFormat::Qcow2, &["-o", "cluster_size=2M,preallocation=metadata"]),
        ("qcow2", ImageFormat::Qcow2, &["-o", "lazy_refcounts=on,refcount_bits=64"]),
        ("vmdk", ImageFormat::Vmdk, &[]),
        ("vmdk", ImageFormat::Vmdk, &["-o", "subformat=streamOptimized"]),
        ("vpc", ImageFormat::Vhd, &["-o", "force_size=on"]),
        ("vpc", ImageFormat::Vhd, &["-o", "force_size=on,subformat=fixed"]),
        ("vhdx", ImageFormat::Vhdx, &[]),
        ("vhdx", ImageFormat::Vhdx, &["-o", "subformat=fixed"]),
    ];
    for (driver, format, options) in cases {
        let path = place.image("image", driver, options);
        let report = inspect_file(&path, format).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        assert_eq!((report.format, report.size.get()), (format, SIZE), "{driver} {options:?}");
        assert_eq!((report.backing, report.snapshots.len()), (None, 0));
        for other in ImageFormat::ALL {
            let is_accepted = inspect_file(&path, other).is_ok();
            assert_eq!(is_accepted, other == format || other == ImageFormat::Raw, "{other}");
        }
    }
}

#[test]
fn backing_files_and_snapshots_are_reported() {
    let Some(place) = place() else { return };
    let base = place.image("base", "qcow2", &[]);
    let top = place.path("top");
    let (base, top_name) = (base.to_str().unwrap(), top.to_str().unwrap());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", top_name, "16M"]);
    let report = inspect_file(&top, ImageFormat::Qcow2).unwrap();
    let (name, format) = ("base".to_owned(), Some("qcow2".to_owned()));
    assert_eq!(report.backing, Some(Backing { name, format }));
    assert_eq!(report.size.get(), 16 << 20);

    for name in ["one", "two words"] {
        run("qemu-img", &["snapshot", "-c", name, "-f", "qcow2", base]);
        run("qemu-io", &["-f", "qcow2", "-c", "write 0 200k", base]);
    }
    run("qemu-img", &["resize", "-q", "-f", "qcow2", base, "12M"]);
    let report = inspect_file(Path::new(base), ImageFormat::Qcow2).unwrap();
    assert_eq!(report.size.get(), 12 << 20);
    let snapshots: Vec<_> = report
        .snapshots
        .iter()
        .map(|snapshot| (snapshot.id.as_str(), snapshot.name.as_str(), snapshot.size.get()))
        .collect();
    assert_eq!(snapshots, [("1", "one", SIZE), ("2", "two words", SIZE)]);
    let head = report.snapshots[0].header(&std::fs::File::open(base).unwrap()).unwrap();
    assert_eq!(head[24..32], SIZE.to_be_bytes());
    assert_eq!(head[60..72], [0; 12]);
}

#[test]
fn images_of_others_are_accepted_and_a_fuzzers_is_not() {
    let Some(samples) = tintype_testkit::oracle_folder("qemu-sample-images") else {
        eprintln!("skipped: there is no folder with QEMU's sample images");
        return;
    };
    let cases = [
        ("hyperv2012r2-dynamic.vhd", ImageFormat::Vhd, true),
        ("virtualpc-dynamic.vhd", ImageFormat::Vhd, true),
        ("iotest-dynamic-1G.vhdx", ImageFormat::Vhdx, true),
        ("iotest-version3.vmdk", ImageFormat::Vmdk, true),
        ("afl5.img", ImageFormat::Vmdk, false),
    ];
    for (name, format, is_good) in cases {
        let packed = samples.join(format!("{name}.bz2"));
        let unpacked = Command::new("bzip2").arg("-dc").arg(packed).output().unwrap();
        let inspected = tintype_inspect::inspect(&unpacked.stdout, format);
        assert_eq!(inspected.is_ok(), is_good, "{name}: {inspected:?}");
    }
}
