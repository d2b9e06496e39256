//! The rule that no image is opened without saying its format. QEMU would guess
//! it from bytes that a guest has written, and a raw disk that looks like qcow2
//! can name any file of the host as its backing file.
//!
//! The rule reads calls, not what happens: it sees tools that are named in a call
//! whose arguments are written there, and otherwise is content with a format
//! somewhere in the file.

use super::file::{File, Finding};
use super::source::{Source, first_outside, words};

/// QEMU's programs that open images.
const TOOLS: [&str; 4] = ["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"];

/// What says the format of an image.
const FORMATS: [&str; 6] = ["-f", "-F", "--format", "--image-opts", "--blockdev", "fmt"];

/// The verbs of `qemu-img` that read an image.
const VERBS: [&str; 15] = [
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info",
    "map", "measure", "rebase", "resize", "snapshot",
];

/// Those that take the first image's format as `-f` and the second one's as `-F`.
const WITH_SECOND: [&str; 1] = ["compare"];

/// Functions that take a program's name and open no image.
const NO_START: [&str; 6] = ["have", "is_installed", "program", "Program", "release_of", "which"];

const ADVICE: &str = "say every image's format: `-f`, for a second one `-F`, or `--image-opts`";

/// Every call of an image tool says the format of the images.
pub(super) fn formats(file: &File<'_>) -> Vec<Finding> {
    match &file.source {
        Some(source) => rust_calls(source),
        None if file.path.ends_with(".sh") || file.text.starts_with("#!") => {
            script_lines(file.text)
        }
        None => Vec::new(),
    }
}

fn rust_calls(source: &Source<'_>) -> Vec<Finding> {
    let said_somewhere = source.literals().iter().any(|literal| says_format(literal.text));
    let named = source
        .literals()
        .iter()
        .filter(|literal| TOOLS.contains(&literal.text))
        .map(|literal| literal.offset);
    let asked = source.words().filter(|(_, word)| *word == "image_tool").map(|(offset, _)| offset);
    let mut found = Vec::new();
    for start in named.chain(asked).filter(|&start| starts_program(source.code(), start)) {
        let end = first_outside_call(source.code(), start);
        let arguments: Vec<&str> = source
            .literals()
            .iter()
            .filter(|literal| (start + 1..end).contains(&literal.offset))
            .map(|literal| literal.text)
            .collect();
        let is_right = match arguments.iter().find(|argument| VERBS.contains(argument)) {
            Some(verb) => is_complete(verb, &arguments),
            None => said_somewhere || arguments.iter().any(|argument| says_format(argument)),
        };
        if !is_right {
            found.push(Finding::new(source.line(start), ADVICE));
        }
    }
    found
}

fn is_complete(verb: &str, arguments: &[&str]) -> bool {
    let has = |option: &str| arguments.contains(&option);
    let has_second = WITH_SECOND.contains(&verb) || has("-b");
    has("--image-opts") || (has("-f") && (has("-F") || !has_second))
}

fn says_format(argument: &str) -> bool {
    let option = argument.split('=').next().unwrap_or_default();
    FORMATS.contains(&option)
}

/// Says whether the call that the tool's name is in is one that starts it.
fn starts_program(code: &str, name: usize) -> bool {
    let before = code[..name].trim_end_matches(['"', '(', '&', ' ', '\n']);
    let callee = words(before).last().map_or("", |(_, word)| word);
    let is_argument = code[before.len()..name].contains('(');
    // A method that starts one, and not its definition.
    let is_method = before.ends_with('.');
    is_method || (is_argument && !NO_START.contains(&callee))
}

/// Returns where the statement ends whose call has a tool's name at `start`.
fn first_outside_call(code: &str, start: usize) -> usize {
    let mut end = start;
    // Out of the brackets around the name, then to the end of what follows.
    while let Some(next) = first_outside(code, end, b";") {
        let byte = code.as_bytes()[next];
        end = next;
        if byte == b';' || byte == b'}' {
            break;
        }
        end += 1;
    }
    end
}

/// Checks the commands of a shell script.
fn script_lines(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut command = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(start) = line.strip_suffix('\\') {
            command.push_str(start);
            continue;
        }
        command.push_str(line);
        let parts: Vec<&str> = command.split_whitespace().collect();
        let tool = parts.iter().position(|part| TOOLS.contains(part));
        if let Some(tool) = tool.filter(|_| !command.starts_with('#')) {
            let arguments = &parts[tool + 1..];
            let is_right = match arguments.first() {
                Some(verb) if VERBS.contains(verb) => is_complete(verb, arguments),
                // `command -v qemu-img` and the like.
                None => true,
                Some(_) => arguments.iter().any(|argument| says_format(argument)),
            };
            if !is_right {
                found.push(Finding::new(index + 1, ADVICE));
            }
        }
        command.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::file::check;
    use super::*;

    #[test]
    fn calls_say_the_format() {
        let check = |text, lines: &[usize]| check(formats, "a.rs", text, lines);
        check(r#"run("qemu-img", &["create", "-q", "-f", format, path]);"#, &[]);
        check("a;\nrun(\"qemu-img\", &[\"create\", path]); b(\"-f\");", &[2]);
        check(r#"run("qemu-img", &["create", "-f", "qcow2", "-b", base, path]);"#, &[1]);
        check(r#"run("qemu-img", &["create", "-f", "qcow2", "-b", b, "-F", "raw", p]);"#, &[]);
        check(r#"run("qemu-img", &["compare", "-f", "raw", a, b]);"#, &[1]);
        check(r#"run("qemu-img", &["compare", "-f", "raw", "-F", "raw", a, b]);"#, &[]);
        check(r#"run("qemu-img", &["info", "--image-opts", a]);"#, &[]);
        check(r#"Command::new("qemu-io").args(["-r", "-c", "read 0 1", a]).output()"#, &[1]);
        check(r#"Command::new("qemu-io").args(["-f", "raw", a]).output()"#, &[]);
        check(r#"qemu.image_tool().args(["convert", "-O", "raw"]).arg(a).run()?;"#, &[1]);
        check(r#"fn image_tool(&self) -> Tool { named(self.program("qemu-img")) }"#, &[]);
        check(r#"let arguments = ["-f", "raw"]; run("qemu-io", &arguments);"#, &[]);
        check(r#"let arguments = ["-r"]; run("qemu-io", &arguments);"#, &[1]);
        check(r#"if !have("qemu-nbd") || !have("qemu-img") { return; }"#, &[]);
        check(r#"("qemu-utils", Probe::Program("qemu-img")), x"#, &[]);
    }

    #[test]
    fn scripts_say_the_format() {
        let check = |text, lines: &[usize]| check(formats, "a.sh", text, lines);
        check("qemu-img create a 1G", &[1]);
        check("# qemu-img create a 1G", &[]);
        check("sudo qemu-img create -f raw \\\n  a 1G\nqemu-img info a", &[3]);
        check("command -v qemu-img", &[]);
        check("qemu-nbd --format=raw a", &[]);
        check("qemu-io a", &[1]);
    }
}
