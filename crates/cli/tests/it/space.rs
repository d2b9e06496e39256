//! A repository, or a home, on a file system that is full: the take fails, the
//! guest runs, the space comes back, and the next take works.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scene::Scene;
use crate::soak::is_soak;
use crate::subject::modes;

/// A small file system in memory, which goes when it is dropped.
pub(crate) struct SmallFolder(PathBuf);

impl SmallFolder {
    /// Mounts one, or says why this machine does not let us.
    pub(crate) fn mount(path: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tintype-test"])
            .arg(path)
            .output()
            .unwrap();
        if mount.status.success() {
            return Some(Self(path.to_owned()));
        }
        eprintln!("not tested: {}", String::from_utf8_lossy(&mount.stderr));
        None
    }

    fn used(&self) -> u64 {
        let output = Command::new("du").arg("-sk").arg(&self.0).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for SmallFolder {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn the_repository_is_full() {
    let mut scene = Scene::start();
    let place = scene.guest.files().folder().join("small");
    let sizes: &[u32] = if is_soak() { &[1, 2, 4, 8, 12, 16] } else { &[2, 8] };
    for size in sizes {
        let Some(small) = SmallFolder::mount(&place, &format!("size={size}m")) else { return };
        let repo = place.join("repository");
        let repo = repo.to_str().unwrap();
        scene.tintype.run(&["--repo", repo, "init"]);
        let before = small.used();
        let modes = modes(scene.guest.files().qemu());
        for mode in if is_soak() { modes } else { &modes[..1] } {
            let output = scene.tintype.run(&["--repo", repo, "take", "web", "--mode", mode]);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("{size} MiB, {mode}: {errors}");
            assert_eq!(output.status.code(), Some(1), "{errors}");
            assert!(errors.contains("No space left on device"), "{errors}");
            assert!(
                errors.contains("state: no snapshot was taken; the guest runs as before"),
                "{errors}"
            );
            assert!(errors.contains("hint:"), "{errors}");
            assert_eq!(scene.state(), "base");
            scene.must_be_traceless();
            assert_eq!(small.used(), before, "the space comes back");
            assert!(scene.tintype.lines(&["--repo", repo, "log"]).is_empty());
        }
    }
    scene.must_work();
}

#[test]
fn the_home_is_full() {
    let mut scene = Scene::start();
    let vms = scene.home().join("vms/web");
    let kept = std::fs::read(vms.join("vm.json")).unwrap();
    let Some(small) = SmallFolder::mount(&vms, "size=32k") else { return };
    std::fs::write(vms.join("vm.json"), kept).unwrap();
    let filled = Command::new("sh")
        .arg("-c")
        .arg(format!("cat /dev/zero > {}", vms.join("filler").display()))
        .output()
        .unwrap();
    assert!(!filled.status.success(), "it is full");
    let output = scene.tintype.run(&["take", "web", "--name", "full"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("{errors}");
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("No space left on device"), "{errors}");
    assert_eq!(scene.state(), "base");
    scene.must_be_traceless();
    std::fs::remove_file(vms.join("filler")).unwrap();
    assert_eq!(scene.snapshots(), ["base"]);
    scene.must_work();
    drop(small);
}
