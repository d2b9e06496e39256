//! What a real bash makes of a line when Tab is pressed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tintype_testkit::Qemu;

use crate::switched_off::SwitchedOff;

/// What the line begins with on which bash repeats what was typed.
const TYPED: &str = "typed: ";

/// Types lines into an interactive bash, each with Tab at its end, and returns what
/// they have become.
fn completed(vm: &SwitchedOff, lines: &[&str]) -> Vec<String> {
    let programs = Path::new(env!("CARGO_BIN_EXE_tintype")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut bash = vm.tintype.command();
    // The same environment, another program: one that gives bash a terminal.
    let mut terminal = Command::new("script");
    for (name, value) in bash.args(["help"]).get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    let mut terminal = terminal
        .args(["-qec", "bash --norc --noprofile -i", "/dev/null"])
        .envs([("PATH", path.as_str()), ("TERM", "dumb"), ("HISTFILE", "/dev/null")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = "source <(tintype completions bash)\n".to_owned();
    for line in lines {
        // Tab, and at the start of the line what repeats the line in place of doing it.
        text.push_str(&format!("{line}\t\u{1}echo {TYPED}\n"));
    }
    text.push_str("exit\n");
    terminal.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = terminal.wait_with_output().unwrap().stdout;
    let said = String::from_utf8_lossy(&said).replace('\r', "");
    let typed: Vec<_> = said.lines().filter_map(|line| line.strip_prefix(TYPED)).collect();
    assert_eq!(typed.len(), lines.len(), "{said}");
    typed.into_iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Asserts what lines become.
#[track_caller]
fn check(vm: &SwitchedOff, cases: &[(&str, &str)]) {
    let lines: Vec<_> = cases.iter().map(|(line, _)| *line).collect();
    let expected: Vec<_> = cases.iter().map(|(_, expected)| *expected).collect();
    assert_eq!(completed(vm, &lines), expected);
}

#[test]
fn of_names_that_are_in_the_repository() {
    let vm = SwitchedOff::start();
    vm.take("base", 1);
    vm.take("before-upgrade", 2);
    vm.tintype.json(&["tag", "web@base", "env=prod"]);
    let image = vm.path("di");
    let completed_image = vm.disk();
    let id = vm.tintype.json(&["show", "web@base"])["snapshot"]["id"].clone();
    let id = id.as_str().unwrap();
    check(
        &vm,
        &[
            ("tintype revert web web@be", "tintype revert web web@before-upgrade"),
            ("tintype revert web be", "tintype revert web before-upgrade"),
            ("tintype revert web web@la", "tintype revert web web@latest"),
            ("tintype rm web@base web@be", "tintype rm web@base web@before-upgrade"),
            ("tintype show web@ba", "tintype show web@base"),
            (&format!("tintype pin {}", &id[..8]), &format!("tintype pin {}", &id[..12])),
            ("tintype vm show w", "tintype vm show web"),
            ("tintype take w", "tintype take web"),
            ("tintype log --tag=en", "tintype log --tag=env=prod"),
            ("tintype tag web@base --remove e", "tintype tag web@base --remove env"),
            ("tintype prune --al", "tintype prune --all"),
            ("tintype take web --mode c", "tintype take web --mode copy-on-write"),
            (
                &format!("tintype import {image}"),
                &format!("tintype import {}", completed_image.display()),
            ),
            // Neither VMs of that name, nor a word about it.
            ("tintype revert nobody web@be", "tintype revert nobody web@be"),
            ("tintype --home /nowhere show web@be", "tintype --home /nowhere show web@be"),
        ],
    );
    assert!(!Path::new("/nowhere").exists());
    // A name that another VM has now: the snapshots of the first are not meant by it.
    vm.tintype.json(&["vm", "rm", "web"]);
    check(&vm, &[("tintype log w", "tintype log web")]);
    let qemu = Qemu::system().unwrap().binary();
    let line = [qemu.to_str().unwrap(), "-m", "16", "-nodefaults", "-display", "none"];
    vm.tintype.json(&[&["vm", "run", "web", "--"], &line[..], &["-accel", "tcg"]].concat());
    check(&vm, &[("tintype show web@be", "tintype show web@be")]);
    vm.tintype.json(&["vm", "stop", "web", "--force"]);
}

#[test]
fn of_names_that_the_last_command_knew() {
    let vm = SwitchedOff::start();
    let (repository, words) = (vm.path("sealed"), vm.path("words"));
    fs::write(&words, "a passphrase\n").unwrap();
    let of = ["--repo", &repository, "--passphrase-file", &words];
    vm.tintype.json(&[&of[..], &["init", "--encryption", "passphrase"]].concat());
    vm.tintype.json(&[&of[..], &["take", "web", "--name", "before-upgrade"]].concat());
    vm.tintype.json(&[&of[..], &["take", "web", "--name", "unlike"]].concat());
    vm.tintype.json(&[&of[..], &["rename", "web@unlike", "renamed"]].concat());
    let typed = |rest: &str| format!("tintype --repo {repository} {rest}");
    check(
        &vm,
        &[
            (&typed("show web@be"), &typed("show web@before-upgrade")),
            (&typed("show web@r"), &typed("show web@renamed")),
            (&typed("show web@u"), &typed("show web@u")),
            // Of the default one, which is not there, and is not made.
            ("tintype show web@be", "tintype show web@be"),
        ],
    );
    assert!(!Path::new(&vm.path("home/repository")).exists());
}

#[test]
fn of_pages_for_man() {
    let vm = SwitchedOff::start();
    let folder = vm.path("man");
    let written = vm.tintype.json(&["man", "--to", &folder]);
    let pages: Vec<_> = written["pages"].as_array().unwrap().iter().collect();
    for name in ["tintype.1", "tintype-take.1", "tintype-vm-run.1", "tintype-key-add.1"] {
        assert!(pages.iter().any(|page| *page == name), "{name} is not in {pages:?}");
    }
    for page in pages {
        let page = Path::new(&folder).join(page.as_str().unwrap());
        // As `man --warnings` and `mandoc -T lint` do it.
        let groff = ["-man", "-Kutf8", "-Tutf8", "-ww", "-z"];
        let checked = Command::new("groff").args(groff).arg(&page).output().unwrap();
        let warnings = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(warnings, "", "{}", page.display());
    }
    let printed = vm.tintype.run(&["man", "vm", "run"]).stdout;
    assert_eq!(printed, fs::read(Path::new(&folder).join("tintype-vm-run.1")).unwrap());
    let nothing = vm.fail(2, &["man", "vm", "walk"]);
    assert!(nothing.contains("there is no command `vm walk`"), "{nothing}");
}
