//! What shells complete: commands, options, and the names of VMs and snapshots.
//!
//! The scripts for bash, zsh and fish only cut the line into words, ask
//! `tintype __complete -- WORDS`, and show the answer: a line `files` if the shell is
//! to complete a path, or a line `words` and one for each thing that the last word
//! may become, with what it is after a tab. Which argument the word is, clap knows.
//! Whatever fails, the answer is empty: nobody wants an error at a tab.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, ValueHint};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};
use clap_complete::{Shell, generate};
use tintype_engine::{NamedSnapshot, Names};
use tintype_types::VmName;

use crate::arguments::{Arguments, Globals};
use crate::commands::config;
use crate::exit::Exit;
use crate::output::Output;
use crate::progress::Show;

/// How long the repository may take to answer.
const LIMIT: Duration = Duration::from_millis(150);
/// The fewest digits of an id that are completed.
const MIN_ID: usize = 4;

/// What is to be completed.
#[derive(Debug, Args)]
pub(crate) struct CompleteArguments {
    /// The words up to the cursor, the program first.
    #[arg(last = true)]
    words: Vec<OsString>,
}

/// Prints the script for a shell.
pub(crate) fn script(shell: Shell, output: &Output) -> Exit {
    match shell {
        Shell::Bash => output.line(include_str!("tintype.bash").trim_end()),
        Shell::Zsh => output.line(include_str!("tintype.zsh").trim_end()),
        Shell::Fish => output.line(include_str!("tintype.fish").trim_end()),
        // Those complete no names.
        shell => {
            let mut script = Vec::new();
            generate(shell, &mut Arguments::command(), "tintype", &mut script);
            let _ = std::io::stdout().write_all(&script);
        }
    }
    Exit::Done
}

/// Prints what the last word may become.
pub(crate) fn run(arguments: CompleteArguments, output: &Output) -> Exit {
    let words: Vec<OsString> = arguments.words.into_iter().map(unquoted).collect();
    match answer(words) {
        Some(Answer::Files) => output.line("files"),
        Some(Answer::Words(candidates)) => {
            output.line("words");
            for candidate in candidates {
                let value = candidate.get_value().to_string_lossy();
                match candidate.get_help().map(ToString::to_string).unwrap_or_default() {
                    help if help.is_empty() => output.line(&value),
                    help => output.line(&format!("{value}\t{}", help.lines().next().unwrap_or(""))),
                }
            }
        }
        None => {}
    }
    Exit::Done
}

enum Answer {
    /// The shell is to complete a path.
    Files,
    Words(Vec<CompletionCandidate>),
}

fn answer(words: Vec<OsString>) -> Option<Answer> {
    let (current, before) = words.split_last()?;
    let is_option = current.as_encoded_bytes().starts_with(b"-");
    let typed = Arguments::command().ignore_errors(true).try_get_matches_from(before).ok()?;
    let sources = Arc::new(Sources::of(&typed)?);
    let mut command = with_names(Arguments::command(), &sources);
    let (index, folder) = (words.len() - 1, std::env::current_dir().ok());
    let mut candidates = complete(&mut command, words, index, folder.as_deref()).ok()?;
    if sources.wants_files.load(Relaxed) {
        return Some(Answer::Files);
    }
    candidates.retain(|one| is_option || !one.get_value().as_encoded_bytes().starts_with(b"-"));
    Some(Answer::Words(candidates))
}

/// Where names come from.
struct Sources {
    /// Read when they are needed.
    names: LazyLock<Names, Box<dyn FnOnce() -> Names + Send>>,
    /// The VM whose snapshots the command is about, if it knows one.
    vm: Option<VmName>,
    /// Whether a path is to be completed.
    wants_files: AtomicBool,
}

impl Sources {
    fn of(typed: &ArgMatches) -> Option<Self> {
        let globals = Globals::from_arg_matches(typed).ok()?;
        let silent = Output::new(&Globals { quiet: true, ..globals.clone() });
        let config = config(&globals, Arc::new(Show::new(silent, None))).ok()?;
        let vm = typed.subcommand().and_then(|(_, of)| of.try_get_one("vm").ok().flatten());
        Some(Self {
            names: LazyLock::new(Box::new(move || config.names(LIMIT))),
            vm: vm.cloned(),
            wants_files: AtomicBool::new(false),
        })
    }

    /// Returns the snapshots, newest first: `VM@NAME`, and of a VM that is known the
    /// bare names, until an `@` is typed.
    fn snapshots(&self, current: &str, vm: Option<&VmName>) -> Vec<CompletionCandidate> {
        let names = &self.names;
        let bare = vm.is_some() && !current.contains('@');
        let of_vm = |one: &&NamedSnapshot| vm.is_none_or(|vm| one.vm == *vm);
        let mut latest: Vec<&VmName> = Vec::new();
        let mut found = Vec::new();
        for one in names.snapshots.iter().rev().filter(of_vm) {
            let whole = |name: &str| match bare {
                true => name.to_owned(),
                false => format!("{}@{name}", one.vm),
            };
            let when = one.created.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
            if !latest.contains(&&one.vm) {
                latest.push(&one.vm);
                found.push((whole("latest"), format!("{}, {when}", one.name)));
            }
            found.push((whole(one.name.as_str()), when.clone()));
            if current.len() >= MIN_ID {
                found.push((one.id.short(), format!("{}@{}, {when}", one.vm, one.name)));
            }
        }
        found.retain(|(value, _)| value.starts_with(current));
        found.into_iter().map(|(value, help)| candidate(value).help(Some(help.into()))).collect()
    }

    /// Returns the VMs: the registered ones, and those that only have snapshots.
    fn vms(&self, current: &str) -> Vec<CompletionCandidate> {
        let names = &self.names;
        let mut vms: Vec<&VmName> = names.vms.iter().collect();
        vms.extend(names.snapshots.iter().map(|one| &one.vm));
        vms.sort();
        vms.dedup();
        vms.retain(|vm| vm.as_str().starts_with(current));
        vms.into_iter().map(candidate).collect()
    }

    /// Returns the tags, as `K=V`, or their keys.
    fn tags(&self, current: &str, keys: bool) -> Vec<CompletionCandidate> {
        let tags = self.names.snapshots.iter().flat_map(|one| &one.tags);
        let mut tags: Vec<String> = match keys {
            true => tags.map(|(key, _)| key.clone()).collect(),
            false => tags.map(|(key, value)| format!("{key}={value}")).collect(),
        };
        tags.sort();
        tags.dedup();
        tags.retain(|tag| tag.starts_with(current));
        tags.into_iter().map(candidate).collect()
    }
}

fn candidate(value: impl ToString) -> CompletionCandidate {
    CompletionCandidate::new(value.to_string())
}

/// Tells clap what can be in the place of each argument: an argument is called like
/// what it takes.
fn with_names(command: Command, sources: &Arc<Sources>) -> Command {
    let of = command.get_name().to_owned();
    let command = command.mut_args(|argument| with_completer(&of, argument, sources));
    command.mut_subcommands(|command| with_names(command, sources))
}

fn with_completer(command: &str, argument: Arg, sources: &Arc<Sources>) -> Arg {
    type Complete = fn(&Sources, &str) -> Vec<CompletionCandidate>;
    let complete: Complete = match (command, argument.get_id().as_str()) {
        ("revert", "snapshot") => |sources, text| sources.snapshots(text, sources.vm.as_ref()),
        (_, "snapshot" | "snapshots") => |sources, text| sources.snapshots(text, None),
        ("du", "names") => |sources, text| {
            sources.vms(text).into_iter().chain(sources.snapshots(text, None)).collect()
        },
        (_, "vm") => Sources::vms,
        ("tag", "remove") => |sources, text| sources.tags(text, true),
        (_, "tags" | "keep_tag") => |sources, text| sources.tags(text, false),
        _ if argument.get_value_hint() == ValueHint::AnyPath => |sources, _| {
            sources.wants_files.store(true, Relaxed);
            Vec::new()
        },
        _ => return argument,
    };
    let sources = Arc::clone(sources);
    argument.add(ArgValueCompleter::new(move |text: &OsStr| {
        text.to_str().map_or_else(Vec::new, |text| complete(&sources, text))
    }))
}

/// Returns a word as bash would hand it over, but for variables.
fn unquoted(word: OsString) -> OsString {
    let Ok(word) = word.into_string() else { return OsString::new() };
    let plain = word.replace(['\\', '"', '\''], "");
    match (plain.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => std::path::Path::new(&home).join(rest).into(),
        _ => plain.into(),
    }
}
