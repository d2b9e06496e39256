//! How the engine tells its front end what is going on. It prints nothing itself.

use tintype_types::ByteCount;
use zeroize::Zeroizing;

/// The steps of a take, of a revert, of a stop, of a clone, of a start, of a page server, of
/// a disk server, of an import, of a copy, of a deletion and of an undo, in order. A test can
/// hold or kill the process at each; a front end can show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it, and `docs/faults.md` explains each")]
pub enum Step {
    TakeLease,
    TakeIntent,
    TakePreflight,
    TakeMerged,
    TakeTakenOver,
    TakeFrozen,
    TakeInstant,
    TakeResumed,
    TakeThawed,
    TakeDisksRead,
    TakeMemoryRead,
    TakeStored,
    TakeCommitted,
    TakeForgotten,
    RevertLease,
    RevertVerified,
    RevertSafety,
    RevertIntent,
    RevertStopped,
    RevertBlocks,
    RevertFlushed,
    RevertStarted,
    RevertLoaded,
    RevertLineage,
    RevertRunning,
    RevertForgotten,
    StopIntent,
    StopStored,
    StopPressed,
    StopEnded,
    CloneIntent,
    CloneFilled,
    CloneLoaded,
    CloneRunning,
    StartLaunched,
    LoadBegun,
    LoadHalfway,
    LoadSent,
    LoadForgotten,
    FillBegun,
    FillHalfway,
    FillForgotten,
    ImportStored,
    ImportCommitted,
    CopyPart,
    CopyCommitted,
    Deleted,
    UndoChosen,
    UndoDone,
}

impl Step {
    /// All steps, in order.
    pub const ALL: [Self; 49] = [
        Self::TakeLease,
        Self::TakeIntent,
        Self::TakePreflight,
        Self::TakeMerged,
        Self::TakeTakenOver,
        Self::TakeFrozen,
        Self::TakeInstant,
        Self::TakeResumed,
        Self::TakeThawed,
        Self::TakeDisksRead,
        Self::TakeMemoryRead,
        Self::TakeStored,
        Self::TakeCommitted,
        Self::TakeForgotten,
        Self::RevertLease,
        Self::RevertVerified,
        Self::RevertSafety,
        Self::RevertIntent,
        Self::RevertStopped,
        Self::RevertBlocks,
        Self::RevertFlushed,
        Self::RevertStarted,
        Self::RevertLoaded,
        Self::RevertLineage,
        Self::RevertRunning,
        Self::RevertForgotten,
        Self::StopIntent,
        Self::StopStored,
        Self::StopPressed,
        Self::StopEnded,
        Self::CloneIntent,
        Self::CloneFilled,
        Self::CloneLoaded,
        Self::CloneRunning,
        Self::StartLaunched,
        Self::LoadBegun,
        Self::LoadHalfway,
        Self::LoadSent,
        Self::LoadForgotten,
        Self::FillBegun,
        Self::FillHalfway,
        Self::FillForgotten,
        Self::ImportStored,
        Self::ImportCommitted,
        Self::CopyPart,
        Self::CopyCommitted,
        Self::Deleted,
        Self::UndoChosen,
        Self::UndoDone,
    ];

    /// Returns its name: `take-instant`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}

/// How far long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done: `verifying`.
    pub activity: &'static str,
    /// How much is done.
    pub done: ByteCount,
    /// How much there is, if that is known.
    pub total: Option<ByteCount>,
}

/// Hears what is going on. Called from any thread; returns at once.
pub trait Observer: Send + Sync {
    /// A step has been reached.
    fn step(&self, _step: Step) {}

    /// Something that the user should know, as a sentence.
    fn notice(&self, _sentence: &str) {}

    /// Long work has come further.
    fn progress(&self, _progress: Progress) {}

    /// Asks the user for a passphrase; `None` if there is nobody to ask. The only
    /// call that waits.
    fn ask_passphrase(&self, _question: &str) -> Option<Zeroizing<String>> {
        None
    }
}

/// Hears nothing.
#[derive(Debug, Default)]
pub struct Silence;

impl Observer for Silence {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_readable_names() {
        assert_eq!(Step::TakeDisksRead.name(), "take-disks-read");
    }
}
