//! The chore `demo`: a Debian guest is snapshotted while it works, broken for
//! good and put back, with the commands that a user would type. Everything that
//! it claims is measured and compared on the way; nothing is canned.

mod stage;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::Failure;
use crate::setup::Consent;
use crate::{accelerator, guests, process};
use stage::Stage;

/// One line for the list of chores.
pub(crate) const ABOUT: &str =
    "takes, breaks and reverts a Debian guest before your eyes; --keep leaves it running";

/// Keeps a number in memory and nowhere else, ten times a second one more.
const COUNTER: &str = "witness count --name counter </dev/null >/dev/null 2>&1 &";

/// The database, on the guest's disk.
const TABLE: &str = "sqlite3 ledger.db 'CREATE TABLE ledger (n INTEGER PRIMARY KEY, at TEXT)'";

/// Writes a row, and then the next one, for ever. The number comes from the
/// shell's memory: if that were not of the disk's instant, a number would be
/// there already, or one would be left out.
const WRITER: &str = "sh -c 'n=0; while sleep 0.1; do n=$((n+1)); \
     sqlite3 -cmd \".timeout 5000\" ledger.db \"INSERT INTO ledger VALUES ($n, datetime())\"; \
     done' </dev/null >writer.log 2>&1 &";

const ASK_COUNTER: &str = "witness query counter";
const ASK_DATABASE: &str = "sqlite3 -cmd '.timeout 5000' ledger.db \
     'SELECT count(*), max(n) FROM ledger; PRAGMA integrity_check'";

/// How long the guest works before its snapshot, and after it.
const WORK: Duration = Duration::from_secs(4);

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    guests::ensure(Consent::of(arguments))?;
    let program = build()?;
    let accelerator = accelerator::choose()?;
    let began = Instant::now();
    let mut stage = Stage::set(&program, accelerator)?;
    let told = tell(&mut stage, accelerator);
    if arguments.iter().any(|argument| argument == "--keep") {
        stage.keep();
    } else if told.is_ok() {
        stage.host(&["vm", "stop", "web", "--force"])?;
    }
    told?;
    println!("\nAll of this took {:.0} s.", began.elapsed().as_secs_f64());
    Ok(())
}

/// Compiles `tintype` as it is shipped, and returns where it is.
fn build() -> Result<String, Failure> {
    let mut command = process::cargo();
    command.args(["build", "--release", "--locked", "--package", "tintype"]);
    command.arg("--message-format=json-render-diagnostics");
    let shown = process::describe(&command);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|source| Failure::Start { command: shown.clone(), source })?;
    let program = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(str::to_owned));
    program.ok_or(Failure::Ended { command: shown, status: output.status, stderr: String::new() })
}

/// The story.
fn tell(stage: &mut Stage, accelerator: &str) -> Result<(), Failure> {
    boot(stage, accelerator)?;
    let (before, taken) = snapshot(stage)?;
    go_wrong(stage)?;
    let (began, found) = go_back(stage)?;
    judge(stage, &before, &taken, &found, began)?;
    sum_up(stage)
}

fn boot(stage: &mut Stage, accelerator: &str) -> Result<(), Failure> {
    chapter("A Debian guest, started by the QEMU command line that it would have anyway");
    if accelerator == "tcg" {
        println!("(KVM does not work on this machine: the guest is emulated, which is slower.)");
    }
    stage.show_environment();
    stage.start_guest()?;
    stage.wait_ready()?;
    stage
        .guest("sed -n 's/^PRETTY_NAME=//p' /etc/os-release; sqlite3 --version | cut -d' ' -f1")?;
    println!("\nIt counts in memory, and writes rows to a database on its disk:\n");
    stage.guest(COUNTER)?;
    stage.guest(TABLE)?;
    stage.guest(WRITER)?;
    stage.pause(WORK)
}

/// Takes the snapshot, and returns what was seen before and after it.
fn snapshot(stage: &mut Stage) -> Result<(Seen, Seen), Failure> {
    chapter("A snapshot, while it works");
    let before = look(stage)?;
    stage.host(&["take", "web", "--name", "good", "-m", "all is well"])?;
    let after = look(stage)?;
    Ok((before, after))
}

fn go_wrong(stage: &mut Stage) -> Result<(), Failure> {
    stage.pause(WORK)?;
    chapter("Time goes on, and the guest is broken for good");
    look(stage)?;
    stage.guest("rm -rf /usr")?;
    stage.guest_fails("ls")
}

/// Reverts, and returns when that began and what was seen right afterwards.
fn go_back(stage: &mut Stage) -> Result<(Instant, Seen), Failure> {
    chapter("Back to the snapshot");
    let began = Instant::now();
    stage.host(&["revert", "web", "good"])?;
    stage.wait_answer()?;
    Ok((began, look(stage)?))
}

/// Compares what was found after the revert with what the snapshot can hold.
fn judge(
    stage: &mut Stage,
    before: &Seen,
    taken: &Seen,
    found: &Seen,
    began: Instant,
) -> Result<(), Failure> {
    // The instant was between `before` and `taken`, and the guest has run since for
    // less time than has passed here.
    let since = began.elapsed().as_millis() / 100;
    let most = taken.count + u64::try_from(since).unwrap_or(u64::MAX) + 1;
    expect(
        (before.count..=most).contains(&found.count),
        &format!("the counter goes on from the snapshot: {} is not {}", found.count, before.count),
    )?;
    expect(found.rows >= before.rows, "no row of before the snapshot is lost")?;
    stage.pause(WORK)?;
    println!("\nAnd it goes on from there:\n");
    let later = look(stage)?;
    expect(later.count > found.count, "the counter counts on")?;
    expect(later.rows > found.rows, "rows are written again")?;
    expect(stage.ask("cat writer.log")?.is_empty(), "the writer has nothing to complain of")?;
    println!(
        "\nThe counter was {} before the snapshot and {} when the guest answered again. The database\n\
         is whole, and its rows have no gap: memory and disk are of one instant.",
        before.count, found.count
    );
    Ok(())
}

/// Prints the snapshots and what they cost.
fn sum_up(stage: &mut Stage) -> Result<(), Failure> {
    chapter("What there is now");
    stage.host(&["log", "web"])?;
    println!();
    for snapshot in stage.ask_host(&["log", "web"])? {
        let mib = |field: &str| snapshot[field].as_f64().unwrap_or_default() / f64::from(1 << 20);
        println!(
            "{:8} pause {:6.1} ms; {:.0} MiB of memory and {:.0} MiB of disk, of which {:.0} MiB \
             were read; the repository grew by {:.1} MiB",
            snapshot["name"].as_str().unwrap_or_default(),
            snapshot["pause_ms"].as_f64().unwrap_or_default(),
            mib("memory_bytes"),
            mib("disk_bytes"),
            mib("read_bytes"),
            mib("stored_bytes"),
        );
    }
    Ok(())
}

/// What the guest says of itself.
struct Seen {
    /// The counter in memory.
    count: u64,
    /// The rows in the database.
    rows: u64,
}

/// Asks the guest, and insists on a whole database without a gap.
fn look(stage: &mut Stage) -> Result<Seen, Failure> {
    let counter = stage.guest(ASK_COUNTER)?;
    let database = stage.guest(ASK_DATABASE)?;
    let count = counter.split_whitespace().last().and_then(|word| word.parse().ok());
    let count = count.ok_or_else(|| Failure::Other(format!("the counter says `{counter}`")))?;
    let mut lines = database.lines();
    let numbers = lines.next().and_then(|line| line.split_once('|'));
    let numbers =
        numbers.and_then(|(rows, highest)| Some((rows.parse().ok()?, highest.parse().ok()?)));
    let (rows, highest): (u64, u64) =
        numbers.ok_or_else(|| Failure::Other(format!("the database says `{database}`")))?;
    expect(lines.eq(["ok"]), "the database is whole")?;
    expect(rows == highest, "no row is left out")?;
    Ok(Seen { count, rows })
}

fn expect(is_true: bool, claim: &str) -> Result<(), Failure> {
    if is_true { Ok(()) } else { Err(Failure::Other(format!("this is not true: {claim}"))) }
}

fn chapter(title: &str) {
    println!("\n── {title} ──\n");
}
