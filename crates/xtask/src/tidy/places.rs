//! Rules about what only some rooms may do: print, read the environment, and
//! stop or resume a guest.

use super::file::{File, Finding};
use super::source::{Source, words};

/// The one file that knows how a guest is paused and resumed, so that every way
/// out of it resumes.
const PAUSE: &str = "crates/vm/src/pause.rs";

/// The monitor's commands that only the pause may send.
const PAUSING: [&str; 3] = ["stop", "cont", "migrate_cancel"];

/// Libraries are silent.
pub(super) fn printing(file: &File<'_>) -> Vec<Finding> {
    const MACROS: [&str; 4] = ["print", "println", "eprint", "eprintln"];
    let may_print = ["cli", "xtask", "witness"].map(Some).contains(&file.room());
    let Some(source) = file.running_code().filter(|_| !may_print) else { return Vec::new() };
    let prints = |offset: usize, word: &str| {
        let behind = &source.code()[offset + word.len()..];
        (MACROS.contains(&word) && behind.starts_with('!'))
            || (["stdout", "stderr"].contains(&word)
                && source.code()[..offset].ends_with("io::")
                && behind.starts_with("()"))
    };
    find(source, prints, "return it or log it with `tracing`: only the command prints")
}

/// Only the command line reads the environment, and hands on what it says.
pub(super) fn environment(file: &File<'_>) -> Vec<Finding> {
    /// What in `std::env` has nothing to do with it.
    const ELSE: [&str; 5] = ["consts", "current_exe", "join_paths", "split_paths", "VarError"];
    let Some(source) =
        file.running_code().filter(|_| file.is_shipped() && file.room() != Some("cli"))
    else {
        return Vec::new();
    };
    let reads = |offset: usize, word: &str| {
        let behind = &source.code()[offset + word.len()..];
        let from_env = word == "env" && behind.starts_with("::") && {
            // A brace here is a list of imports: see what it names.
            let list = behind[2..].split([';', '(']).next().unwrap_or_default();
            let list = if list.starts_with('{') { list } else { first_word(list) };
            words(list).any(|(_, name)| !ELSE.contains(&name))
        };
        from_env || (word == "option_env" && behind.starts_with('!'))
    };
    find(source, reads, "take it as a parameter: only the command reads the environment")
}

/// One file stops and resumes guests.
pub(super) fn pausing(file: &File<'_>) -> Vec<Finding> {
    let Some(source) = file.running_code().filter(|_| file.is_shipped() && file.path != PAUSE)
    else {
        return Vec::new();
    };
    // A command is what a call or a pair begins with; elsewhere the word is a word.
    let begins = |offset: usize| {
        let before = file.text[..offset].trim_end_matches(['"', '#', 'r']);
        before.trim_end().ends_with('(')
    };
    let names_command = |offset: usize, text: &str| {
        let text = text.replace('\\', "");
        PAUSING.iter().any(|command| {
            (text == *command && begins(offset)) || text.contains(&format!("\"{command}\""))
        })
    };
    source
        .literals()
        .iter()
        .filter(|literal| !source.is_test(literal.offset))
        .filter(|literal| names_command(literal.offset, literal.text))
        .map(|literal| {
            let advice = format!("leave \"{}\" to {PAUSE}, which always resumes", literal.text);
            Finding::new(source.line(literal.offset), advice)
        })
        .collect()
}

fn find(source: &Source<'_>, is_wrong: impl Fn(usize, &str) -> bool, advice: &str) -> Vec<Finding> {
    source
        .words()
        .filter(|(offset, word)| !source.is_test(*offset) && is_wrong(*offset, word))
        .map(|(offset, _)| Finding::new(source.line(offset), advice))
        .collect()
}

fn first_word(code: &str) -> &str {
    words(code).next().map_or("", |(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::super::file::check;
    use super::*;

    #[test]
    fn libraries_are_silent() {
        let check = |path, text, lines: &[usize]| check(printing, path, text, lines);
        check("crates/vm/src/a.rs", "\nprintln!(\"a\");", &[2]);
        check("crates/vm/src/a.rs", "eprint!(\"a\"); io::stderr().write();", &[1, 1]);
        check("crates/testkit/src/a.rs", "eprintln!(\"a\");", &[1]);
        check("crates/vm/src/a.rs", "command.stdout(x); // println!", &[]);
        check("crates/vm/src/a.rs", "#[cfg(test)]\nmod tests { println!() }", &[]);
        check("crates/vm/tests/it/main.rs", "println!(\"a\");", &[]);
        check("crates/vm/benches/speed.rs", "println!(\"a\");", &[]);
        check("crates/cli/src/a.rs", "println!(\"a\");", &[]);
    }

    #[test]
    fn libraries_do_not_read_the_environment() {
        let check = |path, text, lines: &[usize]| check(environment, path, text, lines);
        check("crates/vm/src/a.rs", "std::env::var(\"HOME\")", &[1]);
        check("crates/vm/src/a.rs", "env::var_os(\"HOME\"); env::temp_dir();", &[1, 1]);
        check("crates/vm/src/a.rs", "use std::env::{current_exe, vars};", &[1]);
        check("crates/vm/src/a.rs", "use std::env::{current_exe};", &[]);
        check("crates/vm/src/a.rs", "option_env!(\"A\")", &[1]);
        check("crates/vm/src/a.rs", "env!(\"CARGO_PKG_VERSION\"); command.env(\"A\", b);", &[]);
        check("crates/vm/src/a.rs", "std::env::current_exe()?.join(var)", &[]);
        check("crates/cli/src/a.rs", "std::env::var(\"HOME\")", &[]);
        check("crates/testkit/src/a.rs", "std::env::var(\"HOME\")", &[]);
    }

    #[test]
    fn one_file_stops_guests() {
        let check = |path, text, lines: &[usize]| check(pausing, path, text, lines);
        check("crates/vm/src/a.rs", "\nexecute(\"stop\", b)", &[2]);
        check("crates/engine/src/a.rs", "r#\"{\"execute\": \"cont\"}\"#", &[1]);
        check("crates/engine/src/a.rs", "\"{\\\"execute\\\": \\\"cont\\\"}\"", &[1]);
        check("crates/vm/src/a.rs", "f(\"migrate_cancel\"); \"stopped\"; // \"stop\"", &[1]);
        check("crates/vm/src/a.rs", "Self::Stop => \"stop\",\n[(\"cont\", a)]", &[2]);
        check("crates/vm/src/pause.rs", "\"stop\"", &[]);
        check("crates/vm/src/a.rs", "#[cfg(test)]\nmod tests { \"stop\" }", &[]);
        check("crates/testkit/src/a.rs", "\"stop\"", &[]);
    }
}
