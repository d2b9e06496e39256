//! Starts other programs and takes their failure seriously. No shell is involved.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::failure::Failure;

/// Runs a program to its end; what it prints is shown only if it fails.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    capture(command).map(drop)
}

/// Runs a program to its end with a file as its standard input.
pub(crate) fn run_with(command: &mut Command, input: File) -> Result<(), Failure> {
    finish(command.stdin(input)).map(drop)
}

/// Runs a program to its end and returns what it printed on standard output.
pub(crate) fn capture(command: &mut Command) -> Result<String, Failure> {
    finish(command.stdin(Stdio::null()))
}

fn finish(command: &mut Command) -> Result<String, Failure> {
    let shown = describe(command);
    let output =
        command.output().map_err(|source| Failure::Start { command: shown.clone(), source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        return Err(Failure::Ended { command: shown, status: output.status, stderr });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the cargo that runs this chore, about to work on the whole workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tintype_testkit::workspace_folder());
    command
}

/// Says whether a program of this name can be started.
pub(crate) fn is_installed(program: &str) -> bool {
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(program).is_file())
}

/// Returns a command as one would type it, for messages.
pub(crate) fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
