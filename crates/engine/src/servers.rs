//! How the processes are started that serve a guest behind the command that started
//! it: what loads its memory, and what fills its disks. Each has another one that
//! stands by, and takes its place if it is killed; both hold the lock that says so.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use tintype_types::VmName;

use crate::Engine;
use crate::error::{Error, Result};
use crate::watchdog::Watchdog;

/// How often one takes the place of another before a command has to.
const MAX_TAKEOVERS: u32 = 10;

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serves {
    Memory,
    Disks,
}

impl Engine {
    /// Returns the command that is such a process, the first or the one that follows
    /// so many.
    pub(crate) fn server(
        &self,
        serves: Serves,
        vm: &VmName,
        start: &str,
        takeovers: u32,
    ) -> Result<Command> {
        let (word, does) = match serves {
            Serves::Memory => ("page-server", "loads memory"),
            Serves::Disks => ("disk-server", "serves disks"),
        };
        let Some((program, arguments)) = self.config.helper.split_first() else {
            return Err(Error::failed(format!("there is no command that {does}")));
        };
        let mut command = Command::new(program);
        command.args(arguments).args([word, vm.as_str(), start]);
        // A Ctrl-C is for the command alone.
        command.arg(takeovers.to_string()).stderr(Stdio::null()).process_group(0);
        Ok(command)
    }

    /// Starts the process that takes the place of this one if it is killed. It has
    /// our lock, too.
    pub(crate) fn have_stand_by(&self, serves: Serves, vm: &VmName, takeovers: u32) -> Watchdog {
        if takeovers >= MAX_TAKEOVERS {
            return Watchdog::none();
        }
        match self.server(serves, vm, "stand-by", takeovers + 1) {
            Ok(mut command) => Watchdog::start(command.stdout(Stdio::inherit())),
            Err(_) => Watchdog::none(),
        }
    }
}
