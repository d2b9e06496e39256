//! Whether guests come up under KVM on this machine. The device node does not
//! tell: it may open, and stock kernels hang all the same. So the tiny guest is
//! started under KVM once, and the answer is kept until the machine starts anew.

use std::fs;
use std::time::Duration;

use tintype_testkit::{Guest, GuestKind, Qemu, guests_folder};

use crate::failure::Failure;

/// How long the tiny guest may take under KVM. Where KVM works it takes two seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer's file, in the folder of the guests.
const FILE: &str = "kvm";

/// Returns the accelerator for guests on this machine, as QEMU names it: `kvm`,
/// or `tcg`, which emulates. The tiny guest has to be built.
pub(crate) fn choose() -> Result<&'static str, Failure> {
    Ok(if kvm_works()? { "kvm" } else { "tcg" })
}

fn kvm_works() -> Result<bool, Failure> {
    let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !opens {
        return Ok(false);
    }
    let asked = question()?;
    let path = guests_folder().join(FILE);
    let known = fs::read_to_string(&path).unwrap_or_default();
    if let Some(answer) = known.strip_prefix(&asked) {
        return Ok(answer.trim() == "works");
    }
    eprintln!("trying a guest under KVM, for {} s at most", PATIENCE.as_secs());
    let works = try_guest()?;
    let answer = if works { "works" } else { "does not work" };
    fs::write(&path, format!("{asked}{answer}\n")).map_err(Failure::file("write", &path))?;
    Ok(works)
}

/// What the answer is about: this start of this machine, and its QEMU.
fn question() -> Result<String, Failure> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Ok(format!("{} QEMU {}: ", boot.trim(), Qemu::system()?.release()))
}

fn try_guest() -> Result<bool, Failure> {
    let mut guest =
        Guest::of(GuestKind::Tiny).memory_mib(128).accelerator("kvm").prepare()?.spawn()?;
    Ok(guest.serial().wait_ready(PATIENCE).is_ok())
}
