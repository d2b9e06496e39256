//! The pages for `man`, made of what `--help` prints.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use serde_json::json;
use tintype_engine::{Error, Result};

use crate::arguments::Arguments;
use crate::output::Output;

/// The command.
const NAME: &str = "tintype";
/// What the pages are of, and the day from which on it was.
const SOURCE: &str = concat!("tintype ", env!("CARGO_PKG_VERSION"));
const DATE: &str = "2026-11-26";
/// What the exit codes mean.
const EXIT_STATUS: [(&str, &str); 7] = [
    ("0", "done"),
    ("1", "the request failed"),
    ("2", "not understood, or it names what is not there"),
    ("3", "done, and damage was found"),
    ("4", "refused to protect data"),
    ("70", "tintype is at fault"),
    ("130", "interrupted; the guest runs as before"),
];

/// Which pages, and where they go.
#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// The command, such as `vm run`; tintype itself without one.
    #[arg(value_name = "COMMAND", conflicts_with = "to")]
    command: Vec<String>,
    /// Write the pages of all commands to this folder.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Prints a page, or writes all of them.
pub(crate) fn run(arguments: ManArguments, output: &Output) -> Result<()> {
    let mut whole = Arguments::command().disable_help_subcommand(true);
    whole.build();
    let Some(folder) = arguments.to else {
        let named = find(&whole, &arguments.command)?;
        output.line(page(named).trim_end());
        return Ok(());
    };
    fs::create_dir_all(&folder).map_err(|error| cannot_write(&folder, error))?;
    let mut pages = Vec::new();
    write_all(&whole, &folder, &mut pages)?;
    output.result(&json!({"folder": folder, "pages": pages}), || {
        format!("wrote {} pages to {}", pages.len(), folder.display())
    });
    Ok(())
}

fn find<'c>(whole: &'c Command, names: &[String]) -> Result<&'c Command> {
    let mut found = whole;
    for name in names {
        found = found.find_subcommand(name).ok_or_else(|| {
            Error::invalid(format!("there is no command `{}`", names.join(" ")))
                .hint("`tintype help` lists the commands")
        })?;
    }
    Ok(found)
}

/// Writes the page of a command, and of those below it.
fn write_all(command: &Command, folder: &Path, pages: &mut Vec<String>) -> Result<()> {
    let name = Man::new(command.clone()).get_filename();
    let path = folder.join(&name);
    fs::write(&path, page(command)).map_err(|error| cannot_write(&path, error))?;
    pages.push(name);
    let shown = command.get_subcommands().filter(|below| !below.is_hide_set());
    shown.into_iter().try_for_each(|below| write_all(below, folder, pages))
}

fn page(command: &Command) -> String {
    let is_whole = command.get_name() == NAME;
    // What every command takes is said once.
    let command = command.clone().mut_args(|argument| {
        let hidden = argument.is_hide_set() || (argument.is_global_set() && !is_whole);
        argument.hide(hidden)
    });
    let man = Man::new(command).date(DATE).source(SOURCE).manual("tintype");
    let mut page = Vec::new();
    man.render(&mut page).expect("memory takes every page");
    let mut more = Roff::new();
    more.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_STATUS {
        more.control("TP", []);
        more.text([bold(code)]);
        more.text([roman(meaning)]);
    }
    if !is_whole {
        more.control("SH", ["SEE ALSO"]);
        more.text([bold(NAME), roman("(1) has the options that every command takes.")]);
    }
    more.to_writer(&mut page).expect("memory takes every page");
    let page = String::from_utf8(page).expect("what we say is text");
    // An empty line is a break already, and a checker says so.
    page.replace("\n.br\n\n.br\n", "\n.sp\n")
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::failed(format!("cannot write {}", path.display())).because(error)
}
