//! Rules about sizes: files and functions that a reader can hold in mind. What
//! is larger is listed with its size in a file of exemptions, which may only shrink.

use super::file::{File, Finding};

/// Where the exemptions are.
pub(super) const EXEMPTIONS: &str = "crates/xtask/tidy-exemptions.txt";

const FILE_LIMIT: usize = 800;
const FILE_WARNING: usize = 600;
const FUNCTION_LIMIT: usize = 70;

/// Something larger than it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Oversize<'a> {
    path: &'a str,
    /// None for the file as a whole.
    function: Option<&'a str>,
    /// In lines.
    size: usize,
    line: usize,
}

/// What there is to say about sizes, each with its file's path.
pub(super) struct SizeReport<'a> {
    pub(super) findings: Vec<(&'a str, Finding)>,
    pub(super) warnings: Vec<(&'a str, Finding)>,
}

/// Compares the sizes of all files with the limits and the exemptions.
pub(super) fn sizes<'a>(files: &'a [File<'_>], exemptions: &'a str) -> SizeReport<'a> {
    let mut report = SizeReport { findings: Vec::new(), warnings: Vec::new() };
    let mut oversizes: Vec<Oversize<'_>> = Vec::new();
    for file in files {
        oversizes.extend(oversized_functions(file));
        let lines = file.running_code().map_or(0, |source| source.lines());
        if lines > FILE_LIMIT {
            let (path, size) = (file.path, lines);
            oversizes.push(Oversize { path, function: None, size, line: 1 });
        } else if lines > FILE_WARNING {
            let advice = format!("{lines} lines: split it by idea before there are {FILE_LIMIT}");
            report.warnings.push((file.path, Finding::new(1, advice)));
        }
    }
    for (index, line) in exemptions.lines().enumerate() {
        if let Some(advice) = judge(line, &mut oversizes) {
            report.findings.push((EXEMPTIONS, Finding::new(index + 1, advice)));
        }
    }
    report.findings.extend(oversizes.iter().map(|over| (over.path, over.finding())));
    report
}

fn oversized_functions<'a>(file: &'a File<'_>) -> Vec<Oversize<'a>> {
    let Some(source) = &file.source else { return Vec::new() };
    let mut found: Vec<Oversize<'_>> = Vec::new();
    for function in source.functions() {
        let (first, last) = (source.line(function.range.start), source.line(function.range.end));
        let size = last - first + 1;
        if size > FUNCTION_LIMIT {
            let (path, function) = (file.path, Some(function.name));
            found.push(Oversize { path, function, size, line: first });
        }
    }
    found
}

/// Says what is wrong with a line of exemptions, and takes what it exempts from the list.
fn judge(line: &str, oversizes: &mut Vec<Oversize<'_>>) -> Option<String> {
    let parts: Vec<&str> = line.split_whitespace().collect();
    let (path, function, size) = match parts[..] {
        [] => return None,
        [comment, ..] if comment.starts_with('#') => return None,
        [path, size] => (path, None, size),
        [path, function, size] => (path, Some(function), size),
        _ => return Some("write `path [function] size`".to_owned()),
    };
    let Ok(size) = size.parse::<usize>() else {
        return Some(format!("write the size in lines, not `{size}`"));
    };
    let matching = |over: &Oversize<'_>| (over.path, over.function) == (path, function);
    let largest = oversizes.iter().filter(|over| matching(over)).map(|over| over.size).max();
    oversizes.retain(|over| !matching(over));
    match largest {
        None => Some("delete the line: the exemption is not needed any more".to_owned()),
        Some(now) if now < size => Some(format!("write {now}: it has shrunk")),
        Some(now) if now > size => Some(format!("bring it back to {size} lines: it has {now}")),
        Some(_) => None,
    }
}

impl Oversize<'_> {
    fn finding(&self) -> Finding {
        let size = self.size;
        let advice = match self.function {
            Some(name) => format!("`{name}` has {size} lines: bring it below {FUNCTION_LIMIT}"),
            None => format!("{size} lines: split the file by idea, to below {FILE_LIMIT}"),
        };
        Finding::new(self.line, advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, size: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "a;\n".repeat(size - 2))
    }

    #[test]
    fn sizes_are_kept_small() {
        let check = |path: &str, text: &str, exemptions: &str, expected: &[&str]| {
            let files = [File::new(path, text)];
            let report = sizes(&files, exemptions);
            let found: Vec<String> = report
                .findings
                .iter()
                .map(|(path, Finding { line, advice })| format!("{path}:{line}: {advice}"))
                .collect();
            assert_eq!(found, expected, "{path}: {exemptions}");
        };
        let (small, large) = (function("a", 70), format!("\n{}", function("a", 71)));
        check("a.rs", &small, "", &[]);
        check("a.rs", &large, "", &["a.rs:2: `a` has 71 lines: bring it below 70"]);
        check("a.rs", &large, "# why\na.rs a 71", &[]);
        let list = |advice: &str| format!("{EXEMPTIONS}:1: {advice}");
        let needless = list("delete the line: the exemption is not needed any more");
        check("a.rs", &small, "a.rs a 71", &[&needless]);
        check("a.rs", &large, "a.rs a 72", &[&list("write 71: it has shrunk")]);
        let grown = function("a", 73);
        check("a.rs", &grown, "a.rs a 72", &[&list("bring it back to 72 lines: it has 73")]);
        check("a.rs", "", "a.rs a b c", &[&list("write `path [function] size`")]);

        let long = "a;\n".repeat(801);
        check("a.rs", &long, "", &["a.rs:1: 801 lines: split the file by idea, to below 800"]);
        check("a.rs", &long, "a.rs 801", &[]);
        check("a.rs", &long, "a.rs 900", &[&list("write 801: it has shrunk")]);
        check("tests/a.rs", &long, "", &[]);
        check("a/tests.rs", &long, "", &[]);
        check("a.md", &long, "", &[]);
        let with_tests = format!("{}#[cfg(test)]\nmod tests {{\n{long}}}", "a;\n".repeat(800));
        check("a.rs", &with_tests, "", &[]);
    }

    #[test]
    fn large_files_are_warned_of() {
        let check = |lines: usize, expected| {
            let text = "a;\n".repeat(lines);
            let files = [File::new("a.rs", &text)];
            assert_eq!(sizes(&files, "").warnings.len(), expected, "{lines}");
        };
        check(600, 0);
        check(601, 1);
        check(801, 0);
    }
}
