//! What a guest shows of itself to QEMU, looked at again and again: whether it goes
//! on, without a word from inside.

use serde_json::json;
use tintype_types::ByteCount;

use crate::error::Result;
use crate::guest::Guest;
use crate::inventory::array;
use crate::pause;
use crate::qmp::Qmp;

/// Events that say how a guest fares.
const EVENTS: [&str; 6] =
    ["GUEST_PANICKED", "GUEST_CRASHLOADED", "RESET", "SHUTDOWN", "BLOCK_IO_ERROR", "WATCHDOG"];

/// What the processors are like (QEMU `hmp-commands-info.hx`): their registers, the
/// timer of the first one, and how many interrupts there were. Of machines other
/// than x86 there are the first ones alone.
const PROCESSORS: [&str; 3] = ["info registers -a", "info lapic", "info irq"];

/// What a guest shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signs {
    /// The state in QEMU's words.
    pub state: String,
    /// What it has read from its disks since QEMU started.
    pub read_bytes: ByteCount,
    /// What it has written to them.
    pub written_bytes: ByteCount,
    /// Registers, timers and interrupts as text: a guest whose processors go on shows
    /// another one each time.
    pub processors: String,
    /// The names of QEMU's events since the last look, such as `GUEST_PANICKED`.
    pub events: Vec<String>,
}

impl Guest {
    /// Looks at a guest.
    pub fn signs(&mut self) -> Result<Signs> {
        let state = pause::run_state(&mut self.qmp)?;
        let mut signs = Signs {
            state,
            read_bytes: ByteCount(0),
            written_bytes: ByteCount(0),
            processors: processors(&mut self.qmp)?,
            events: Vec::new(),
        };
        for device in array(self.qmp.execute("query-blockstats", json!({}))?)? {
            let bytes = |key: &str| device["stats"][key].as_u64().unwrap_or_default();
            signs.read_bytes.0 = signs.read_bytes.0.saturating_add(bytes("rd_bytes"));
            signs.written_bytes.0 = signs.written_bytes.0.saturating_add(bytes("wr_bytes"));
        }
        while let Some(event) = self.qmp.take_event(|event| EVENTS.contains(&event.name.as_str())) {
            signs.events.push(event.name);
        }
        Ok(signs)
    }
}

fn processors(qmp: &mut Qmp) -> Result<String> {
    let mut text = String::new();
    for line in PROCESSORS {
        let shown = qmp.execute("human-monitor-command", json!({"command-line": line}))?;
        text.push_str(shown.as_str().unwrap_or_default());
    }
    Ok(text)
}
