//! Ending what died: sessions whose process is gone.
//!
//! Order: the outcome first (it fences the session), then its segments, then
//! its slot. Killed anywhere in between, the next open goes on.
//!
//! The outcome goes last where nothing of the session can come any more. Where
//! a put may arrive late, or the session's host may have been suspended, it
//! stays for ever: a commit that finds the place free would be of a snapshot
//! whose segments are gone.

use std::collections::HashSet;
use std::time::Duration;

use tintype_types::SnapshotId;

use crate::Error;
use crate::gone;
use crate::index;
use crate::pointer::segment_prefix;
use crate::record::{MAX_OUTCOME, Outcome, outcome_key};
use crate::slot;
use crate::store::{Holder, Put};
use crate::supervisor::Supervisor;
use crate::vault::Vault;

/// Ends all sessions whose process has surely died.
pub(crate) fn end_dead_sessions(vault: &Vault) -> Result<(), Error> {
    vault.store.sweep()?;
    for registered in slot::list(vault)? {
        if vault.store.holder(&registered.key)? == Holder::Gone {
            end(vault, registered.session, &registered.key)?;
        }
    }
    Ok(())
}

/// Watches all slots until it is known of each whether its holder lives. That
/// takes no time where locks say so, and minutes where heartbeats do.
pub(crate) fn watch_sessions(vault: &Vault, supervisor: &dyn Supervisor) -> Result<(), Error> {
    let keys = || Ok(slot::list(vault)?.into_iter().map(|registered| registered.key).collect());
    let mut watched: HashSet<String> = keys()?;
    loop {
        let there: HashSet<String> = keys()?;
        let mut wait: Option<(Duration, Duration)> = None;
        for key in watched.clone().intersection(&there) {
            match vault.store.holder(key)? {
                Holder::Unsure { look_again, at_most } => {
                    let so_far = wait.unwrap_or_default();
                    wait = Some((so_far.0.max(look_again), so_far.1.max(at_most)));
                }
                Holder::Alive | Holder::Gone => _ = watched.remove(key),
            }
        }
        match wait {
            Some((look_again, at_most)) => {
                supervisor.waits(watched.len(), at_most);
                supervisor.pause(look_again, |time| vault.store.wait(time))?;
            }
            None => return Ok(()),
        }
    }
}

/// Ends one session, whose process has died or gives it up.
pub(crate) fn end(vault: &Vault, session: SnapshotId, slot: &str) -> Result<(), Error> {
    let key = outcome_key(session);
    let aborted = Outcome::Aborted.encode(&vault.keys, vault.id, &key);
    let is_aborted = match vault.store.put_if_absent(&key, &aborted)? {
        Put::Created => true,
        // A damaged outcome may be that of a committed snapshot: keep all. One
        // that is gone by now was that of a session ended by another process.
        Put::Existed => match vault.store.get(&key, MAX_OUTCOME) {
            Ok(outcome) => outcome == aborted,
            Err(Error::NotFound(_)) => false,
            Err(error) => return Err(error),
        },
    };
    // A slot that arrives late may be of a session that was committed, deleted and
    // collected since. Others may need its segments.
    let was_committed = is_aborted && gone::is_known(vault, session)?;
    if is_aborted && !was_committed {
        tracing::info!(%session, "removing what a dead session left");
        vault.store.delete(&index::key(session))?;
        for segment in vault.store.list(&segment_prefix(session))? {
            vault.store.delete(&segment.key)?;
        }
    }
    vault.store.delete(slot)?;
    if is_aborted && !vault.store.has_late_writes() { vault.store.delete(&key) } else { Ok(()) }
}
