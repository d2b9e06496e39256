//! Errors as people meet them: what failed, why, what state things are in, and
//! what to type next.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

use tintype_types::VmName;

/// A result whose error is this room's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do when something of the repository is damaged.
pub(crate) const DAMAGE_HINT: &str = "`tintype verify --read-data` lists what is damaged and what that costs, `tintype repair` mends what it can";

/// What to do when the place of the repository is full.
pub(crate) const FULL_HINT: &str = "`tintype gc --now` frees what is deleted (`tintype log --deleted` lists it); `tintype prune` or `rm` delete more";

/// The stable kinds of [`Error`]; front ends choose their exit code by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request cannot be done as it was put: a name that nobody has.
    Invalid,
    /// The request failed.
    Failed,
    /// The request was refused to protect data.
    Refused,
    /// The caller asked to stop.
    Interrupted,
    /// tintype is at fault.
    Bug,
}

/// An error of this room. `Display` says what failed; the chain of sources, why.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    state: Option<String>,
    hint: Option<String>,
}

impl Error {
    /// Makes an error of what failed.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None, state: None, hint: None }
    }

    /// Makes an error of a request that cannot be done as it was put.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, what)
    }

    /// Makes an error of a request that failed.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, what)
    }

    /// Makes an error of a request that was refused to protect data.
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, what)
    }

    /// Adds why. Of an error of this room it takes over what to do about it, and
    /// that it is an interruption.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = source.into();
        if let Some(own) = source.downcast_ref::<Self>() {
            if own.kind == ErrorKind::Interrupted {
                self.kind = own.kind;
            }
            self.state = self.state.or_else(|| own.state.clone());
            self.hint = self.hint.or_else(|| own.hint.clone());
        }
        let vm = source.downcast_ref::<tintype_vm::Error>().map(tintype_vm::Error::kind);
        let repository =
            source.downcast_ref::<tintype_repo::Error>().map(tintype_repo::Error::kind);
        if vm == Some(tintype_vm::ErrorKind::Cancelled)
            || repository == Some(tintype_repo::Kind::Interrupted)
        {
            self.kind = ErrorKind::Interrupted;
        }
        if repository == Some(tintype_repo::Kind::Damaged) {
            self.hint.get_or_insert_with(|| DAMAGE_HINT.to_owned());
        }
        if repository == Some(tintype_repo::Kind::NoSpace) {
            self.hint.get_or_insert_with(|| FULL_HINT.to_owned());
        }
        self.source = Some(source);
        self
    }

    /// Adds the state that things are in now.
    #[must_use]
    pub fn state(mut self, state: impl Into<String>) -> Self {
        self.state = Some(state.into());
        self
    }

    /// Adds what to type next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the state that things are in now, if whoever failed did not know it.
    #[must_use]
    pub(crate) fn state_unless_known(mut self, state: &str) -> Self {
        self.state.get_or_insert_with(|| state.to_owned());
        self
    }

    /// Adds what to type next, if whoever failed did not know it.
    #[must_use]
    pub(crate) fn hint_unless_known(mut self, hint: String) -> Self {
        self.hint.get_or_insert(hint);
        self
    }

    /// Adds what to type next, if it is a full file system that failed us.
    #[must_use]
    pub(crate) fn hint_if_full(self) -> Self {
        let mut cause = self.source();
        while let Some(source) = cause {
            let kind = source.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if kind == Some(std::io::ErrorKind::StorageFull) {
                return self.hint("make room there, as `tintype gc --now` does for what is deleted, or give a repository in a larger place with --repo");
            }
            cause = source.source();
        }
        self
    }

    /// Returns the stable kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the state that things are in now, as a sentence.
    pub fn state_now(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Returns what failed and why, in one line.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }

    /// Returns what to type next, as a sentence.
    pub fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Adapts an I/O error at a path: `.map_err(Error::io("write", path))`.
    pub(crate) fn io(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let what = format!("cannot {verb} {}", path.display());
        move |source| Self::failed(what).because(source)
    }

    /// Adapts any error of a step that changed nothing.
    pub(crate) fn step<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        let what = what.into();
        move |source| Self::failed(what).because(source)
    }

    pub(crate) fn no_such_vm(name: &VmName) -> Self {
        Self::invalid(format!("there is no VM `{name}`")).state("nothing was changed").hint(
            "`tintype vm list` shows the VMs; `tintype vm run` and `tintype vm add` register one",
        )
    }
}

impl From<tintype_vm::Error> for Error {
    /// For what QEMU does as one step of something larger.
    fn from(error: tintype_vm::Error) -> Self {
        Self::failed("QEMU did not do its part").because(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
