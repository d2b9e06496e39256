//! What tintype makes is for its owner alone, whatever the umask: it holds the
//! memory of guests.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use crate::scene::Scene;

/// Asserts that a folder and all within it can be entered, read and written by
/// their owner alone.
fn must_be_private(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let mode = metadata.permissions().mode() & 0o7777;
    let kind = metadata.file_type();
    let expected = match () {
        () if kind.is_dir() => 0o700,
        // Nobody else comes through the folder that it is in.
        () if kind.is_socket() => mode,
        () => 0o600,
    };
    assert_eq!(mode, expected, "{} is {mode:o} and not {expected:o}", path.display());
    if kind.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| must_be_private(&entry.unwrap().path()));
    }
}

#[test]
fn of_everything_that_is_made() {
    // Inherited by every command of this test program: the modes are explicit.
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut scene = Scene::start();
    scene.write("newer");
    let held = scene.held_at("take-resumed", &["take", "web"]);
    must_be_private(&scene.home());
    assert!(held.let_go().status.success());
    scene.tintype.json(&["revert", "web", "base"]);
    assert_eq!(scene.state(), "base");
    scene.tintype.json(&["vm", "stop", "web", "--force"]);
    scene.tintype.json(&["take", "web"]);
    must_be_private(&scene.home());
}
