//! The `tintype` command: reads arguments and environment, calls the engine,
//! prints. What a snapshot is, it does not know.

mod arguments;
mod clone;
mod commands;
mod completion;
mod copy;
mod exit;
mod export;
mod graph;
mod import;
mod keys;
mod labels;
mod load;
mod log;
mod man;
mod output;
mod progress;
mod prune;
mod removal;
mod repair;
mod restore;
mod servers;
mod settings;
mod text;
mod verify;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Globals};
use exit::Exit;
use output::Output;

fn main() -> ExitCode {
    let Arguments { globals, command } = Arguments::parse();
    start_log(&globals);
    let output = Output::new(&globals);
    // The panic has been printed, and what it unwound has let go of the guest.
    let done = catch_unwind(AssertUnwindSafe(|| commands::run(&globals, command, &output)));
    let exit = match done {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => {
            output.error(&error);
            Exit::of(&error)
        }
        Err(_) => Exit::Bug,
    };
    exit.into()
}

/// Sends the log to stderr: warnings, or more with `-v`, or what `TINTYPE_LOG` says.
fn start_log(globals: &Globals) {
    use tracing_subscriber::EnvFilter;
    let default = match (globals.quiet, globals.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("TINTYPE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
