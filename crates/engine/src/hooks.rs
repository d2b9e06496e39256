//! Programs of the user's own around the instant of a take: those in `take.d` in
//! the home, and those in `take.d` in the folder of one VM.
//!
//! ```text
//!  pre, in the order of names ─ freeze ─ the instant ─ thaw ─ post, in the other order
//! ```
//!
//! Whatever becomes of the take, `post` runs if `pre` was begun: by this command, or
//! by whoever repairs what it left.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use tintype_types::{SnapshotName, VmName};

use crate::Engine;
use crate::error::{Error, Result};

/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether a program has ended.
const LOOK_UP: Duration = Duration::from_millis(5);

/// The rights of others to write.
const OTHERS_WRITE: u32 = 0o022;

/// The programs around one take.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    programs: Vec<PathBuf>,
    variables: Vec<(&'static str, String)>,
    log: PathBuf,
    post: Mutex<Post>,
}

/// How far the programs after the instant are.
#[derive(Debug, Default)]
enum Post {
    #[default]
    NotDue,
    Due,
    Runs(JoinHandle<Vec<String>>),
}

impl Engine {
    /// Finds the programs for a VM. One that others could have written is refused.
    pub(crate) fn hooks(&self, vm: &VmName, snapshot: &SnapshotName) -> Result<Arc<Hooks>> {
        let mut programs = Vec::new();
        for folder in self.home.hook_folders(vm) {
            programs.extend(programs_in(&folder)?);
        }
        let variables = vec![
            ("TINTYPE_VM", vm.to_string()),
            ("TINTYPE_SNAPSHOT_NAME", snapshot.to_string()),
            ("TINTYPE_HOME", self.home.path().display().to_string()),
        ];
        let log = self.home.hook_log(vm);
        Ok(Arc::new(Hooks { programs, variables, log, post: Mutex::default() }))
    }
}

impl Engine {
    /// Waits for the programs after the instant, and says which have failed.
    pub(crate) fn end_hooks(&self, hooks: &Arc<Hooks>) {
        for failure in hooks.finish_post() {
            self.config.observer.notice(&failure);
        }
    }

    /// Runs the programs that a killed take still owes.
    pub(crate) fn make_up_for_hooks(&self, vm: &VmName, snapshot: &SnapshotName) {
        match self.hooks(vm, snapshot) {
            Ok(hooks) => {
                hooks.owe_post();
                self.end_hooks(&hooks);
            }
            Err(error) => self.config.observer.notice(&error.to_string()),
        }
    }
}

impl Hooks {
    /// Tells whether there is nothing to run.
    pub(crate) fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Runs the programs before the instant. From here on those after it are due.
    pub(crate) fn run_pre(&self) -> Result<()> {
        self.owe_post();
        for program in &self.programs {
            self.run(program, "pre").map_err(|why| {
                Error::failed(format!("the hook {} does not want this take", program.display()))
                    .because(why)
                    .hint(format!("what it said is in {}", self.log.display()))
            })?;
        }
        Ok(())
    }

    /// Notes that the programs after the instant have to run.
    pub(crate) fn owe_post(&self) {
        *self.post() = Post::Due;
    }

    /// Begins to run the programs after the instant, beside what goes on.
    pub(crate) fn start_post(self: &Arc<Self>) {
        let mut post = self.post();
        if matches!(*post, Post::Due) {
            let hooks = Arc::clone(self);
            *post = Post::Runs(std::thread::spawn(move || {
                let last_first = hooks.programs.iter().rev();
                let failed = |program: &PathBuf| {
                    let why = hooks.run(program, "post").err()?;
                    Some(format!("the hook {} failed after the instant: {why}", program.display()))
                };
                last_first.filter_map(failed).collect()
            }));
        }
    }

    /// Waits until they have run; returns the failures, as sentences.
    pub(crate) fn finish_post(self: &Arc<Self>) -> Vec<String> {
        self.start_post();
        let running = std::mem::take(&mut *self.post());
        match running {
            Post::Runs(thread) => thread.join().unwrap_or_default(),
            Post::NotDue | Post::Due => Vec::new(),
        }
    }

    fn post(&self) -> std::sync::MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, program: &Path, phase: &str) -> Result<(), String> {
        let started = self.start(program, phase).map_err(|error| error.to_string())?;
        match wait(started).map_err(|error| error.to_string())? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("it ended with {status}")),
            None => Err(format!("it did not end within {} s, and was killed", LIMIT.as_secs())),
        }
    }

    fn start(&self, program: &Path, phase: &str) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        log.set_permissions(fs::Permissions::from_mode(0o600))?;
        Command::new(program)
            .arg(phase)
            .env("TINTYPE_PHASE", phase)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
    }
}

/// Waits for a program's end; `None` if it had to be killed, with all that it started.
fn wait(mut child: Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        sleep(LOOK_UP);
    }
    // It has not been waited for, so its id is still its own.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    child.wait().map(|_| None)
}

/// Returns the programs in a folder by their names. Files that nobody may execute
/// are none, nor are hidden ones and copies that editors leave.
fn programs_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    refuse_foreign(folder)?;
    let mut programs = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let data = fs::metadata(&path).map_err(Error::io("look at", &path))?;
        let is_program = data.is_file() && data.permissions().mode() & 0o111 != 0;
        if is_program && !name.starts_with('.') && !name.ends_with('~') {
            refuse_foreign(&path)?;
            programs.push(path);
        }
    }
    programs.sort();
    Ok(programs)
}

/// Refuses what somebody else could have written.
fn refuse_foreign(path: &Path) -> Result<()> {
    let data = fs::metadata(path).map_err(Error::io("look at", path))?;
    let refused = |why: &str, hint: String| {
        Err(Error::refused(format!("the hook {} is not run", path.display()))
            .because(why.to_owned())
            .state("nothing was changed")
            .hint(hint))
    };
    if data.uid() != geteuid().as_raw() {
        return refused("it belongs to another user", format!("chown it: {}", path.display()));
    }
    if data.mode() & OTHERS_WRITE != 0 {
        return refused("others may write to it", format!("chmod go-w {}", path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(folder: &Path, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn programs_run_in_order_and_back_again() {
        let folder = tempfile::tempdir().unwrap();
        let say = "echo $(basename $0) $1 $TINTYPE_PHASE $TINTYPE_VM >>\"$(dirname $0)/said.txt\"";
        for name in ["20-b", "10-a", ".hidden", "copy~"] {
            program(folder.path(), name, 0o700, say);
        }
        program(folder.path(), "README", 0o600, "exit 1");
        let hooks = Arc::new(Hooks {
            programs: programs_in(folder.path()).unwrap(),
            variables: vec![("TINTYPE_VM", "web".to_owned())],
            log: folder.path().join("log"),
            post: Mutex::default(),
        });
        assert_eq!(hooks.finish_post(), Vec::<String>::new(), "nothing is due yet");
        hooks.run_pre().unwrap();
        hooks.start_post();
        assert_eq!(hooks.finish_post(), Vec::<String>::new());
        let said = fs::read_to_string(folder.path().join("said.txt")).unwrap();
        assert_eq!(
            said,
            "10-a pre pre web\n20-b pre pre web\n20-b post post web\n10-a post post web\n"
        );
    }

    #[test]
    fn what_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        program(folder.path(), "a", 0o722, "");
        let error = programs_in(folder.path()).unwrap_err();
        assert!(error.next_step().unwrap().starts_with("chmod go-w"), "{error:?}");
        fs::set_permissions(folder.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(programs_in(folder.path()).is_err(), "others may put programs there");
    }
}
