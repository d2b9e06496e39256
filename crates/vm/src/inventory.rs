//! What is in a VM, asked of QEMU: machine, processors, memory, disks, network
//! cards, and what stands in the way of a snapshot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tintype_types::ByteCount;

use crate::error::{Error, Result};
use crate::qmp::Qmp;

/// What starts the names of everything that tintype adds to a QEMU.
pub(crate) const PREFIX: &str = "tintype-";

/// What is in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// QEMU's version: `10.0.2`.
    pub qemu_version: String,
    /// The machine type with its version: `pc-q35-10.0`.
    pub machine: String,
    /// The type of the first processor, and how many there are.
    pub processor: String,
    /// How many processors there are.
    pub processors: u64,
    /// Main memory, plugged memory included.
    pub memory: ByteCount,
    /// Every drive with a medium in it.
    pub disks: Vec<Disk>,
    /// Every network card.
    pub network_cards: Vec<NetworkCard>,
    /// Every character device, as `name: where`.
    pub character_devices: Vec<String>,
    /// The accelerator: `kvm` or `tcg`.
    pub accelerator: String,
}

/// One drive with a medium in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// How it is called here: the device's id, or the drive's.
    pub name: String,
    /// The device in QEMU's object tree.
    pub device: String,
    /// The block node that the device reads and writes.
    pub node: String,
    /// The format of the image: `qcow2`.
    pub format: String,
    /// The image file, if it is one of this machine.
    pub file: Option<PathBuf>,
    /// The size that the guest sees.
    pub size: ByteCount,
    /// Whether the guest can only read it: such media are named and not copied.
    pub read_only: bool,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCard {
    /// QEMU's name for it.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
}

impl Inventory {
    /// Asks QEMU. Relative paths are taken from `directory`, QEMU's own.
    pub fn ask(qmp: &mut Qmp, directory: &std::path::Path) -> Result<Self> {
        let version = qmp.execute("query-version", json!({}))?;
        let number = |key: &str| version["qemu"][key].as_u64().unwrap_or_default();
        let processors = array(qmp.execute("query-cpus-fast", json!({}))?)?;
        let memory = qmp.execute("query-memory-size-summary", json!({}))?;
        let bytes = |key: &str| memory[key].as_u64().unwrap_or_default();
        Ok(Self {
            qemu_version: format!("{}.{}.{}", number("major"), number("minor"), number("micro")),
            machine: type_of(qmp, "/machine")?.trim_end_matches("-machine").to_owned(),
            processor: match processors.first() {
                Some(first) => type_of(qmp, text(first, "qom-path")?)?,
                None => return Err(Error::protocol("a machine without processors")),
            },
            processors: processors.len() as u64,
            memory: ByteCount(bytes("base-memory").saturating_add(bytes("plugged-memory"))),
            disks: disks(qmp, directory)?,
            network_cards: network_cards(qmp),
            character_devices: character_devices(qmp)?,
            accelerator: accelerator(qmp)?,
        })
    }

    /// Returns the disks that a snapshot copies: those that the guest can write.
    pub fn writable_disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().filter(|disk| !disk.read_only)
    }
}

/// Returns what of this VM stops QEMU from saving its memory, in QEMU's words:
/// passed-through devices, shared folders and the like. Empty if nothing does.
pub(crate) fn memory_blockers(qmp: &mut Qmp) -> Result<Vec<String>> {
    let migration = qmp.execute("query-migrate", json!({}))?;
    let reasons = migration.get("blocked-reasons").and_then(Value::as_array);
    Ok(reasons
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|reason| reason.lines().next().unwrap_or_default().to_owned())
        .collect())
}

/// Refuses a VM on which somebody else's block job runs.
pub(crate) fn refuse_block_jobs(qmp: &mut Qmp) -> Result<()> {
    match array(qmp.execute("query-block-jobs", json!({}))?)?.first() {
        None => Ok(()),
        Some(job) => Err(Error::unsupported(format!(
            "the block job `{}` ({}) runs on this VM; wait for it, or cancel it",
            job["device"].as_str().unwrap_or("?"),
            job["type"].as_str().unwrap_or("?"),
        ))),
    }
}

fn disks(qmp: &mut Qmp, directory: &std::path::Path) -> Result<Vec<Disk>> {
    let mut disks: Vec<Disk> = Vec::new();
    for drive in array(qmp.execute("query-block", json!({}))?)? {
        let (Some(medium), Some(device)) = (drive.get("inserted"), device_path(&drive)) else {
            continue;
        };
        if !is_plugged(qmp, &device)? {
            continue;
        }
        let name = unique_name(&drive, &device, text(medium, "node-name")?, &disks);
        let driver = text(medium, "drv")?;
        let format = match driver {
            "file" | "host_device" => "raw",
            format => format,
        };
        disks.push(Disk {
            name,
            device,
            node: text(medium, "node-name")?.to_owned(),
            format: format.to_owned(),
            file: local_file(&medium["image"], directory),
            size: ByteCount(medium["image"]["virtual-size"].as_u64().unwrap_or_default()),
            read_only: medium["ro"].as_bool().unwrap_or_default(),
        });
    }
    Ok(disks)
}

/// Returns where a drive's device is in the object tree. QEMU tells its id alone
/// if it has one (`blk_get_attached_dev_id` in block/block-backend.c), and a bus
/// of the device may have the same name.
pub(crate) fn device_path(drive: &Value) -> Option<String> {
    let device = drive["qdev"].as_str()?;
    let is_path = device.starts_with('/');
    Some(if is_path { device.to_owned() } else { format!("/machine/peripheral/{device}") })
}

/// Whether the guest has the device of a drive. One that was unplugged is listed until
/// nothing in QEMU uses it any more; then its block node goes, too.
fn is_plugged(qmp: &mut Qmp, device: &str) -> Result<bool> {
    match qmp.execute("qom-list", json!({"path": device})) {
        Ok(_) => Ok(true),
        Err(Error::Refused { class, .. }) if class == "DeviceNotFound" => Ok(false),
        Err(error) => Err(error),
    }
}

/// Chooses the name that people would use, and that is the same at the next start.
fn unique_name(drive: &Value, device: &str, node: &str, others: &[Disk]) -> String {
    let id = device.strip_prefix("/machine/peripheral/").and_then(|path| path.split('/').next());
    let drive = drive["device"].as_str().filter(|name| !name.is_empty());
    let node = (!node.starts_with('#')).then_some(node);
    let wanted = id.or(drive).or(node).unwrap_or("disk");
    let taken = |name: &str| others.iter().any(|disk| disk.name == name);
    if !taken(wanted) {
        return wanted.to_owned();
    }
    (2..).map(|n| format!("{wanted}-{n}")).find(|name| !taken(name)).expect("numbers do not end")
}

/// Returns the file of an image if it is a plain path, or a path under `file:`. A disk
/// that is a part of a file is none: whoever writes to the file would hit the rest.
pub(crate) fn local_file(image: &Value, directory: &std::path::Path) -> Option<PathBuf> {
    let name = image["filename"].as_str()?;
    let name = match name.strip_prefix("json:") {
        None => name.to_owned(),
        Some(json) => {
            let json: Value = serde_json::from_str(json).ok()?;
            if ["offset", "size"].iter().any(|part| json.get(part).is_some()) {
                return None;
            }
            let plain = json["file"].get("filename").or_else(|| json.get("filename"))?;
            plain.as_str()?.to_owned()
        }
    };
    let name = name.strip_prefix("file:").unwrap_or(&name).to_owned();
    let path = directory.join(name);
    path.exists().then_some(path)
}

fn network_cards(qmp: &mut Qmp) -> Vec<NetworkCard> {
    // Cards without receive filters are not told of, and a machine without any
    // that has them answers with an error.
    let Ok(Value::Array(filters)) = qmp.execute("query-rx-filter", json!({})) else {
        return Vec::new();
    };
    let card = |filter: &Value| {
        Some(NetworkCard {
            name: filter["name"].as_str()?.to_owned(),
            mac: filter["main-mac"].as_str()?.to_owned(),
        })
    };
    filters.iter().filter_map(card).collect()
}

fn character_devices(qmp: &mut Qmp) -> Result<Vec<String>> {
    let mut devices: Vec<String> = array(qmp.execute("query-chardev", json!({}))?)?
        .iter()
        .filter(|device| !device["label"].as_str().is_some_and(|name| name.starts_with(PREFIX)))
        .filter_map(|device| {
            Some(format!("{}: {}", device["label"].as_str()?, device["filename"].as_str()?))
        })
        .collect();
    devices.sort();
    Ok(devices)
}

fn accelerator(qmp: &mut Qmp) -> Result<String> {
    let kvm = qmp.execute("query-kvm", json!({}))?;
    Ok(if kvm["enabled"].as_bool().unwrap_or_default() { "kvm" } else { "tcg" }.to_owned())
}

fn type_of(qmp: &mut Qmp, path: &str) -> Result<String> {
    let answer = qmp.execute("qom-get", json!({"path": path, "property": "type"}))?;
    answer.as_str().map(str::to_owned).ok_or_else(|| Error::protocol("a type that is no text"))
}

pub(crate) fn array(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(Error::protocol("one value where a list is due")),
    }
}

pub(crate) fn text<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value[key].as_str().ok_or_else(|| Error::protocol(format!("an answer without `{key}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_and_a_part_of_one_is_none() {
        let check = |filename: &str, expected: Option<&str>| {
            let found = local_file(&json!({"filename": filename}), "/".as_ref());
            assert_eq!(found.as_deref(), expected.map(std::path::Path::new), "{filename}");
        };
        check("dev/null", Some("/dev/null"));
        check("file:/dev/null", Some("/dev/null"));
        check("/not/there", None);
        let file = r#""file": {"driver": "file", "filename": "/dev/null"}"#;
        check(&format!(r#"json:{{"driver": "raw", {file}}}"#), Some("/dev/null"));
        check(&format!(r#"json:{{"driver": "raw", "offset": 512, {file}}}"#), None);
        check(&format!(r#"json:{{"driver": "raw", "size": 512, {file}}}"#), None);
    }
}
