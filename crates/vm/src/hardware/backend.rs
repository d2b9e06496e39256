//! What devices stand on: block nodes, drives, character devices, networks, objects.
//! Those that are gone leave the command line; of those that came, the ones that QEMU
//! tells all of are described.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;

use serde_json::{Map, Value, json};

use super::{Work, find};
use crate::arguments::OptionWord;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::inventory::array;
use crate::qmp::Qmp;

/// What there is now, by kind.
pub(super) struct Backends {
    nodes: BTreeSet<String>,
    drives: BTreeSet<String>,
    chardevs: BTreeSet<String>,
    networks: BTreeSet<String>,
    objects: BTreeSet<String>,
}

impl Backends {
    pub(super) fn ask(qmp: &mut Qmp) -> Result<Self> {
        let mut names = |command: &str, arguments: Value, key: &str| -> Result<BTreeSet<String>> {
            let list = array(qmp.execute(command, arguments)?)?;
            Ok(list.iter().filter_map(|entry| entry[key].as_str().map(str::to_owned)).collect())
        };
        let nodes = names("query-named-block-nodes", json!({"flat": true}), "node-name")?;
        let drives = names("query-block", json!({}), "device")?;
        let chardevs = names("query-chardev", json!({}), "label")?;
        let objects = names("qom-list", json!({"path": "/objects"}), "name")?;
        // No other command tells of networks (`hmp_info_network` in net/net.c): a name,
        // a colon, and what is behind it.
        let line = json!({"command-line": "info network"});
        let told = qmp.execute("human-monitor-command", line)?;
        let told = told.as_str().ok_or_else(|| Error::protocol("`info network` without text"))?;
        let name = |line: &str| {
            let line = line.trim_start_matches([' ', '\\']);
            line.split_once(": index=").map(|(name, _)| name.to_owned())
        };
        Ok(Self {
            nodes,
            drives,
            chardevs,
            networks: told.lines().filter_map(name).collect(),
            objects,
        })
    }

    /// Tells whether what an option makes is gone.
    fn has_lost(&self, word: &OptionWord) -> bool {
        let Some(value) = word.value.as_deref() else { return false };
        let (there, key) = match word.name.as_str() {
            "blockdev" => (&self.nodes, "node-name"),
            "drive" => (&self.drives, "id"),
            "chardev" => (&self.chardevs, "id"),
            "netdev" => (&self.networks, "id"),
            "object" => (&self.objects, "id"),
            _ => return false,
        };
        let fields = Fields::read(value);
        fields.get(key).is_some_and(|name| !there.contains(name))
    }
}

impl Work<'_> {
    /// Drops what devices stood on that are gone: the next QEMU would open it for
    /// nothing, or not find it.
    pub(super) fn drop_lost_backends(&mut self, backends: &Backends) {
        self.words.retain(|word| !backends.has_lost(word));
    }
}

/// Describes the image that is in a drive as a node of that name, or says why not.
pub(super) fn node(drive: &Value, name: &str) -> Result<Value, String> {
    let medium = &drive["inserted"];
    let (Some(driver), Some(file)) = (medium["drv"].as_str(), medium["image"]["filename"].as_str())
    else {
        return Err("QEMU does not say what is in it".to_owned());
    };
    let limits = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"];
    if limits.iter().any(|limit| medium[limit].as_u64().unwrap_or_default() != 0) {
        return Err(format!("the image {file} has limits on its speed"));
    }
    let is_block = match fs::metadata(file) {
        Ok(metadata) if metadata.is_file() => false,
        Ok(metadata) if metadata.file_type().is_block_device() => true,
        _ => return Err(format!("the image {file} is not a file that is described by its path")),
    };
    let protocol = if is_block { "host_device" } else { "file" };
    let cache = json!({
        "direct": medium["cache"]["direct"], "no-flush": medium["cache"]["no-flush"],
    });
    let common = json!({
        "node-name": name, "read-only": medium["ro"], "cache": cache,
        "detect-zeroes": medium["detect_zeroes"],
    });
    let mut node: Map<String, Value> = common.as_object().cloned().unwrap_or_default();
    node.insert("driver".to_owned(), driver.into());
    match driver {
        "file" | "host_device" => node.insert("filename".to_owned(), file.into()),
        "raw" | "qcow2" | "qed" | "vdi" | "vhdx" | "vmdk" | "vpc"
            if medium["encrypted"] != true =>
        {
            node.insert(
                "file".to_owned(),
                json!({"driver": protocol, "filename": file, "cache": cache}),
            )
        }
        _ => {
            return Err(format!(
                "the image {file} is opened by `{driver}`, of which QEMU does not tell all"
            ));
        }
    };
    Ok(node.into())
}

/// Describes an object that a device refers to, unless the command line has it.
pub(super) fn object(
    qmp: &mut Qmp,
    id: &str,
    words: &[OptionWord],
) -> Result<Result<Option<Value>, String>> {
    if find(words, "object", id).is_some() {
        return Ok(Ok(None));
    }
    let path = format!("/objects/{id}");
    let mut get =
        |property: &str| qmp.execute("qom-get", json!({"path": path, "property": property}));
    let kind = get("type")?;
    let mut object = json!({"qom-type": kind, "id": id});
    let properties: &[&str] = match kind.as_str() {
        Some("iothread") => &["poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"],
        Some("memory-backend-ram") => {
            let places = get("host-nodes")?;
            if places.as_array().is_some_and(|places| !places.is_empty()) {
                return Ok(Err(format!("its memory `{id}` is bound to nodes of the host")));
            }
            &[
                "size",
                "share",
                "prealloc",
                "merge",
                "dump",
                "reserve",
                "x-use-canonical-path-for-ramblock-id",
            ]
        }
        _ => {
            return Ok(Err(format!(
                "it stands on the object `{id}`, of which QEMU does not tell all"
            )));
        }
    };
    for property in properties {
        object[property] = get(property)?;
    }
    Ok(Ok(Some(object)))
}

/// Says why a network or character device that a device stands on cannot be described,
/// unless the command line has it.
pub(super) fn on_command_line(
    words: &[OptionWord],
    backends: &Backends,
    option: &str,
    id: &str,
) -> Result<(), String> {
    let there = if option == "netdev" { &backends.networks } else { &backends.chardevs };
    if find(words, option, id).is_some() && there.contains(id) {
        return Ok(());
    }
    let what = if option == "netdev" { "network" } else { "character device" };
    Err(format!("the {what} `{id}` under it was added too, of which QEMU does not tell all"))
}
