//! Rules about single words: nothing unfinished, no lint silenced in passing,
//! nothing of the machine that a file was written on, and modules with a name.

use super::file::{File, Finding};
use super::source::{closing, line_of, words};

/// The only files that have to write the words down that no other may have.
const THIS: &str = "crates/xtask/src/tidy/wording.rs";

/// Every Rust file says first what it is.
pub(super) fn opening(file: &File<'_>) -> Vec<Finding> {
    let is_missing = file.source.is_some() && !file.text.starts_with("//!");
    let advice = "open the file with `//!`: what it is, what it deliberately does not do";
    is_missing.then(|| Finding::new(1, advice)).into_iter().collect()
}

/// Nothing is unfinished, and no test is set aside.
pub(super) fn leftovers(file: &File<'_>) -> Vec<Finding> {
    if file.path == THIS {
        return Vec::new();
    }
    let mut found: Vec<Finding> = words(file.text)
        .filter(|(_, word)| ["TODO", "FIXME", "XXX"].contains(word))
        .map(|(offset, word)| (line_of(file.text, offset), word))
        .map(|(line, word)| Finding::new(line, format!("do what `{word}` asks for, or drop it")))
        .collect();
    let Some(source) = &file.source else { return found };
    for (offset, word) in source.words() {
        let behind = &source.code()[offset + word.len()..];
        let is_macro = ["todo", "unimplemented", "dbg"].contains(&word) && behind.starts_with('!');
        let is_set_aside = word == "ignore" && in_attribute(source.code(), offset);
        if is_macro {
            found.push(Finding::new(source.line(offset), format!("replace `{word}!`")));
        } else if is_set_aside {
            let advice = "run the test, and have it say `skipped: …` on stderr where it cannot run";
            found.push(Finding::new(source.line(offset), advice));
        }
    }
    for (index, line) in file.text.lines().enumerate() {
        let comment = line.trim_start();
        if comment.starts_with("//") && comment.contains("```ignore") {
            found.push(Finding::new(index + 1, "have the example compile: `no_run`, or `text`"));
        }
    }
    found
}

/// Lints are silenced where they speak, and with a reason.
pub(super) fn attributes(file: &File<'_>) -> Vec<Finding> {
    let Some(source) = &file.source else { return Vec::new() };
    let code = source.code();
    let mut found = Vec::new();
    for (offset, word) in source.words() {
        let open = offset + word.len();
        if !code[open..].starts_with('(') || !in_attribute(code, offset) {
            continue;
        }
        if word == "allow" {
            let advice = "write `#[expect(…, reason = \"…\")]`, which ends with its cause";
            found.push(Finding::new(source.line(offset), advice));
        }
        let inner = &code[open..closing(code, open)];
        if word == "expect" && !words(inner).any(|(_, word)| word == "reason") {
            let advice = "say why the lint is wrong here: `reason = \"…\"`";
            found.push(Finding::new(source.line(offset), advice));
        }
    }
    found
}

/// Says whether the word starts an attribute, or follows a comma in one line of it.
fn in_attribute(code: &str, offset: usize) -> bool {
    let before = code[..offset].trim_end();
    let line = &before[before.rfind('\n').map_or(0, |end| end + 1)..];
    before.ends_with("#[")
        || before.ends_with("#![")
        || (before.ends_with(',') && line.trim_start().starts_with("#[cfg_attr("))
}

/// Files know nothing of the machine that they were written on.
pub(super) fn machine(file: &File<'_>) -> Vec<Finding> {
    const FOLDERS: [&str; 3] = ["/work/", "/home/", "/root/"];
    const HOSTS: [&str; 6] = [
        "index.crates.io",
        "static.crates.io",
        "deb.debian.org",
        "security.debian.org",
        "snapshot.debian.org",
        "proxy.golang.org",
    ];
    const ORIGIN: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    // Its paths are those inside a guest.
    let builds_guests = file.path.starts_with("crates/xtask/src/guests/");
    let mut found = Vec::new();
    if file.path == THIS {
        return found;
    }
    for (index, line) in file.text.lines().enumerate() {
        let mut report = |advice: String| found.push(Finding::new(index + 1, advice));
        for folder in FOLDERS.iter().filter(|folder| !builds_guests || **folder != "/root/") {
            if line.match_indices(folder).any(|(at, _)| starts_path(line, at)) {
                report(format!("name no `{folder}` of some machine: take the path from outside"));
            }
        }
        if line.contains("../shared") {
            report("ask the test kit for what lies beside the checkout".to_owned());
        }
        if HOSTS.iter().any(|host| line.contains(host)) {
            report("name no archive: the machine's own configuration knows them".to_owned());
        }
        let is_origin = file.path.ends_with("Cargo.lock") && line.starts_with("source = ");
        if is_origin && line != ORIGIN {
            report("take crates from crates.io only".to_owned());
        }
    }
    found
}

/// Says whether a path starts here, and not in the middle of another one.
fn starts_path(line: &str, at: usize) -> bool {
    let before = line[..at].chars().next_back();
    before.is_none_or(|character| !character.is_alphanumeric() && !"_-.})*".contains(character))
}

/// Modules are named for what they hold.
pub(super) fn names(file: &File<'_>) -> Vec<Finding> {
    const NAMELESS: [&str; 7] = ["common", "helper", "helpers", "manager", "misc", "util", "utils"];
    let Some(source) = &file.source else { return Vec::new() };
    let advice = |name: &str| format!("name the module for what it holds, not `{name}`");
    let parts = file.path.split('/').map(|part| part.strip_suffix(".rs").unwrap_or(part));
    let mut found: Vec<Finding> = parts
        .filter(|part| NAMELESS.contains(part))
        .map(|part| Finding::new(1, advice(part)))
        .collect();
    let mut previous = "";
    for (offset, word) in source.words() {
        // A module in a file of its own is found by its path.
        let has_block = source.code()[offset + word.len()..].trim_start().starts_with('{');
        if previous == "mod" && has_block && NAMELESS.contains(&word) {
            found.push(Finding::new(source.line(offset), advice(word)));
        }
        previous = word;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::file::check;
    use super::*;

    #[test]
    fn files_open_with_what_they_are() {
        let check = |path, text, lines: &[usize]| check(opening, path, text, lines);
        check("a.rs", "//! A.\n", &[]);
        check("a.rs", "use b;\n//! A.\n", &[1]);
        check("a.rs", "", &[1]);
        check("a.md", "# A\n", &[]);
    }

    #[test]
    fn nothing_is_left_over() {
        let check = |path, text, lines: &[usize]| check(leftovers, path, text, lines);
        check("a.md", "one\nTODO: two\n", &[2]);
        check("a.rs", "// FIXME\n\"XXX\"", &[1, 2]);
        check("a.rs", "\"/tmp/a.XXXXXX\"", &[]);
        check("a.rs", "fn a() {\n todo!()\n}", &[2]);
        check("a.rs", "unimplemented!(\"b\"); dbg!(1);", &[1, 1]);
        check("a.rs", "// unlike dbg!\nlet todo = 1; a != todo;", &[]);
        check("a.rs", "#[test]\n#[ignore]\nfn a() {}", &[2]);
        check("a.rs", "#[ignore = \"b\"]", &[1]);
        check("a.rs", "#[cfg_attr(debug_assertions, ignore)]", &[1]);
        check("a.rs", "a(b, ignore); let ignore = 1;", &[]);
        check("a.rs", "//! ```ignore\n//! a\n//! ```", &[1]);
        check(THIS, "TODO", &[]);
    }

    #[test]
    fn lints_are_silenced_with_a_reason() {
        let check = |text, lines: &[usize]| check(attributes, "a.rs", text, lines);
        check("#[allow(dead_code)]", &[1]);
        check("\n#![allow(dead_code, reason = \"b\")]", &[2]);
        check("#[cfg_attr(test, allow(dead_code))]", &[1]);
        check("#[expect(dead_code)]", &[1]);
        check("#[expect(\n dead_code,\n reason = \"b\"\n)]", &[]);
        check("a.expect(\"b\"); fn allow() { allow(1) }", &[]);
        check("// #[allow(dead_code)]", &[]);
    }

    #[test]
    fn no_machine_shows() {
        let check = |path, text, lines: &[usize]| check(machine, path, text, lines);
        check("a.rs", "\"/home/me/x\"", &[1]);
        check("a.md", "\nsee /work/x", &[2]);
        check("a.md", "target/work/x and src/home/y", &[]);
        check("a.sh", "cp a \"$root\"/root/x", &[1]);
        check("crates/xtask/src/guests/init.sh", "cp a /root/x", &[]);
        check("crates/xtask/src/guests/init.sh", "cp a /home/x", &[1]);
        check("a.rs", "join(\"../shared/x\")", &[1]);
        check("a.yml", "https://index.crates.io/", &[1]);
        check("Cargo.lock", "source = \"registry+https://example.org/\"", &[1]);
        let usual = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        check("Cargo.lock", usual, &[]);
    }

    #[test]
    fn modules_have_names() {
        let check = |path, text, lines: &[usize]| check(names, path, text, lines);
        check("crates/vm/src/utils.rs", "", &[1]);
        check("crates/vm/tests/common/mod.rs", "", &[1]);
        check("crates/vm/src/a.rs", "\nmod helpers {\n}", &[2]);
        check("crates/vm/src/a.rs", "mod pause; let common = 1;", &[]);
        check("shared/a.md", "", &[]);
    }
}
