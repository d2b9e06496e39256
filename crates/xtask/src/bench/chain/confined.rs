//! Processes that share one processor for a while. Left alone, the system moves each
//! virtual processor about between the machine's, and two QEMUs that do the same drift
//! apart by a twentieth within minutes; on one processor they stay within a hundredth.

use std::fs;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

use crate::failure::Failure;

/// Confines until it is dropped.
pub(super) struct Confined {
    processes: Vec<u32>,
    /// The processors that this machine lets us have.
    allowed: CpuSet,
}

impl Confined {
    /// Confines all threads of these processes to the last processor of those allowed.
    pub(super) fn to_one_processor(processes: &[u32]) -> Result<Self, Failure> {
        let allowed = sched_getaffinity(None).map_err(refused)?;
        let confined = Self { processes: processes.to_vec(), allowed };
        let last = (0..CpuSet::MAX_CPU).rev().find(|number| allowed.is_set(*number));
        let mut one = CpuSet::new();
        one.set(last.unwrap_or(0));
        confined.spread(&one)?;
        Ok(confined)
    }

    /// Sets the processors of every thread; threads that start later have those of the
    /// thread that starts them.
    fn spread(&self, processors: &CpuSet) -> Result<(), Failure> {
        for process in &self.processes {
            // A thread that starts while the first look goes on is there at the second.
            for _look in 0..2 {
                for thread in threads(*process)? {
                    match sched_setaffinity(Some(thread), processors) {
                        // Threads end as they like.
                        Ok(()) | Err(Errno::SRCH) => {}
                        Err(errno) => return Err(refused(errno)),
                    }
                }
            }
        }
        Ok(())
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        let _ = self.spread(&self.allowed);
    }
}

fn threads(process: u32) -> Result<Vec<Pid>, Failure> {
    let folder = PathBuf::from(format!("/proc/{process}/task"));
    let entries = fs::read_dir(&folder).map_err(Failure::file("list", &folder))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| Pid::from_raw(name.parse().ok()?)).collect())
}

fn refused(errno: Errno) -> Failure {
    Failure::Other(format!("the system does not let choose the processors of QEMU: {errno}"))
}
