//! What the guest does between two snapshots: a database grows and changes, files are
//! installed, changed and removed. Nothing leaves the guest.

use super::super::guest::Subject;
use crate::failure::Failure;

/// Lets the guest work.
pub(super) fn step(subject: &mut Subject, step: u32) -> Result<(), Failure> {
    let first = step * 20_000 + 1;
    let last = first + 19_999;
    let commands = [
        format!(
            "sqlite3 /var/tmp/data.db \"CREATE TABLE IF NOT EXISTS t(k INTEGER PRIMARY KEY, a TEXT); \
             WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i+1 FROM n WHERE i < {last}) \
             INSERT INTO t SELECT i, hex(randomblob(40)) FROM n; \
             UPDATE t SET a = hex(randomblob(40)) WHERE k % 97 = {}\"",
            step % 97
        ),
        // A package comes, and the one before the last goes.
        format!(
            "mkdir -p /opt/p{step} && cp -r /usr/share/perl5 /usr/lib/python3 /opt/p{step}/ 2>/dev/null; true"
        ),
        format!("head -c 2000000 /dev/urandom > /opt/p{step}/data"),
        format!("rm -rf /opt/p{}", step.wrapping_sub(2)),
        format!("cat /opt/p{step}/data >> /var/log/work.log"),
        "sync".to_owned(),
    ];
    commands.iter().try_for_each(|command| subject.in_guest(command).map(drop))
}
