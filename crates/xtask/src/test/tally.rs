//! Counts tests by what the test runners say. A test that cannot run on this
//! machine passes for the runners and says `skipped: …` (or `not run: …`) in its
//! output; it counts as skipped here.

use std::fmt;

/// How tests ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    /// Which tests did not run, and what they said about it.
    pub(super) skipped: Vec<String>,
    /// Tests that the runner was told not to run; it does not say why.
    ignored: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped, ignored } = self;
        write!(formatter, "{passed} passed, {failed} failed, {} skipped", skipped.len() + ignored)
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.ignored += other.ignored;
    }

    /// Reads nextest's report, in which each test is a `testcase`.
    pub(super) fn of_junit(report: &str) -> Self {
        let mut tally = Self::default();
        for case in report.split("<testcase").skip(1) {
            // What tests print has its `<` and `"` escaped.
            let attribute = |key: &str| case.split(key).nth(1)?.split('"').next();
            if ["<failure", "<error"].iter().any(|tag| case.contains(tag)) {
                tally.failed += 1;
            } else if let Some(reason) = case.split(['\n', '>']).find_map(reason_to_skip) {
                let name = attribute(" name=\"").unwrap_or_default();
                let reason = reason.split('<').next().unwrap_or_default();
                let room = attribute(" classname=\"").unwrap_or_default();
                tally.skipped.push(format!("{room} {name}: {reason}"));
            } else {
                tally.passed += 1;
            }
        }
        tally
    }
}

/// Returns what a test says in this line about why it does not run.
fn reason_to_skip(line: &str) -> Option<&str> {
    line.strip_prefix("skipped: ").or_else(|| line.strip_prefix("not run: "))
}

/// Counts the tests of `cargo test -- --show-output` line by line.
#[derive(Default)]
pub(super) struct Listener {
    tally: Tally,
    /// The test that has passed and whose output is being shown.
    showing: Option<String>,
    among_passed: bool,
}

impl Listener {
    pub(super) fn hear(&mut self, line: &str) {
        let header = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = header {
            self.showing = self.among_passed.then(|| name.to_owned());
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.count(counts);
        } else if let ("successes:" | "failures:", section) = (line, line == "successes:") {
            self.among_passed = section;
        } else if let (Some(reason), Some(name)) = (reason_to_skip(line), &self.showing) {
            self.tally.skipped.push(format!("{name}: {reason}"));
            self.showing = None;
        }
    }

    /// Reads `ok. 5 passed; 0 failed; 1 ignored; …`.
    fn count(&mut self, counts: &str) {
        let number = |name: &str| {
            let part = counts.split("; ").find_map(|part| part.strip_suffix(name))?;
            part.split(' ').next_back()?.parse::<usize>().ok()
        };
        // A test that starts its own program again lets that one's result be heard too.
        if number(" filtered out").is_none_or(|count| count > 0) {
            return;
        }
        self.tally.passed += number(" passed").unwrap_or(0);
        self.tally.failed += number(" failed").unwrap_or(0);
        self.tally.ignored += number(" ignored").unwrap_or(0);
        (self.showing, self.among_passed) = (None, false);
    }

    /// Returns the sum, in which a skipped test does not count as passed.
    pub(super) fn finish(mut self) -> Tally {
        self.tally.passed = self.tally.passed.saturating_sub(self.tally.skipped.len());
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_is_understood() {
        let case = |name: &str, inner: &str| {
            format!(
                "<testcase name=\"{name}\" classname=\"vm::it\" time=\"0.1\">{inner}</testcase>"
            )
        };
        let report = [
            "<?xml?><testsuites tests=\"5\" failures=\"1\">".to_owned(),
            case("a", "<system-out>\ntest a ... ok\n</system-out><system-err></system-err>"),
            case("b", "<system-err>skipped: no guest\n</system-err>"),
            case("c", "<system-err>more\nnot run: no disk\nskipped: no guest</system-err>"),
            case("d", "<failure type=\"test failure\"/><system-err>skipped: x</system-err>"),
            case("e", "<system-err>was skipped: &lt;failure</system-err>"),
        ];
        let tally = Tally::of_junit(&report.concat());
        assert_eq!(tally.skipped, ["vm::it b: no guest", "vm::it c: no disk"]);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn libtest_is_understood() {
        let text = "\
running 3 tests
test a ... ok
test b ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.1s
test c ... FAILED

successes:

---- a stdout ----
skipped: no guest
skipped: no disk


successes:
    a
    b

failures:

---- c stdout ----
skipped: never mind

failures:
    c

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
skipped: nothing
";
        let mut listener = Listener::default();
        text.lines().for_each(|line| listener.hear(line));
        let tally = listener.finish();
        assert_eq!(tally.skipped, ["a: no guest"]);
        assert_eq!(tally.to_string(), "5 passed, 1 failed, 2 skipped");
    }
}
