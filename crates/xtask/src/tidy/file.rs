//! A tracked file with what the rules ask of every file, and what they find.

use super::source::Source;

/// The rooms whose code ends up in the program that users run.
const SHIPPED: [&str; 8] = ["cli", "engine", "image", "nbd", "repo", "stream", "types", "vm"];

/// A text file of the repository.
pub(super) struct File<'a> {
    /// Relative to the root, with `/`.
    pub(super) path: &'a str,
    pub(super) text: &'a str,
    /// What it is made of, if it is Rust.
    pub(super) source: Option<Source<'a>>,
}

/// A breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// From 1.
    pub(super) line: usize,
    /// What to do about it.
    pub(super) advice: String,
}

impl Finding {
    pub(super) fn new(line: usize, advice: impl Into<String>) -> Self {
        Self { line, advice: advice.into() }
    }
}

impl<'a> File<'a> {
    pub(super) fn new(path: &'a str, text: &'a str) -> Self {
        let source = path.ends_with(".rs").then(|| Source::new(text));
        Self { path, text, source }
    }

    /// Returns the name of the folder in `crates` that the file is in.
    pub(super) fn room(&self) -> Option<&'a str> {
        Some(self.path.strip_prefix("crates/")?.split_once('/')?.0)
    }

    /// Says whether users run the code of this file's room.
    pub(super) fn is_shipped(&self) -> bool {
        self.room().is_some_and(|room| SHIPPED.contains(&room))
    }

    /// Says whether all of the file is there for tests and benchmarks only.
    pub(super) fn is_test(&self) -> bool {
        let mut parts = self.path.split('/');
        parts.any(|part| {
            let name = part.strip_suffix(".rs").unwrap_or(part);
            ["benches", "tests"].contains(&name) || name.ends_with("_tests")
        })
    }

    /// Returns the Rust code outside of tests.
    pub(super) fn running_code(&self) -> Option<&Source<'a>> {
        self.source.as_ref().filter(|_| !self.is_test())
    }
}

/// Checks one rule on one file: `expected` are the lines with findings.
#[cfg(test)]
pub(super) fn check(
    rule: fn(&File<'_>) -> Vec<Finding>,
    path: &str,
    text: &str,
    expected: &[usize],
) {
    let found = rule(&File::new(path, text));
    let lines: Vec<usize> = found.iter().map(|finding| finding.line).collect();
    assert_eq!(lines, expected, "{path}: {text}\n{found:?}");
}

#[cfg(test)]
mod tests {
    use super::File;

    #[test]
    fn tests_are_known_by_their_file_or_folder() {
        for (path, is_test) in [
            ("crates/engine/src/life_tests.rs", true),
            ("crates/engine/src/life_tests/mod.rs", true),
            ("crates/engine/src/tests.rs", true),
            ("crates/cli/tests/it/main.rs", true),
            ("crates/engine/src/latest.rs", false),
        ] {
            assert_eq!(File::new(path, "").is_test(), is_test, "{path}");
        }
    }
}
