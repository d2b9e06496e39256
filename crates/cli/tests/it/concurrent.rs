//! Two commands at once on one VM.

use std::time::Duration;

use crate::command::Tintype;
use crate::scene::Scene;

#[test]
fn the_second_take_waits_and_says_for_whom() {
    let mut scene = Scene::start();
    let first = scene.held_at("take-resumed", &["take", "web", "--name", "first"]);
    let refused = scene.tintype.run(&["--wait", "0", "take", "web", "--name", "second"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{errors}");
    let holder = format!("`tintype take` (process {})", first.pid());
    assert!(errors.contains(&holder), "{errors}");
    assert!(errors.contains("state: nothing was changed"), "{errors}");
    assert_eq!(scene.tintype.json(&["vm", "show", "web"])["state"], "in use");
    let mut second = scene.tintype.command();
    let second = second.args(["take", "web", "--name", "second"]);
    let second = second.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut second = second.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(second.try_wait().unwrap(), None, "it waits");
    assert!(first.let_go().status.success());
    let second = second.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.success(), "{errors}");
    assert!(errors.contains("waiting for the VM `web`, which is in use"), "{errors}");
    assert!(errors.contains(&holder), "{errors}");
    assert_eq!(scene.snapshots(), ["base", "first", "second"]);
    scene.must_work();
}

#[test]
fn a_second_home_finds_the_monitor_held() {
    let mut scene = Scene::start();
    let folder = scene.guest.files().folder().join("other");
    std::fs::create_dir(&folder).unwrap();
    let other = Tintype::within(&folder);
    let qmp = scene.guest.qmp_path();
    other.json(&["vm", "add", "theirs", "--qmp", qmp.to_str().unwrap()]);
    let first = scene.held_at("take-instant", &["take", "web", "--name", "first"]);
    let second = other.run(&["take", "theirs"]);
    assert!(first.let_go().status.success());
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{errors}");
    assert!(errors.contains("another client holds this monitor"), "{errors}");
    other.json(&["take", "theirs"]);
    assert_eq!(scene.state(), "base");
    scene.must_work();
}
