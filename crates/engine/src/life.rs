//! Judges by what a guest shows whether it lives. It opens nothing but the files
//! with what the guest writes, which are a stranger's words: their ends are read.
//!
//! | the guest | lives if |
//! |---|---|
//! | has an agent that has opened its channel | the agent answers |
//! | has its memory, and no agent | it goes on for three seconds, and shows others registers, timers or interrupts in three looks or more |
//! | boots | a login prompt is on a serial line; or it has read and written its disks, and then nothing is read, written or said for ten seconds while its processors go on |
//!
//! A panic, a reset of a guest with memory, a failure of its disks, or words such as
//! `Kernel panic` on a serial line say that it does not.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tintype_types::ByteCount;
use tintype_vm::Signs;

/// How long a guest with memory is watched.
const WATCHED: Duration = Duration::from_secs(3);
/// In how many looks its processors must have gone on.
const CHANGES: u32 = 3;
/// How long a guest that has booted is quiet.
const QUIET: Duration = Duration::from_secs(10);
/// How many resets a booting guest may make: firmware makes one or two.
const RESETS: u32 = 4;
/// How much is read of what a guest has written last.
const TAIL: u64 = 16 << 10;
/// How many lines of that are shown, and how long they may be.
const SHOWN_LINES: usize = 8;
const SHOWN_LETTERS: usize = 160;

/// What says on a serial line that a system has not come up.
const FAILURES: [&str; 8] = [
    "Kernel panic - not syncing",
    "No bootable device",
    "No bootable option or device",
    "grub rescue>",
    "(initramfs)",
    "Entering emergency mode",
    "You are in emergency mode",
    "Give root password for maintenance",
];

/// How a guest fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It lives: what showed that.
    Alive(String),
    /// It does not, and why.
    Dead(String),
}

/// What a guest has shown until now.
pub(crate) struct Life {
    has_memory: bool,
    outputs: Vec<PathBuf>,
    began: Instant,
    /// When something was last read, written or said.
    active: Instant,
    moved: (ByteCount, ByteCount, u64),
    processors: String,
    /// In how many looks the processors had gone on, in all, and since it is quiet.
    changes: u32,
    quiet_changes: u32,
    resets: u32,
    /// Whether an agent has opened its channel and not answered yet.
    agent_owes: bool,
}

impl Life {
    /// Begins to watch a guest that has begun to run.
    pub(crate) fn new(has_memory: bool, outputs: Vec<PathBuf>) -> Self {
        let now = Instant::now();
        Self {
            has_memory,
            outputs,
            began: now,
            active: now,
            moved: (ByteCount(0), ByteCount(0), 0),
            processors: String::new(),
            changes: 0,
            quiet_changes: 0,
            resets: 0,
            agent_owes: false,
        }
    }

    /// Takes another look; none if it is not known yet how the guest fares.
    pub(crate) fn judge(
        &mut self,
        signs: &Signs,
        agent_answers: &mut dyn FnMut() -> Option<bool>,
    ) -> Option<Verdict> {
        self.note(signs);
        let text = self.text();
        if let Some(why) = self.failure(signs, &text) {
            return Some(Verdict::Dead(why));
        }
        let answered = agent_answers();
        self.agent_owes = answered == Some(false);
        if answered == Some(true) {
            return Some(Verdict::Alive("its guest agent answers".to_owned()));
        }
        match (self.has_memory, self.agent_owes) {
            (true, false) => self.goes_on(),
            (true, true) => None,
            (false, _) => self.has_booted(&text),
        }
        .map(Verdict::Alive)
    }

    fn note(&mut self, signs: &Signs) {
        let said = self.outputs.iter().filter_map(|path| path.metadata().ok());
        let moved =
            (signs.read_bytes, signs.written_bytes, said.map(|metadata| metadata.len()).sum());
        if moved != self.moved {
            (self.moved, self.active, self.quiet_changes) = (moved, Instant::now(), 0);
        }
        if signs.processors != self.processors {
            let is_first = self.processors.is_empty();
            self.processors.clone_from(&signs.processors);
            self.changes += u32::from(!is_first);
            self.quiet_changes += u32::from(!is_first);
        }
    }

    fn failure(&mut self, signs: &Signs, text: &str) -> Option<String> {
        for event in &signs.events {
            match event.as_str() {
                "GUEST_PANICKED" => return Some("the guest has panicked".to_owned()),
                "GUEST_CRASHLOADED" => return Some("the guest's kernel has crashed".to_owned()),
                "SHUTDOWN" => return Some("the guest has switched itself off".to_owned()),
                "WATCHDOG" => return Some("the guest's watchdog has run out".to_owned()),
                "BLOCK_IO_ERROR" => return Some("a disk of the guest has failed".to_owned()),
                _ => self.resets += 1,
            }
        }
        if self.resets > if self.has_memory { 0 } else { RESETS } {
            return Some(format!("the guest has restarted itself, {} times", self.resets));
        }
        if signs.state != "running" {
            return Some(format!("the guest does not run on: it is `{}`", signs.state));
        }
        let words = FAILURES.iter().find(|words| text.contains(**words))?;
        Some(format!("its serial line says `{words}`"))
    }

    /// The proof for a guest with memory.
    fn goes_on(&self) -> Option<String> {
        let watched = self.began.elapsed();
        (watched >= WATCHED && self.changes >= CHANGES).then(|| {
            format!(
                "its processors went on for {:.0} s: registers, timers or interrupts had changed in {} looks{}",
                watched.as_secs_f64(),
                self.changes,
                self.activity()
            )
        })
    }

    /// The proof for a guest that boots.
    fn has_booted(&self, text: &str) -> Option<String> {
        if text.lines().next_back().is_some_and(|line| line.trim_end().ends_with("login:")) {
            return Some("its serial line asks for a login".to_owned());
        }
        let (read, written, _) = self.moved;
        let used_disks = read.get() > 0 && written.get() > 0;
        let quiet = self.active.elapsed();
        (used_disks && quiet >= QUIET && self.quiet_changes >= CHANGES).then(|| {
            format!(
                "it was quiet for {:.0} s while its processors went on, after it had booted{}",
                quiet.as_secs_f64(),
                self.activity()
            )
        })
    }

    /// What there was to see of disks and serial lines.
    fn activity(&self) -> String {
        let (read, written, said) = self.moved;
        format!(
            "; it has read {read} of its disks, written {written}, and said {}",
            ByteCount(said)
        )
    }

    /// Says why nothing is known of a guest after all the time there was.
    pub(crate) fn give_up(&self, limit: Duration) -> Verdict {
        let why = match (self.agent_owes, self.changes) {
            (true, _) => "its guest agent does not answer",
            (false, 0) => "its processors stand still",
            (false, _) if self.has_memory => "its processors hardly go on",
            (false, _) => "it has not come up",
        };
        Verdict::Dead(format!("{why} after {} s{}", limit.as_secs(), self.activity()))
    }

    /// Returns the last lines that the guest wrote.
    pub(crate) fn last_words(&self) -> Vec<String> {
        let text = self.text();
        let lines: Vec<String> = text.lines().map(printable).filter(|l| !l.is_empty()).collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec()
    }

    fn text(&self) -> String {
        self.outputs.iter().filter_map(|path| tail(path)).collect()
    }
}

fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns a line without what would steer a terminal.
fn printable(line: &str) -> String {
    let plain = line.trim().chars().filter(|letter| !letter.is_control());
    plain.take(SHOWN_LETTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(processors: &str) -> Signs {
        Signs {
            state: "running".to_owned(),
            read_bytes: ByteCount(0),
            written_bytes: ByteCount(0),
            processors: processors.to_owned(),
            events: Vec::new(),
        }
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let check = |has_memory: bool, change: &dyn Fn(&mut Signs), expected: &str| {
            let mut life = Life::new(has_memory, Vec::new());
            let mut shown = signs("a");
            change(&mut shown);
            let verdict = life.judge(&shown, &mut || None);
            assert!(
                matches!(&verdict, Some(Verdict::Dead(why)) if why.contains(expected)),
                "{verdict:?} does not say {expected}"
            );
        };
        let event =
            |name: &'static str| move |signs: &mut Signs| signs.events.push(name.to_owned());
        check(true, &event("GUEST_PANICKED"), "panicked");
        check(false, &event("SHUTDOWN"), "switched itself off");
        check(true, &event("RESET"), "restarted itself");
        check(true, &|signs| signs.state = "internal-error".to_owned(), "internal-error");
        let mut life = Life::new(false, Vec::new());
        let mut once = signs("a");
        event("RESET")(&mut once);
        assert_eq!(life.judge(&once, &mut || None), None, "firmware may");
    }

    #[test]
    fn an_agent_that_is_there_has_to_answer() {
        let mut life = Life::new(true, Vec::new());
        life.began -= WATCHED;
        for look in ["a", "b", "c", "d", "e"] {
            assert_eq!(life.judge(&signs(look), &mut || Some(false)), None);
        }
        assert!(matches!(life.give_up(WATCHED), Verdict::Dead(why) if why.contains("agent")));
        let alive = life.judge(&signs("e"), &mut || Some(true));
        assert!(matches!(alive, Some(Verdict::Alive(_))));
    }

    #[test]
    fn one_with_memory_lives_if_its_processors_go_on() {
        let mut life = Life::new(true, Vec::new());
        for look in ["a", "b", "c", "d"] {
            assert_eq!(life.judge(&signs(look), &mut || None), None, "it is too soon");
        }
        life.began -= WATCHED;
        assert!(matches!(life.judge(&signs("d"), &mut || None), Some(Verdict::Alive(_))));
        let mut still = Life::new(true, Vec::new());
        still.began -= WATCHED;
        (0..9).for_each(|_| assert_eq!(still.judge(&signs("a"), &mut || None), None));
        assert!(
            matches!(still.give_up(WATCHED), Verdict::Dead(why) if why.contains("stand still"))
        );
    }

    #[test]
    fn one_that_boots_asks_for_a_login_or_becomes_quiet() {
        let folder = tempfile::tempdir().unwrap();
        let serial = folder.path().join("serial");
        let judged = |text: &str| {
            std::fs::write(&serial, text).unwrap();
            Life::new(false, vec![serial.clone()]).judge(&signs("a"), &mut || None)
        };
        assert_eq!(judged("Loading\n"), None);
        assert!(matches!(judged("Debian\n\ndebian login: "), Some(Verdict::Alive(_))));
        assert!(matches!(judged("x\ngrub rescue> "), Some(Verdict::Dead(_))));

        let mut life = Life::new(false, Vec::new());
        let mut used = signs("a");
        (used.read_bytes, used.written_bytes) = (ByteCount(4096), ByteCount(512));
        assert_eq!(life.judge(&used, &mut || None), None);
        life.active -= QUIET;
        for look in ["b", "c"] {
            used.processors = look.to_owned();
            assert_eq!(life.judge(&used, &mut || None), None);
        }
        used.processors = "d".to_owned();
        assert!(matches!(life.judge(&used, &mut || None), Some(Verdict::Alive(_))));
    }
}
