//! Where the demo plays: a guest's files and a home for tintype in one temporary
//! folder, commands on the host and in the guest, and what they print. What is
//! shown is what was run.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use tintype_testkit::{Guest, GuestKind, Prepared, Serial};

use crate::failure::Failure;
use crate::process;

/// How long the guest may take to boot, emulated on a busy machine.
const BOOT: Duration = Duration::from_secs(180);

/// How long a command in the guest may take.
const ANSWER: Duration = Duration::from_secs(60);

/// How often a wait looks whether somebody has pressed Ctrl-C.
const GLANCE: Duration = Duration::from_millis(500);

/// The width of what is shown.
const COLUMNS: usize = 96;

/// The guest, its files and tintype's home. They go when it is dropped.
pub(super) struct Stage {
    program: PathBuf,
    home: PathBuf,
    serial: Serial,
    prepared: Option<Prepared>,
    interrupted: Arc<AtomicBool>,
}

impl Stage {
    /// Makes the files of a Debian guest; starts nothing.
    pub(super) fn set(program: &str, accelerator: &str) -> Result<Self, Failure> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(|error| Failure::Other(format!("cannot listen to signals: {error}")))?;
        }
        let prepared = Guest::of(GuestKind::Debian).accelerator(accelerator).prepare()?;
        Ok(Self {
            program: program.into(),
            home: prepared.folder().join("home"),
            serial: Serial::at(&prepared.serial_path()),
            prepared: Some(prepared),
            interrupted,
        })
    }

    /// Says how to make a shell in which the shown commands work.
    pub(super) fn show_environment(&self) {
        let folder = self.program.parent().unwrap_or(&self.program);
        println!("$ export PATH={}:$PATH TINTYPE_HOME={}", folder.display(), self.home.display());
    }

    /// Starts the guest by tintype.
    pub(super) fn start_guest(&mut self) -> Result<(), Failure> {
        let argv = self.prepared.as_ref().map(Prepared::argv).unwrap_or_default();
        let words = ["vm", "run", "web", "--"].into_iter().chain(argv.iter().map(String::as_str));
        self.host(&words.collect::<Vec<_>>())
    }

    /// Waits until the guest has booted.
    pub(super) fn wait_ready(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            match self.serial.wait_ready(GLANCE) {
                Ok(()) => break,
                Err(error) if began.elapsed() > BOOT => return Err(error.into()),
                Err(_) => self.check()?,
            }
        }
        println!("(it is up after {:.1} s)\n", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Waits until a guest that was put back answers.
    pub(super) fn wait_answer(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        self.serial.wait_answer(ANSWER)?;
        println!("(it answers {:.1} s later)\n", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Runs tintype, which has to succeed, and shows both.
    pub(super) fn host(&mut self, words: &[&str]) -> Result<(), Failure> {
        self.check()?;
        println!("$ {}", wrapped(words));
        let mut command = self.tintype(words);
        let shown = process::describe(&command);
        let status = command.stdin(Stdio::null()).status();
        let status = status.map_err(|source| Failure::Start { command: shown.clone(), source })?;
        self.check()?;
        // It has printed what is wrong.
        let stderr = String::new();
        if status.success() {
            Ok(())
        } else {
            Err(Failure::Ended { command: shown, status, stderr })
        }
    }

    /// Runs tintype for its JSON, and shows nothing.
    pub(super) fn ask_host(&mut self, words: &[&str]) -> Result<Vec<Value>, Failure> {
        let text = process::capture(&mut self.tintype(&[&["--json"], words].concat()))?;
        let parse = |line: &str| {
            serde_json::from_str(line)
                .map_err(|error| Failure::Other(format!("tintype printed `{line}`: {error}")))
        };
        text.lines().map(parse).collect()
    }

    /// Runs a command in the guest, which has to succeed, and shows both.
    pub(super) fn guest(&mut self, command: &str) -> Result<String, Failure> {
        let (status, output) = self.show_in_guest(command)?;
        if status == 0 { Ok(output) } else { Err(ended(command, status, &output)) }
    }

    /// Runs a command in the guest that has to fail, and shows both.
    pub(super) fn guest_fails(&mut self, command: &str) -> Result<(), Failure> {
        let (status, _) = self.show_in_guest(command)?;
        println!("(it ended with status {status})");
        if status == 0 {
            return Err(Failure::Other(format!("`{command}` still works in the guest")));
        }
        Ok(())
    }

    /// Runs a command in the guest, and shows nothing.
    pub(super) fn ask(&mut self, command: &str) -> Result<String, Failure> {
        let answer = self.serial.run(command, ANSWER)?;
        if answer.status == 0 {
            Ok(answer.output)
        } else {
            Err(ended(command, answer.status, &answer.output))
        }
    }

    /// Lets the guest work for a while.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.check()?;
            sleep(left.min(GLANCE));
        }
        Ok(())
    }

    /// Leaves the guest running and its files where they are, and says how to go on.
    pub(super) fn keep(mut self) {
        let Some(prepared) = self.prepared.take() else { return };
        let folder = prepared.folder().to_owned();
        // Dropping it would end the guest.
        std::mem::forget(prepared);
        println!("\nThe guest is yours. In a shell of your own:\n");
        self.show_environment();
        println!("$ tintype vm show web");
        println!("\nAnd in the end:\n");
        println!("$ tintype vm stop web --force && rm -r {}", folder.display());
    }

    fn show_in_guest(&mut self, command: &str) -> Result<(i32, String), Failure> {
        self.check()?;
        println!("guest# {command}");
        let answer = self.serial.run(command, ANSWER)?;
        print!("{}", answer.output);
        if !answer.output.is_empty() && !answer.output.ends_with('\n') {
            println!();
        }
        // A terminal shows it now, and so does a file.
        let _ = std::io::stdout().flush();
        Ok((answer.status, answer.output))
    }

    fn tintype(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).env("TINTYPE_HOME", &self.home).env_remove("TINTYPE_REPO");
        command
    }

    fn check(&self) -> Result<(), Failure> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Failure::Other("interrupted; the guest is ended".to_owned()));
        }
        Ok(())
    }
}

fn ended(command: &str, status: i32, output: &str) -> Failure {
    Failure::Other(format!("`{command}` ended with status {status} in the guest: {output}"))
}

/// Returns a command of tintype as one would type it, over several lines if it is long.
fn wrapped(words: &[&str]) -> String {
    let mut text = "tintype".to_owned();
    let mut column = text.len();
    for (index, word) in words.iter().enumerate() {
        let word = quoted(word);
        // An option and its value stay together.
        let value = words.get(index + 1).filter(|_| word.starts_with('-') && word.len() > 2);
        let length = 1 + word.len() + value.map_or(0, |value| 1 + quoted(value).len());
        let is_value = index > 0 && words[index - 1].starts_with('-') && words[index - 1].len() > 2;
        if !is_value && column + length > COLUMNS - 4 {
            text.push_str(" \\\n   ");
            column = 5;
        }
        text.push(' ');
        text.push_str(&word);
        column += 1 + word.len();
    }
    text
}

/// Quotes a word for a shell if it has to be.
fn quoted(word: &str) -> String {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || "-_=,./:%+@".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        let check = |word, expected| assert_eq!(quoted(word), expected);
        check("vm", "vm");
        check("file=/a,if=none", "file=/a,if=none");
        check("all is well", "'all is well'");
        check("it's", r"'it'\''s'");
        check("", "''");
    }

    #[test]
    fn long_commands_are_wrapped_between_options() {
        let value = "v".repeat(60);
        let words = ["vm", "run", "-device", &value, "-drive", &value];
        let expected = format!("tintype vm run -device {value} \\\n    -drive {value}");
        assert_eq!(wrapped(&words), expected);
    }
}
