//! The chore `tidy`: the house rules that a program can judge, over every file
//! that git tracks. A rule is a plain function from a file to what it finds; only
//! this file runs programs, reads files and prints.
//!
//! Left to the compiler and clippy: unsafe code, missing docs, casts, `unwrap`.

mod file;
mod images;
mod places;
mod rooms;
mod sizes;
mod source;
mod wording;

use std::fs;
use std::path::Path;
use std::process::Command;

use file::{File, Finding};
use rooms::Room;

use crate::failure::Failure;
use crate::process;

/// One line for the list of chores.
pub(crate) const ABOUT: &str = "checks the house rules over every file that git tracks";

/// A rule that looks at one file at a time.
type FileRule = fn(&File<'_>) -> Vec<Finding>;

/// The rules that look at one file at a time, with their names.
const FILE_RULES: &[(&str, FileRule)] = &[
    ("opening", wording::opening),
    ("leftovers", wording::leftovers),
    ("attributes", wording::attributes),
    ("machine", wording::machine),
    ("names", wording::names),
    ("printing", places::printing),
    ("environment", places::environment),
    ("pausing", places::pausing),
    ("formats", images::formats),
];

/// What has a lock file of its own.
const MANIFESTS: &[&str] = &["Cargo.toml", "fuzz/Cargo.toml"];

/// A breach of a rule, as it is printed.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    line: usize,
    rule: &'static str,
    advice: String,
}

impl Violation {
    fn new(rule: &'static str, path: impl Into<String>, finding: Finding) -> Self {
        let Finding { line, advice } = finding;
        Self { path: path.into(), line, rule, advice }
    }

    fn print(&self) {
        println!("{}:{}: {}: {}", self.path, self.line, self.rule, self.advice);
    }
}

/// The chore itself.
pub(crate) fn chore(_arguments: &[String]) -> Result<(), Failure> {
    check()
}

/// Prints every breach of a rule, one a line, and fails if there is one.
pub(crate) fn check() -> Result<(), Failure> {
    let root = tintype_testkit::workspace_folder();
    let texts = tracked_texts(&root)?;
    let files: Vec<File<'_>> = texts.iter().map(|(path, text)| File::new(path, text)).collect();
    let mut violations = judge_files(&files);
    violations.extend(judge_sizes(&files));
    violations.extend(judge_rooms(&files, &metadata()?)?);
    violations.extend(judge_locks());
    violations.sort();
    violations.iter().for_each(Violation::print);
    match violations.len() {
        0 => Ok(()),
        count => Err(Failure::Other(format!("the house rules are broken in {count} places"))),
    }
}

fn judge_files(files: &[File<'_>]) -> Vec<Violation> {
    let pairs = files.iter().flat_map(|file| FILE_RULES.iter().map(move |rule| (file, rule)));
    let found = pairs.flat_map(|(file, (name, rule))| {
        rule(file).into_iter().map(|finding| Violation::new(name, file.path, finding))
    });
    found.collect()
}

/// Prints warnings at once: nothing is broken yet.
fn judge_sizes(files: &[File<'_>]) -> Vec<Violation> {
    let report = sizes::sizes(files, text_of(files, sizes::EXEMPTIONS));
    for (path, Finding { advice, .. }) in report.warnings {
        eprintln!("warning: {path}: {advice}");
    }
    let found = report.findings.into_iter();
    found.map(|(path, finding)| Violation::new("sizes", path, finding)).collect()
}

fn judge_rooms(files: &[File<'_>], metadata: &str) -> Result<Vec<Violation>, Failure> {
    let rooms = Room::all_in(metadata)
        .ok_or_else(|| Failure::Other("cargo's metadata has an unknown shape".to_owned()))?;
    let directions = rooms::directions(&rooms).into_iter();
    let mut found: Vec<Violation> =
        directions.map(|(path, finding)| Violation::new("directions", path, finding)).collect();
    for finding in rooms::introductions(&rooms, text_of(files, rooms::README)) {
        found.push(Violation::new("introductions", rooms::README, finding));
    }
    Ok(found)
}

/// A lock file that is behind is otherwise found by the last step of the tests.
fn judge_locks() -> Vec<Violation> {
    let behind = MANIFESTS.iter().filter_map(|manifest| {
        let mut cargo = process::cargo();
        cargo.args(["metadata", "--locked", "--format-version", "1", "--manifest-path", manifest]);
        let advice = process::capture(&mut cargo).err()?.to_string();
        Some(Violation::new("locks", *manifest, Finding { line: 1, advice }))
    });
    behind.collect()
}

fn text_of<'a>(files: &[File<'a>], path: &str) -> &'a str {
    files.iter().find(|file| file.path == path).map_or("", |file| file.text)
}

/// Reads every tracked file that is text and still there, with its path.
fn tracked_texts(root: &Path) -> Result<Vec<(String, String)>, Failure> {
    let mut git = Command::new("git");
    // The checkout may belong to another user, as in a container.
    git.arg("-c").arg(format!("safe.directory={}", root.display()));
    git.arg("-C").arg(root).args(["ls-files", "-z"]);
    let mut texts = Vec::new();
    for path in process::capture(&mut git)?.split_terminator('\0') {
        let file = root.join(path);
        if !file.is_file() {
            continue;
        }
        let bytes = fs::read(&file).map_err(Failure::file("read", &file))?;
        if let Ok(text) = String::from_utf8(bytes) {
            texts.push((path.to_owned(), text));
        }
    }
    Ok(texts)
}

fn metadata() -> Result<String, Failure> {
    process::capture(process::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))
}
