//! Keeps the file systems of a guest frozen around an instant, and for no longer
//! than a limit: the debt to a guest that is frozen on our behalf.
//!
//! ```text
//!        freeze              release                    confirm
//!  idle ────────▶ frozen ──────────────▶ thaw asked for ────────▶ done
//!    │              │  the guest stands     it thaws in its first
//!    └── refused ───┤  still                moments
//!                   └── late ────────────────────────────────────▶ done
//! ```
//!
//! Whoever shares the channel thaws too: a watchdog is told before the freeze and
//! after the thaw.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::error::{Error, Result};

/// How long the answer to a thaw is waited for, and another one is tried.
const THAW_LIMIT: Duration = Duration::from_secs(5);

/// What a watchdog hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeNews {
    /// The guest is about to be frozen, for this long at most.
    Freezing(Duration),
    /// It is thawed.
    Thawed,
}

/// How to freeze.
pub struct FreezerParams {
    /// The agent, which has answered before.
    pub agent: Agent,
    /// How long the guest may be frozen.
    pub limit: Duration,
    /// Whether the capture fails without.
    pub is_required: bool,
    /// Who thaws if we do not.
    pub tell: Box<dyn Fn(FreezeNews) + Send + Sync>,
}

/// The file systems of one guest during one capture.
pub struct Freezer {
    limit: Duration,
    is_required: bool,
    tell: Box<dyn Fn(FreezeNews) + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    agent: Agent,
    phase: Phase,
    /// Why the guest may be frozen now, if it may.
    frozen_now: Option<String>,
    /// Whether it may have been at its instant.
    frozen_then: bool,
}

enum Phase {
    Idle,
    Frozen {
        since: Instant,
    },
    ThawAsked {
        since: Instant,
        in_time: bool,
    },
    /// Whether they were frozen at the instant, and why not.
    Done(Result<(), String>),
}

impl Freezer {
    /// Prepares to freeze, and does nothing yet.
    pub fn new(params: FreezerParams) -> Self {
        let FreezerParams { agent, limit, is_required, tell } = params;
        let phase = Phase::Idle;
        let state = Mutex::new(State { agent, phase, frozen_now: None, frozen_then: false });
        Self { limit, is_required, tell, state }
    }

    /// Returns whether the file systems were frozen at the instant, and why not.
    pub fn outcome(&self) -> Result<(), String> {
        match &self.lock().phase {
            Phase::Done(outcome) => outcome.clone(),
            _ => Err("they were not frozen in the end".to_owned()),
        }
    }

    /// Returns why the guest may be frozen still, if it may.
    pub fn may_be_frozen(&self) -> Option<String> {
        self.lock().frozen_now.clone()
    }

    /// Tells whether the guest may have been frozen at its instant, whatever its agent
    /// said of it: then it has to be thawed wherever it goes on from there.
    pub fn may_have_been_frozen(&self) -> bool {
        let state = self.lock();
        state.frozen_then || state.frozen_now.is_some()
    }

    /// Freezes them, while the guest runs. Fails only if that is required.
    pub(crate) fn freeze(&self) -> Result<()> {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Idle) {
            return Ok(());
        }
        let since = Instant::now();
        (self.tell)(FreezeNews::Freezing(self.limit));
        state.frozen_now = Some("it was not seen to thaw".to_owned());
        // What is left of the limit is for the instant.
        let failure = match state.agent.freeze(self.limit * 3 / 5) {
            Ok(0) => "the guest agent froze no file system".to_owned(),
            Ok(_) => {
                state.phase = Phase::Frozen { since };
                return Ok(());
            }
            Err(error) => error.to_string(),
        };
        // It may be frozen all the same.
        let _ = state.agent.ask_thaw();
        self.see_thawed(&mut state);
        self.fail(&mut state, failure)
    }

    /// Notes that it cannot be done.
    pub(crate) fn give_up(&self, why: &str) -> Result<()> {
        let mut state = self.lock();
        match state.phase {
            Phase::Idle => self.fail(&mut state, why.to_owned()),
            Phase::Frozen { .. } => {
                let _ = state.agent.ask_thaw();
                self.see_thawed(&mut state);
                self.fail(&mut state, why.to_owned())
            }
            Phase::ThawAsked { .. } | Phase::Done(_) => Ok(()),
        }
    }

    /// Tells whether the guest runs out of time before its instant.
    pub(crate) fn is_late(&self) -> bool {
        match self.lock().phase {
            Phase::Frozen { since } => since.elapsed() > self.limit * 4 / 5,
            _ => false,
        }
    }

    /// Tells whether a freeze is still to be tried.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.lock().phase, Phase::Idle)
    }

    /// Asks for the thaw. The guest stands still at its instant, and gets it when
    /// it runs; or the capture has failed.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        if let Phase::Frozen { since } = state.phase {
            // From the limit on, others may have thawed it.
            let in_time = since.elapsed() < self.limit;
            if let Err(error) = state.agent.ask_thaw() {
                tracing::warn!(%error, "the thaw could not be asked for");
            }
            state.phase = Phase::ThawAsked { since, in_time };
            state.frozen_then = true;
        }
    }

    /// Waits, while the guest runs again, until it is thawed; tries again if need be.
    pub(crate) fn confirm(&self) {
        let mut state = self.lock();
        let Phase::ThawAsked { since, in_time } = state.phase else { return };
        let outcome = match state.agent.thawed(THAW_LIMIT) {
            Ok(_) if !in_time => Err("the instant came too late".to_owned()),
            Ok(0) => Err("they were thawed before the instant".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        let thawed = self.see_thawed(&mut state);
        tracing::info!(frozen_ms = since.elapsed().as_millis(), thawed, "frozen and thawed");
        state.phase = Phase::Done(outcome);
    }

    /// Looks whether all is thawed, and thaws it if not. If the agent does not
    /// answer, the thaw that was asked for is still on its way, and the watchdog
    /// asks again.
    fn see_thawed(&self, state: &mut State) -> bool {
        let seen = state.agent.see_thawed(THAW_LIMIT);
        if seen.is_ok() {
            (self.tell)(FreezeNews::Thawed);
        }
        state.frozen_now = seen.err().map(|error| error.to_string());
        state.frozen_now.is_none()
    }

    fn fail(&self, state: &mut State, why: String) -> Result<()> {
        state.phase = Phase::Done(Err(why.clone()));
        match self.is_required {
            true => Err(Error::unsupported(format!(
                "the file systems of the guest could not be frozen: {why}"
            ))),
            false => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
