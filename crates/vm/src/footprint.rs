//! What a take changes in a QEMU, written down before it is done, so that
//! whoever comes next can take it back: this process, or the next one after a
//! kill -9.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::bitmaps::remove_frozen;
use crate::error::{Error, Result};
use crate::inventory::{Disk, PREFIX, array, device_path};
use crate::pause::{cancel_migration, ensure_running, run_state};
use crate::process::ProcessId;
use crate::qmp::Qmp;

/// The migration parameters that a take sets.
const PARAMETERS: [&str; 2] = ["max-bandwidth", "downtime-limit"];

/// What a QEMU was like before a take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// The process; in another one there is nothing to take back.
    pub process: ProcessId,
    /// Whether the guest ran.
    was_running: bool,
    /// The capabilities that were on.
    capabilities: Vec<String>,
    /// The migration parameters, as they were.
    parameters: Map<String, Value>,
    /// The disks that get a filter, with the node that belongs under the device.
    disks: Vec<FilteredDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FilteredDisk {
    device: String,
    node: String,
}

impl Footprint {
    /// Looks at a QEMU before the first change.
    pub(crate) fn before(qmp: &mut Qmp, process: ProcessId, disks: &[Disk]) -> Result<Self> {
        let capabilities = array(qmp.execute("query-migrate-capabilities", json!({}))?)?;
        let mut parameters = match qmp.execute("query-migrate-parameters", json!({}))? {
            Value::Object(parameters) => parameters,
            _ => return Err(Error::protocol("parameters that are no object")),
        };
        parameters.retain(|name, _| PARAMETERS.contains(&name.as_str()));
        Ok(Self {
            process,
            was_running: run_state(qmp)? == "running",
            capabilities: capabilities
                .iter()
                .filter(|entry| entry["state"].as_bool().unwrap_or_default())
                .filter_map(|entry| entry["capability"].as_str().map(str::to_owned))
                .collect(),
            parameters,
            disks: disks
                .iter()
                .map(|disk| FilteredDisk { device: disk.device.clone(), node: disk.node.clone() })
                .collect(),
        })
    }

    /// Takes everything back: the guest runs first, then all else goes. Can be
    /// called at any moment of a take, and again after it was interrupted.
    pub fn erase(&self, qmp: &mut Qmp) -> Result<()> {
        cancel_migration(qmp)?;
        if self.was_running {
            ensure_running(qmp)?;
        }
        remove_exports(qmp)?;
        // Whoever uses a filter makes it forbid writes beside it, so that the
        // device could not be given its own node back.
        remove_nodes(qmp, &format!("{PREFIX}instant"))?;
        self.remove_filters(qmp)?;
        remove_nodes(qmp, PREFIX)?;
        remove_frozen(qmp)?;
        self.restore_settings(qmp)
    }

    /// Sets exactly these capabilities, for one migration.
    pub(crate) fn set_capabilities(qmp: &mut Qmp, wanted: &[&str]) -> Result<()> {
        let known = array(qmp.execute("query-migrate-capabilities", json!({}))?)?;
        let mut states = Vec::new();
        // Off before on: some exclude each other.
        for entry in &known {
            let Some(name) = entry["capability"].as_str() else { continue };
            if entry["state"].as_bool().unwrap_or_default() && !wanted.contains(&name) {
                states.push(json!({"capability": name, "state": false}));
            }
        }
        states.extend(wanted.iter().map(|name| json!({"capability": name, "state": true})));
        qmp.execute("migrate-set-capabilities", json!({"capabilities": states})).map(drop)
    }

    fn remove_filters(&self, qmp: &mut Qmp) -> Result<()> {
        let drives = array(qmp.execute("query-block", json!({}))?)?;
        for disk in &self.disks {
            let node_now = drives
                .iter()
                .find(|drive| device_path(drive).as_deref() == Some(&disk.device))
                .and_then(|drive| drive["inserted"]["node-name"].as_str());
            if node_now.is_some_and(|node| node.starts_with(PREFIX)) {
                let back = json!({"path": disk.device, "property": "drive", "value": disk.node});
                qmp.execute("qom-set", back)?;
            }
        }
        Ok(())
    }

    fn restore_settings(&self, qmp: &mut Qmp) -> Result<()> {
        let wanted: Vec<&str> = self.capabilities.iter().map(String::as_str).collect();
        Self::set_capabilities(qmp, &wanted)?;
        qmp.execute("migrate-set-parameters", Value::Object(self.parameters.clone())).map(drop)
    }
}

/// Ends our exports; QEMU's NBD server goes with them if nobody else exports.
fn remove_exports(qmp: &mut Qmp) -> Result<()> {
    let exports = array(qmp.execute("query-block-exports", json!({}))?)?;
    let ours = |id: &&str| id.starts_with(PREFIX);
    let ids: Vec<&str> = exports.iter().filter_map(|export| export["id"].as_str()).collect();
    for id in ids.iter().filter(|id| ours(id)) {
        tolerate_absence(qmp.execute("block-export-del", json!({"id": id, "mode": "hard"})))?;
    }
    if ids.iter().all(ours) {
        // Not running is as good as stopped.
        match qmp.execute("nbd-server-stop", json!({})) {
            Ok(_) | Err(Error::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Deletes the block nodes whose names start so, users before what they use.
fn remove_nodes(qmp: &mut Qmp, prefix: &str) -> Result<()> {
    // An export that was deleted lets its node go a moment later, and a node
    // goes only after its users: so several rounds.
    const ROUNDS: usize = 500;
    for round in 0..ROUNDS {
        let nodes = array(qmp.execute("query-named-block-nodes", json!({"flat": true}))?)?;
        let ours: Vec<&str> = nodes
            .iter()
            .filter_map(|node| node["node-name"].as_str())
            .filter(|name| name.starts_with(prefix))
            .collect();
        if ours.is_empty() {
            return Ok(());
        }
        let mut last_error = None;
        for node in ours {
            match qmp.execute("blockdev-del", json!({"node-name": node})) {
                Ok(_) => {}
                Err(error @ Error::Refused { .. }) => last_error = Some(error),
                Err(error) => return Err(error),
            }
        }
        match last_error {
            Some(error) if round + 1 == ROUNDS => return Err(error),
            Some(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            None => {}
        }
    }
    Ok(())
}

fn tolerate_absence(result: Result<Value>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(Error::Refused { description, .. }) if description.contains("not found") => Ok(()),
        Err(error) => Err(error),
    }
}
