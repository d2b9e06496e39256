//! A device as a `-device` that makes it again: all that it can be given and that is
//! not as by default, its id and its bus.

use serde_json::{Value, json};

use super::backend::{self, Backends};
use super::{Device, option};
use crate::arguments::OptionWord;
use crate::error::{Error, Result};
use crate::inventory::{array, text};
use crate::qmp::Qmp;

/// Kinds of device that QEMU tells all of, as tests have seen: a snapshot with one of
/// them loads. Of virtio devices also the variants for older and newer guests.
const KNOWN: [&str; 13] = [
    "e1000",
    "e1000e",
    "pc-dimm",
    "scsi-cd",
    "scsi-hd",
    "virtconsole",
    "virtio-balloon-pci",
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-rng-pci",
    "virtio-scsi-pci",
    "virtio-serial-pci",
    "virtserialport",
];

/// What a device tells, and cannot be given.
const TOLD_ONLY: [&str; 4] = ["busnr", "guest-stats", "guest-stats-polling-interval", "size"];

/// Describes a device and what it stands on, or says why that cannot be done.
pub(super) fn describe(
    qmp: &mut Qmp,
    device: &Device,
    drives: &[Value],
    backends: &Backends,
    words: &[OptionWord],
) -> Result<Result<Vec<OptionWord>, String>> {
    if device.kind.ends_with("-cpu") {
        return processor(qmp, device);
    }
    if !is_known(&device.kind) {
        return Ok(Err("it is of a kind of which QEMU does not tell all".to_owned()));
    }
    let mut described = json!({"driver": device.kind});
    if let Some(id) = &device.id {
        described["id"] = id.as_str().into();
    }
    if let Some((_, bus)) = device.bus.rsplit_once('/') {
        if device.bus.starts_with("/machine/peripheral-anon/") {
            return Ok(Err("what it is plugged into has no id".to_owned()));
        }
        described["bus"] = bus.into();
    }
    let mut work = Description { device, drives, backends, words, below: Vec::new() };
    let list = json!({"typename": device.kind});
    for property in array(qmp.execute("device-list-properties", list)?)? {
        match work.property(qmp, &property)? {
            Ok(Some(value)) => described[text(&property, "name")?] = value,
            Ok(None) => {}
            Err(why) => return Ok(Err(why)),
        }
    }
    work.below.push(option("device", &described));
    Ok(Ok(work.below))
}

/// Tells whether QEMU tells all of devices of a kind.
fn is_known(kind: &str) -> bool {
    let virtio = kind.starts_with("virtio-").then_some(kind);
    let variant = virtio.and_then(|kind| kind.strip_suffix("-transitional"));
    let plain = variant.map(|kind| kind.strip_suffix("-non").unwrap_or(kind));
    KNOWN.contains(&plain.unwrap_or(kind))
}

/// A device that is being described.
struct Description<'d> {
    device: &'d Device,
    drives: &'d [Value],
    backends: &'d Backends,
    words: &'d [OptionWord],
    /// What it stands on and the command line does not have.
    below: Vec<OptionWord>,
}

impl Description<'_> {
    /// Returns what a property is to be given, or nothing if it is as by default.
    fn property(
        &mut self,
        qmp: &mut Qmp,
        property: &Value,
    ) -> Result<Result<Option<Value>, String>> {
        let name = text(property, "name")?;
        let kind = text(property, "type")?;
        if kind.starts_with("child<") || TOLD_ONLY.contains(&name) {
            return Ok(Ok(None));
        }
        let asked = qmp.execute("qom-get", json!({"path": self.device.path, "property": name}));
        let value = match asked {
            Ok(value) if property.get("default-value") == Some(&value) => return Ok(Ok(None)),
            Ok(value) => value,
            Err(Error::Refused { .. }) => {
                return Ok(Err(format!("QEMU does not tell its `{name}`")));
            }
            Err(error) => return Err(error),
        };
        match &value {
            Value::String(target) if !target.is_empty() && kind.starts_with("link<") => {
                self.link(qmp, name, target)
            }
            _ => Ok(self.given(name, value)),
        }
    }

    fn given(&mut self, name: &str, value: Value) -> Result<Option<Value>, String> {
        match (name, &value) {
            // None, though its kind has one.
            ("romfile", Value::String(_)) => Ok(Some(value)),
            (_, Value::Null) => Ok(None),
            (_, Value::String(text)) if text.is_empty() => Ok(None),
            (_, Value::Array(list)) if list.is_empty() => Ok(None),
            (_, Value::Array(_) | Value::Object(_)) => {
                Err(format!("its `{name}` cannot be given on a command line"))
            }
            ("drive", Value::String(name)) => {
                let node = drive(self.device, self.drives, name)?;
                self.below.push(option("blockdev", &node));
                Ok(Some(node["node-name"].clone()))
            }
            ("addr", Value::Number(_)) => Ok(Some(address(self.device, value))),
            ("netdev" | "chardev", Value::String(id)) => {
                backend::on_command_line(self.words, self.backends, name, id)?;
                Ok(Some(value))
            }
            _ => Ok(Some(value)),
        }
    }

    /// Describes the object that a property refers to.
    fn link(
        &mut self,
        qmp: &mut Qmp,
        name: &str,
        target: &str,
    ) -> Result<Result<Option<Value>, String>> {
        let Some(id) = target.strip_prefix("/objects/") else {
            let is_own = target.starts_with(&self.device.path);
            return Ok(if is_own { Ok(None) } else { Err(format!("its `{name}` is {target}")) });
        };
        Ok(backend::object(qmp, id, self.words)?.map(|object| {
            self.below.extend(object.map(|object| option("object", &object)));
            Some(id.into())
        }))
    }
}

/// Describes the node of a device's drive, under the name that the device calls it by
/// if that can be given.
fn drive(device: &Device, drives: &[Value], name: &str) -> Result<Value, String> {
    let own = format!("{}-medium", device.id.as_deref().unwrap_or("drive"));
    let name = if name.starts_with('#') { &own } else { name };
    match drives.iter().find(|drive| device.has_drive(drive)) {
        Some(drive) => backend::node(drive, name),
        None => Err("QEMU does not say what its drive is".to_owned()),
    }
}

/// Writes the address of a device as a command line has it: for PCI QEMU tells a number
/// and reads a place, `02.1` (`set_pci_devfn` in hw/core/qdev-properties-system.c).
pub(super) fn address(device: &Device, value: Value) -> Value {
    match value.as_u64() {
        Some(number) if device.kind != "pc-dimm" => {
            format!("{:02x}.{:x}", number >> 3, number & 7).into()
        }
        _ => value,
    }
}

/// Describes a processor by its place: what it can do is said by `-cpu` for all.
fn processor(qmp: &mut Qmp, device: &Device) -> Result<Result<Vec<OptionWord>, String>> {
    let places = array(qmp.execute("query-hotpluggable-cpus", json!({}))?)?;
    let Some(place) = places.iter().find(|place| place["qom-path"] == device.path.as_str()) else {
        return Ok(Err("QEMU does not say where".to_owned()));
    };
    let mut described = json!({"driver": device.kind});
    if let Some(id) = &device.id {
        described["id"] = id.as_str().into();
    }
    for (name, value) in place["props"].as_object().into_iter().flatten() {
        described[name] = value.clone();
    }
    Ok(Ok(vec![option("device", &described)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_which_qemu_tells_all() {
        let check = |kind: &str, expected: bool| assert_eq!(is_known(kind), expected, "{kind}");
        for kind in KNOWN {
            check(kind, true);
            check(&format!("{kind}-transitional"), kind.starts_with("virtio-"));
            check(&format!("{kind}-non-transitional"), kind.starts_with("virtio-"));
            check(&format!("{kind}-non"), false);
        }
        check("virtio-gpu-pci", false);
        check("vhost-user-blk-pci-transitional", false);
        check("virtio-9p-pci-non-transitional", false);
        check("-transitional", false);
        check("", false);
    }
}
