//! What this QEMU can do for a capture: asked of QEMU itself, never guessed
//! from its version.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::inventory::array;
use crate::qmp::Qmp;

/// What one QEMU can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// Disks can be kept at an instant without a risk for the guest's writes
    /// (`copy-before-write` with `on-cbw-error` and `cbw-timeout`,
    /// `snapshot-access`; QEMU 7.1); if not, why.
    pub disk_snapshots: Result<(), String>,
    /// Memory can be saved in passes while the guest runs, and nothing that it
    /// writes meanwhile is lost; if not, why.
    pub iterating: Result<(), String>,
    /// Memory can be saved by write protection while the guest runs; if not,
    /// QEMU's reason.
    pub copy_on_write: Result<(), String>,
    /// The VM has an I/O thread, which makes every pause a small risk for the disks in
    /// it, whoever pauses: QEMU since 8.2 puts off the interrupts of finished requests
    /// (`virtio_notify_irqfd` in hw/virtio/virtio.c) and does not wait for them when it
    /// stops. Seen on 10.0 by `stop` and `cont` alone.
    pub io_threads: bool,
    /// Disks can be taken back after a migration by a command of its own
    /// (`blockdev-set-active`, QEMU 10.0).
    pub set_active: bool,
    /// Guests can be loaded lazily (`postcopy-ram`); if not, QEMU's reason.
    pub lazy_load: Result<(), String>,
}

impl Abilities {
    /// Asks QEMU. Capabilities are tried and put back.
    pub fn ask(qmp: &mut Qmp) -> Result<Self> {
        let schema = Schema::ask(qmp)?;
        Ok(Self {
            disk_snapshots: disk_snapshots(qmp, &schema)?,
            iterating: iterating(qmp, &schema)?,
            copy_on_write: try_capability(qmp, &schema, "background-snapshot")?,
            io_threads: has_io_threads(qmp)?,
            set_active: schema.names.contains("blockdev-set-active"),
            lazy_load: try_capability(qmp, &schema, "postcopy-ram")?,
        })
    }

    /// Refuses a QEMU that cannot copy disks without a risk for the guest.
    pub fn require_disk_snapshots(&self) -> Result<()> {
        self.disk_snapshots.clone().map_err(Error::unsupported)
    }
}

fn disk_snapshots(qmp: &mut Qmp, schema: &Schema) -> Result<Result<(), String>> {
    let knows = |name: &&str| schema.names.contains(*name);
    if !["snapshot-access", "on-cbw-error", "cbw-timeout"].iter().all(knows) {
        return Ok(Err("this QEMU cannot keep a disk at an instant without a risk for the guest's writes; QEMU 7.1 or newer can".to_owned()));
    }
    // A client that leaves an export in an I/O thread ends the whole QEMU, and the
    // guest with it: `nbd_blockdev_client_closed` in blockdev-nbd.c insists on the
    // main thread. Seen with 7.2 and not with 10.0, which a command tells apart.
    if knows(&"blockdev-set-active") || !has_io_threads(qmp)? {
        return Ok(Ok(()));
    }
    Ok(Err("the VM has an I/O thread, and a disk in one cannot be read from outside without the danger that this QEMU ends; QEMU 10.0 or newer can".to_owned()))
}

fn has_io_threads(qmp: &mut Qmp) -> Result<bool> {
    Ok(!array(qmp.execute("query-iothreads", json!({}))?)?.is_empty())
}

/// Before 9.0 QEMU clears the marks of what was written and lets an emulated guest's
/// processors go on with translations that are taken to be marked already, so writes
/// are missed (fixed by commit 03bfc2188f in include/exec/ram_addr.h). Guests with two
/// processors have been seen to break so, after one revert or four. No command tells
/// the fix; the capability `mapped-ram` came with the same release.
fn iterating(qmp: &mut Qmp, schema: &Schema) -> Result<Result<(), String>> {
    let is_virtualized = qmp.execute("query-kvm", json!({}))?["enabled"] == true;
    if is_virtualized || schema.names.contains("mapped-ram") {
        return Ok(Ok(()));
    }
    Ok(Err("this QEMU can miss what an emulated guest writes to memory that is saved in passes; QEMU 9.0 or newer, or KVM, does not".to_owned()))
}

/// The names in QEMU's schema: commands, members of objects, values of enums.
struct Schema {
    names: BTreeSet<String>,
}

impl Schema {
    fn ask(qmp: &mut Qmp) -> Result<Self> {
        let mut names = BTreeSet::new();
        for entry in array(qmp.execute("query-qmp-schema", json!({}))?)? {
            match entry["meta-type"].as_str() {
                Some("command") => names.extend(entry["name"].as_str().map(str::to_owned)),
                Some("enum") => {
                    names.extend(strings(&entry["values"]));
                }
                Some("object") => {
                    let members = entry["members"].as_array().into_iter().flatten();
                    names.extend(
                        members.filter_map(|member| member["name"].as_str().map(str::to_owned)),
                    );
                }
                _ => {}
            }
        }
        Ok(Self { names })
    }
}

fn strings(list: &Value) -> impl Iterator<Item = String> {
    list.as_array().into_iter().flatten().filter_map(|value| value.as_str().map(str::to_owned))
}

/// Turns a capability on and off again; QEMU checks the host when it turns on.
fn try_capability(qmp: &mut Qmp, schema: &Schema, name: &str) -> Result<Result<(), String>> {
    if !schema.names.contains(name) {
        return Ok(Err(format!("this QEMU does not know `{name}`")));
    }
    let before = array(qmp.execute("query-migrate-capabilities", json!({}))?)?;
    let is_on = |entry: &&Value| entry["state"].as_bool().unwrap_or_default();
    let on = before.iter().filter(is_on).filter_map(|entry| entry["capability"].as_str());
    let states = |names: &[&str], state: bool| {
        let entries: Vec<_> =
            names.iter().map(|n| json!({"capability": n, "state": state})).collect();
        json!({"capabilities": entries})
    };
    let on: Vec<&str> = on.collect();
    let off = states(&on, false);
    qmp.execute("migrate-set-capabilities", off)?;
    let tried = qmp.execute("migrate-set-capabilities", states(&[name], true));
    qmp.execute("migrate-set-capabilities", states(&[name], false))?;
    qmp.execute("migrate-set-capabilities", states(&on, true))?;
    match tried {
        Ok(_) => Ok(Ok(())),
        Err(Error::Refused { description, .. }) => Ok(Err(description)),
        Err(error) => Err(error),
    }
}
