//! A repository in a bucket of a real S3 server.

use std::process::Output;

use tintype_testkit::{Error, S3Server};

use crate::switched_off::{SwitchedOff, failed};

/// Starts a server; if there is none, says that the test cannot run.
fn server() -> Option<S3Server> {
    match S3Server::start() {
        Err(missing @ Error::NoS3 { .. }) => {
            eprintln!("not run: {missing}");
            None
        }
        server => Some(server.unwrap()),
    }
}

#[test]
fn a_vm_is_kept_and_put_back() {
    let Some(server) = server() else { return };
    let repository = format!("{}/vms", server.new_bucket().unwrap());
    let vm = SwitchedOff::start();
    let run = |arguments: &[&str]| -> Output {
        let mut command = vm.tintype.command();
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command.env("AWS_ENDPOINT_URL", server.endpoint()).env("TINTYPE_REPO", &repository);
        command.args(arguments).output().unwrap()
    };
    let cached = || -> u64 {
        let folders = std::fs::read_dir(vm.path("home/cache")).into_iter().flatten();
        let files = folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.flatten().map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    failed(&run(&["log"]), 1);
    failed(&run(&["init"]), 0);
    failed(&run(&["init"]), 1);
    vm.write(1);
    failed(&run(&["take", "web", "--name", "one"]), 0);
    vm.write(2);
    assert!(cached() > 0, "what was taken is kept here too");
    std::fs::remove_dir_all(vm.path("home/cache")).unwrap();
    failed(&run(&["revert", "web", "one", "--cache-size", "0"]), 0);
    assert_eq!(cached(), 0);
    vm.must_be(1);
    vm.write(2);
    failed(&run(&["revert", "web", "one", "--limit-rate", "100M", "--no-safety"]), 0);
    assert!(cached() > 0, "what was put back is kept here");
    vm.must_be(1);
    vm.write(2);
    failed(&run(&["take", "web", "--name", "two"]), 0);
    failed(&run(&["revert", "web", "one", "--cache-size", "nothing"]), 2);
    failed(&run(&["revert", "web", "one"]), 0);
    vm.must_be(1);
    failed(&run(&["revert", "web", "safety1"]), 0);
    vm.must_be(2);
    failed(&run(&["verify", "--read-data"]), 0);
    let log = run(&["log"]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("one"), "{log:?}");
}
