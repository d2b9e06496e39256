//! `docs/cli.md` knows every command and every option that `--help` knows.

use std::path::Path;
use std::process::Command;

fn help(command: &[&str]) -> String {
    let mut tintype = Command::new(env!("CARGO_BIN_EXE_tintype"));
    let output = tintype.args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the names in the list of commands of a help text.
fn commands(help: &str) -> Vec<&str> {
    let list = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
    let rows = list.lines().take_while(|line| line.starts_with("  "));
    rows.filter_map(|row| row.split_whitespace().next()).filter(|name| *name != "help").collect()
}

/// Returns the long options of a help text.
fn options(help: &str) -> Vec<String> {
    let words = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
    let names = words.filter_map(|line| line.split([' ', ',', '.']).find(|w| w.starts_with("--")));
    names.map(str::to_owned).filter(|name| !["--help", "--version"].contains(&&**name)).collect()
}

#[test]
fn every_command_and_option_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let text = std::fs::read_to_string(path).unwrap();
    let check = |command: &[&str], help: &str| {
        let name = command.join(" ");
        let is_there = ["`", " "].iter().any(|end| text.contains(&format!("`{name}{end}")));
        assert!(is_there, "docs/cli.md has no `{name}`");
        for option in options(help) {
            assert!(text.contains(&option), "docs/cli.md has no {option} of `{name}`");
        }
    };
    let top = help(&[]);
    let found = commands(&top);
    assert!(found.contains(&"take"), "{found:?}");
    for command in found {
        let own = help(&[command]);
        check(&[command], &own);
        for below in commands(&own) {
            check(&[command, below], &help(&[command, below]));
        }
    }
}
