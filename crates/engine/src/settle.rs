//! What a guest needs that runs on from an earlier instant: it is thawed, if it
//! was frozen then, and its clock is set, through its own agent.

use std::time::Duration;

use jiff::Timestamp;
use tintype_vm::{Agent, AgentChannel, Guest};

use crate::Engine;
use crate::details::Snapshot;

/// How long a guest is waited for whose clock is to be set.
const CLOCK_LIMIT: Duration = Duration::from_secs(5);

/// How long one is that was frozen: it can write nothing before.
const THAW_LIMIT: Duration = Duration::from_secs(20);

impl Engine {
    /// Settles a guest that has just begun to run. Returns what became of its clock,
    /// as a sentence; that it may still be frozen is told at once.
    pub(crate) fn settle(&self, guest: &mut Guest, target: &Snapshot) -> String {
        if target.details.memory.is_empty() || !target.details.was_running {
            return "not set: the guest does not run on".to_owned();
        }
        let frozen = target.details.quiesced.needs_thaw();
        match settled(guest, frozen) {
            Ok(()) => "set by the guest agent".to_owned(),
            Err(Unsettled::Clock(why)) => format!("not set: {why}"),
            Err(Unsettled::Frozen(why)) => {
                self.config.observer.notice(&format!(
                    "the guest was frozen when this snapshot was taken, or may have been, and cannot be thawed: {why}; `fsfreeze -u` in the guest, or guest-fsfreeze-thaw by its agent, does that"
                ));
                format!("not set: {why}")
            }
        }
    }
}

/// What could not be done, and why.
enum Unsettled {
    Frozen(String),
    Clock(String),
}

fn settled(guest: &mut Guest, frozen: bool) -> Result<(), Unsettled> {
    let fail = |why: String| if frozen { Unsettled::Frozen(why) } else { Unsettled::Clock(why) };
    let mut agent = match guest.agent_channel() {
        Ok(AgentChannel::Socket(path)) => Agent::connect(&path).map_err(|e| fail(e.to_string()))?,
        Ok(AgentChannel::Unusable(why)) => return Err(fail(why)),
        Ok(AgentChannel::None) => return Err(fail("there is no guest agent".to_owned())),
        Err(error) => return Err(fail(error.to_string())),
    };
    if frozen {
        agent.see_thawed(THAW_LIMIT).map_err(|error| fail(error.to_string()))?;
    }
    let clock = |error: tintype_vm::Error| Unsettled::Clock(error.to_string());
    agent.sync(CLOCK_LIMIT).map_err(clock)?;
    let now = i64::try_from(Timestamp::now().as_nanosecond())
        .map_err(|_| Unsettled::Clock("the clock of this machine is centuries off".to_owned()))?;
    agent.set_time(now, CLOCK_LIMIT).map_err(clock)
}
