//! Each command: from arguments to the engine, from its answer to text.

use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tintype_engine::{
    Caller, Cancel, CollectionParams, Engine, EngineConfig, Error, Health, Quiesce, QuiesceParams,
    Result, RevertParams, S3Access, TakeParams, Way,
};
use tintype_types::{ByteCount, SnapshotId, VmName};

use crate::arguments::{Command, Globals, Mode, OpCommand, QuiesceWhen, TakeArguments, VmCommand};
use crate::clone;
use crate::completion;
use crate::copy;
use crate::exit::Exit;
use crate::export;
use crate::import;
use crate::keys;
use crate::labels;
use crate::log;
use crate::man;
use crate::output::Output;
use crate::progress::{Fault, Show};
use crate::prune;
use crate::removal;
use crate::repair;
use crate::restore;
use crate::servers;
use crate::settings;
use crate::text;
use crate::verify;

/// The variables of the environment that a started QEMU gets besides our own.
const QEMU_VARIABLES: [&str; 2] = ["QEMU_MODULE_DIR", "TMPDIR"];

/// Runs one command.
pub(crate) fn run(globals: &Globals, command: Command, output: &Output) -> Result<Exit> {
    match command {
        Command::Completions { shell } => return Ok(completion::script(shell, output)),
        Command::Complete(arguments) => return Ok(completion::run(arguments, output)),
        Command::Man(arguments) => return man::run(arguments, output).map(|()| Exit::Done),
        _ => {}
    }
    let show = Arc::new(Show::new(*output, fault()));
    let engine = Engine::open(config(globals, Arc::clone(&show))?)?;
    let done = dispatch(&engine, command, globals, output);
    show.finish();
    done
}

fn dispatch(engine: &Engine, command: Command, globals: &Globals, output: &Output) -> Result<Exit> {
    match command {
        Command::Init { encryption } => keys::init(engine, encryption, output)?,
        Command::Key(command) => keys::key(engine, command, output)?,
        Command::Vm(command) => vm(engine, command, output)?,
        Command::Take(arguments) => take(engine, arguments, output)?,
        Command::Log(arguments) => log::run(engine, &arguments, output)?,
        Command::Show { snapshot } => show(engine, &snapshot, output)?,
        Command::Revert { vm, snapshot, load, no_safety, ignore_media } => {
            let (safety, load) = (!no_safety, load.mode());
            let params = RevertParams { snapshot, safety, load, ignore_media };
            let report = engine.revert(&vm, &params)?;
            output.result(&report, || text::revert(&report));
        }
        Command::Clone(arguments) => clone::run(engine, arguments, output)?,
        Command::Restore(arguments) => restore::run(engine, arguments, output)?,
        Command::Import(arguments) => import::run(engine, arguments, output)?,
        Command::Export(arguments) => export::run(engine, arguments, output)?,
        Command::Copy(arguments) => {
            return copy::run(engine, arguments, globals.limit_rate, output);
        }
        Command::Rm { snapshots, dry_run } => {
            removal::remove(engine, &snapshots, (dry_run, globals.grace), output)?;
        }
        Command::Prune(arguments) => return prune::run(engine, *arguments, globals.grace, output),
        Command::Undo { deleted, .. } if !deleted.is_empty() => {
            removal::undelete(engine, &deleted, output)?;
        }
        Command::Undo { operation, .. } => removal::undo(engine, operation, output)?,
        Command::Op(OpCommand::Log { limit }) => log::operations(engine, limit, output)?,
        Command::Op(OpCommand::Undo { operation }) => {
            removal::undo(engine, Some(operation), output)?;
        }
        Command::Label(command) => labels::run(engine, command, output)?,
        Command::Gc { dry_run, now, recompress } => {
            removal::collect(engine, CollectionParams { dry_run, now, recompress }, output)?;
        }
        Command::Du { names } => removal::space(engine, &names, output)?,
        Command::Verify(arguments) => return verify::run(engine, &arguments, output),
        Command::Repair(arguments) => {
            return repair::run(engine, arguments, globals.limit_rate, output);
        }
        Command::Doctor { vm } => {
            let findings = engine.doctor(vm.as_ref())?;
            output.result(&json!({"findings": findings}), || text::doctor(&findings, output));
            if findings.iter().any(|finding| finding.health == Health::Missing) {
                return Ok(Exit::Failed);
            }
        }
        Command::PageServer(arguments) => servers::serve_pages(engine, arguments)?,
        Command::DiskServer(arguments) => servers::serve_disks(engine, arguments)?,
        Command::Watchdog { vm } => keep_watch(engine, &vm)?,
        Command::Completions { .. } | Command::Complete(_) | Command::Man(_) => {
            unreachable!("handled before the engine is opened")
        }
    }
    Ok(Exit::Done)
}

fn show(engine: &Engine, snapshot: &str, output: &Output) -> Result<()> {
    let snapshot = engine.show(snapshot)?;
    let value = json!({
        "snapshot": snapshot.report(),
        "details": snapshot.details,
        "images": snapshot.record.images.iter().map(|i| &i.name).collect::<Vec<_>>(),
    });
    output.result(&value, || text::show(&snapshot, &|id| named(engine, id)));
    Ok(())
}

/// Names a snapshot by its id, as `VM@NAME` if it is there.
fn named(engine: &Engine, id: SnapshotId) -> String {
    let Ok(snapshot) = engine.show(&id.to_string()) else { return id.short() };
    format!("{}@{} ({})", snapshot.record.vm_name, snapshot.record.name, id.short())
}

/// Waits at the pipe of a take, with the channel to the guest's agent as standard output.
fn keep_watch(engine: &Engine, vm: &VmName) -> Result<()> {
    let channel = std::io::stdout().as_fd().try_clone_to_owned();
    let channel =
        channel.map_err(|error| Error::failed("cannot use standard output").because(error))?;
    engine.keep_watch(vm, std::io::stdin(), channel)
}

fn vm(engine: &Engine, command: VmCommand, output: &Output) -> Result<()> {
    match command {
        VmCommand::Run { name, qemu } => {
            let here = std::env::current_dir()
                .map_err(|error| Error::failed("cannot tell the current folder").because(error))?;
            let vm = engine.run_vm(&name, &qemu, &here)?;
            output.result(&vm, || text::registered(&vm));
        }
        VmCommand::Add { name, qmp } => {
            let vm = engine.add_vm(&name, &qmp)?;
            output.result(&vm, || text::registered(&vm));
        }
        VmCommand::List => {
            let vms = engine.vms()?;
            if output.is_json() {
                vms.iter().for_each(|vm| output.result(vm, String::new));
            } else {
                output.line(text::vms(&vms).trim_end());
            }
        }
        VmCommand::Show { vm } => {
            let vm = engine.vm(&vm)?;
            output.result(&vm, || text::vm(&vm, &|id| named(engine, id)));
        }
        VmCommand::Set(arguments) => settings::run(engine, *arguments, output)?,
        VmCommand::Start { vm } => {
            let vm = engine.start_vm(&vm)?;
            output.result(&vm, || format!("{} is {}", vm.name, vm.state));
        }
        VmCommand::Stop { vm, force } => {
            let vm = engine.stop_vm(&vm, force)?;
            output.result(&vm, || format!("{} is {}", vm.name, vm.state));
        }
        VmCommand::Rm { vm } => {
            engine.remove_vm(&vm)?;
            output.result(&json!({"removed": vm}), || {
                format!("forgot {vm}; its disks and snapshots are where they were")
            });
        }
    }
    Ok(())
}

fn take(engine: &Engine, arguments: TakeArguments, output: &Output) -> Result<()> {
    let params = TakeParams {
        name: arguments.name,
        message: arguments.message,
        tags: arguments.tags,
        without_memory: arguments.no_memory,
        excluded_disks: arguments.excluded_disks,
        full: arguments.full,
        ignore_space: arguments.ignore_space,
        quiesce: QuiesceParams {
            mode: match arguments.quiesce {
                QuiesceWhen::Auto => Quiesce::Auto,
                QuiesceWhen::Require => Quiesce::Require,
                QuiesceWhen::Off => Quiesce::Off,
            },
            limit: Duration::from_secs(arguments.quiesce_timeout),
        },
        way: match arguments.mode {
            Mode::Auto => None,
            Mode::Iterating => Some(Way::Iterating),
            Mode::CopyOnWrite => Some(Way::CopyOnWrite),
            Mode::Stop => Some(Way::Stop),
        },
    };
    let snapshot = engine.take(&arguments.vm, &params)?;
    let report = snapshot.report();
    output.result(&report, || text::taken(&report));
    Ok(())
}

/// Reads everything that the engine wants to know of our surroundings.
pub(crate) fn config(globals: &Globals, show: Arc<Show>) -> Result<EngineConfig> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .map_err(|error| Error::failed("cannot listen to signals").because(error))?;
    }
    let home = home(globals)?;
    let repository = globals.repo.clone();
    let program = std::env::current_exe()
        .map_err(|error| Error::failed("cannot find our own program").because(error))?;
    let mut helper =
        vec![program.display().to_string(), "--home".into(), home.display().to_string()];
    if let Some(repository) = &repository {
        helper.extend(["--repo".to_owned(), repository.display().to_string()]);
    }
    for (option, file) in [
        ("--key-file", &globals.key_file),
        ("--passphrase-file", &globals.passphrase_file),
        ("--age-identity", &globals.age_identity),
    ] {
        helper.extend(file.iter().flat_map(|f| [option.to_owned(), f.display().to_string()]));
    }
    helper.extend(["--cache-size".to_owned(), globals.cache_size.get().to_string()]);
    if let Some(rate) = globals.limit_rate {
        helper.extend(["--limit-rate".to_owned(), rate.get().to_string()]);
    }
    Ok(EngineConfig {
        home,
        repository,
        s3: s3_access(&[""], globals.limit_rate),
        cache_limit: globals.cache_size,
        budget: globals.repo_budget,
        grace: globals.grace,
        keys: keys::at_hand(globals)?,
        environment: QEMU_VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect(),
        helper,
        patience: Duration::from_secs(globals.wait),
        caller: caller(),
        clock: Arc::new(Timestamp::now),
        cancel: Cancel::from_flag(flag),
        observer: show,
    })
}

/// Says who runs this command, for the log of operations.
fn caller() -> Caller {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    Caller {
        host: name,
        user: user.unwrap_or_else(|| rustix::process::getuid().as_raw().to_string()),
        words: std::env::args().skip(1).collect(),
    }
}

/// Reads the variables that S3 tools read, with the first of these prefixes that
/// has an access key; `None` without one.
pub(crate) fn s3_access(prefixes: &[&str], rate: Option<ByteCount>) -> Option<S3Access> {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let has_key = |prefix: &&&str| value(&format!("{prefix}AWS_ACCESS_KEY_ID")).is_some();
    let prefix = prefixes.iter().find(has_key)?;
    let variable = |name: &str| value(&format!("{prefix}{name}"));
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    let mut access = S3Access::new(&id, &secret);
    access.bytes_per_second = rate.and_then(|rate| NonZeroU64::new(rate.get()));
    access.session_token = variable("AWS_SESSION_TOKEN").map(Into::into);
    access.endpoint = variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"));
    let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    if let Some(region) = region {
        access.region = region;
    }
    Some(access)
}

fn home(globals: &Globals) -> Result<PathBuf> {
    if let Some(home) = &globals.home {
        return Ok(home.clone());
    }
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/share")))
        .map(|data| data.join("tintype"))
        .ok_or_else(|| {
            Error::invalid("there is no home folder")
                .hint("--home or TINTYPE_HOME says where it is")
        })
}

/// Reads what a fault test wants, from `TINTYPE_TEST_FAULT`.
fn fault() -> Option<Fault> {
    std::env::var("TINTYPE_TEST_FAULT").ok().map(|text| Fault::parse(&text))
}
