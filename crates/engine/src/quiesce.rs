//! Whether the file systems of a guest are frozen around the instant of a take:
//! who is asked, and who thaws them if we do not.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tintype_types::VmName;
use tintype_vm::{Agent, AgentChannel, FreezeNews, Freezer, FreezerParams, Guest};

use crate::Engine;
use crate::error::{Error, Result};
use crate::vms::LeasedVm;
use crate::watchdog::Watchdog;

/// How long an agent may take until it is known whether it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// How long one may that has to.
const REQUIRED_ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest that runs again may take to thaw.
const THAW_LIMIT: Duration = Duration::from_secs(10);

/// Whether the guest's file systems are frozen around the instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quiesce {
    /// If the guest's agent answers at once.
    Auto,
    /// Or no snapshot is taken.
    Require,
    /// No.
    #[default]
    Off,
}

/// How the guest's file systems are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuiesceParams {
    /// Whether.
    pub mode: Quiesce,
    /// For how long at most.
    pub limit: Duration,
}

impl Default for QuiesceParams {
    fn default() -> Self {
        Self { mode: Quiesce::Off, limit: Duration::from_secs(10) }
    }
}

/// What a snapshot says of the guest's file systems at its instant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quiesced {
    /// Whether they were frozen: then the guest has to be thawed wherever it runs on.
    pub frozen: bool,
    /// By whom, or why not.
    pub why: String,
    /// Whether they may have been, though that is not known.
    #[serde(default, skip_serializing_if = "is_false")]
    pub doubtful: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Quiesced {
    pub(crate) fn not(why: impl Into<String>) -> Self {
        Self { frozen: false, why: why.into(), doubtful: false }
    }

    /// Tells whether a guest that goes on from the instant has to be thawed.
    pub(crate) fn needs_thaw(&self) -> bool {
        self.frozen || self.doubtful
    }

    /// Returns the consistency of the disks by themselves, as the contract has it.
    pub fn consistency(&self) -> &'static str {
        if self.frozen { "filesystem" } else { "crash" }
    }
}

/// An agent that answers, or why there is none.
pub(crate) type AgentOrWhy = Result<Agent, String>;

impl Engine {
    /// Looks for the agent of a guest. Nothing is changed yet.
    pub(crate) fn find_agent(
        &self,
        guest: &mut Guest,
        params: &QuiesceParams,
    ) -> Result<AgentOrWhy> {
        let (channel, state) = match params.mode {
            Quiesce::Off => return Ok(Err("it was not asked for".to_owned())),
            Quiesce::Auto | Quiesce::Require => {
                let state = guest.run_state().map_err(Error::step("cannot look at the guest"))?;
                let channel = guest.agent_channel();
                (channel.map_err(Error::step("cannot look for the guest agent"))?, state)
            }
        };
        let has_channel = channel != AgentChannel::None;
        let found = match channel {
            _ if state != "running" => Err("the guest stood still already".to_owned()),
            AgentChannel::None => Err("the VM has no channel to a guest agent".to_owned()),
            AgentChannel::Unusable(why) => Err(why),
            AgentChannel::Socket(path) => {
                let limit = match params.mode {
                    Quiesce::Require => REQUIRED_ANSWER_LIMIT,
                    Quiesce::Auto | Quiesce::Off => ANSWER_LIMIT,
                };
                let greeted = Agent::connect(&path).and_then(|agent| greet(agent, limit));
                greeted.map_err(|error| error.to_string())
            }
        };
        match (&found, params.mode) {
            (Err(why), Quiesce::Require) => Err(cannot_quiesce(why)),
            (Err(why), _) => {
                if has_channel {
                    self.tell_not_quiesced(why);
                }
                Ok(found)
            }
            (Ok(_), _) => Ok(found),
        }
    }

    /// Makes what freezes the guest, with a watchdog that thaws it if we do not.
    pub(crate) fn freezer(
        &self,
        agent: AgentOrWhy,
        params: &QuiesceParams,
        watchdog: &Watchdog,
    ) -> Result<Result<Freezer, String>> {
        let is_required = params.mode == Quiesce::Require;
        let with_watchdog = agent.and_then(|agent| match watchdog.pipe() {
            Some(pipe) => Ok((agent, pipe)),
            None => Err("there is no watchdog process to thaw it".to_owned()),
        });
        match with_watchdog {
            Ok((agent, pipe)) => Ok(Ok(Freezer::new(FreezerParams {
                agent,
                limit: params.limit,
                is_required,
                tell: Box::new(move |news| match news {
                    FreezeNews::Freezing(limit) => pipe.will_freeze(limit),
                    FreezeNews::Thawed => pipe.has_thawed(),
                }),
            }))),
            Err(why) if is_required => Err(cannot_quiesce(&why)),
            Err(why) => Ok(Err(why)),
        }
    }

    /// Returns what a snapshot says of itself. Fails if they had to be frozen and were not.
    pub(crate) fn quiesced(
        &self,
        freezer: &Result<Freezer, String>,
        mode: Quiesce,
    ) -> Result<Quiesced> {
        let freezer = match freezer {
            Ok(freezer) => freezer,
            Err(why) => return Ok(Quiesced::not(why)),
        };
        match freezer.outcome() {
            Ok(()) => {
                let why = "frozen by the guest agent".to_owned();
                Ok(Quiesced { frozen: true, why, doubtful: false })
            }
            Err(why) if mode == Quiesce::Require => Err(cannot_quiesce(&why)),
            Err(why) => {
                self.tell_not_quiesced(&why);
                let doubtful = freezer.may_have_been_frozen();
                Ok(Quiesced { doubtful, ..Quiesced::not(why) })
            }
        }
    }

    /// Says so if a guest may be frozen still, and what ends that.
    pub(crate) fn tell_if_frozen(&self, vm: &VmName, freezer: &Result<Freezer, String>) {
        if let Some(why) = freezer.as_ref().ok().and_then(Freezer::may_be_frozen) {
            self.tell_may_be_frozen(vm, &why);
        }
    }

    fn tell_may_be_frozen(&self, vm: &VmName, why: &str) {
        self.config.observer.notice(&format!(
            "the file systems of `{vm}` may still be frozen: {why}; `fsfreeze -u` in the guest, or its restart, ends that"
        ));
    }

    fn tell_not_quiesced(&self, why: &str) {
        self.config.observer.notice(&format!("the guest's file systems are not frozen: {why}"));
    }

    /// Asks for the thaw of a guest that a killed take may have frozen. It gets
    /// that when it runs; [`Self::see_thawed`] looks afterwards.
    pub(crate) fn ask_thaw(&self, vm: &LeasedVm) -> Result<Agent, String> {
        let inherited = self.inherited.lock().ok().and_then(|mut inherited| inherited.take());
        let mut agent = match inherited {
            Some(agent) => agent,
            None => {
                let channel = vm.connect().map_err(|error| error.to_string())?.agent_channel();
                match channel.map_err(|error| error.to_string())? {
                    AgentChannel::Socket(path) => {
                        Agent::connect(&path).map_err(|error| error.to_string())?
                    }
                    AgentChannel::Unusable(why) => return Err(why),
                    AgentChannel::None => return Err("its channel is gone".to_owned()),
                }
            }
        };
        agent.ask_thaw().map_err(|error| error.to_string())?;
        Ok(agent)
    }

    /// Looks that a guest is thawed, and says so if that is not known.
    pub(crate) fn see_thawed(&self, vm: &VmName, agent: Result<Agent, String>) {
        let thawed =
            agent.and_then(|mut agent| agent.see_thawed(THAW_LIMIT).map_err(|e| e.to_string()));
        if let Err(why) = thawed {
            self.tell_may_be_frozen(vm, &why);
        }
    }
}

/// Finds out whether an agent answers, and that nobody else has frozen the guest.
fn greet(mut agent: Agent, limit: Duration) -> Result<Agent, tintype_vm::Error> {
    agent.sync(limit)?;
    if agent.is_frozen(limit)? {
        return Err(tintype_vm::Error::unsupported("somebody else has frozen them already"));
    }
    Ok(agent)
}

fn cannot_quiesce(why: &str) -> Error {
    Error::refused("the guest's file systems cannot be frozen")
        .because(why.to_owned())
        .hint("--quiesce auto takes the snapshot all the same")
}
