//! What of a VM differs from its command line: devices plugged or unplugged, media
//! changed, and disks moved since QEMU started; and the command line that makes the VM
//! as it is now.
//!
//! A device is described by its properties, each asked of QEMU, with its address: the
//! state of devices in a snapshot is found by that. Only kinds of which this is known
//! to be all are described. What cannot be is named, and left to the caller.

mod backend;
mod device;
mod drive;
mod pins;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::arguments::{OptionWord, arguments, options};
use crate::error::Result;
use crate::fields::Fields;
use crate::inventory::{array, text};
use crate::qmp::Qmp;
use backend::Backends;
pub(crate) use drive::drop_node;

/// How a VM differs from its command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    /// The arguments that make the VM as it is now, but for what is `unknown`.
    pub arguments: Vec<String>,
    /// What has changed, each as a sentence without an end.
    pub changes: Vec<String>,
    /// What has changed and cannot be described, and why not.
    pub unknown: Vec<String>,
}

/// Compares a VM with the arguments that its QEMU was started with.
pub(crate) fn compare(qmp: &mut Qmp, given: &[String], directory: &Path) -> Result<Hardware> {
    let devices = devices(qmp)?;
    let drives = array(qmp.execute("query-block", json!({}))?)?;
    let mut work = Work { directory, words: options(given), out: Hardware::default() };
    let removed = work.drop_removed(&devices);
    let backends = Backends::ask(qmp)?;
    work.follow_drives(&devices, &drives);
    work.drop_lost_backends(&backends);
    work.add_plugged(qmp, &devices, &drives, &backends)?;
    if removed {
        work.pin(qmp, &devices)?;
    }
    work.out.arguments = arguments(&work.words);
    Ok(work.out)
}

/// A device that somebody has asked for, on the command line or later.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Device {
    /// Its id, if it has one.
    id: Option<String>,
    /// Its place in the object tree.
    path: String,
    /// Its type.
    kind: String,
    /// Whether it came after QEMU's start (`DeviceState::hotplugged`).
    plugged: bool,
    /// The bus that it is on, as a place in the object tree; empty without one.
    bus: String,
}

impl Device {
    /// Returns what people call it.
    fn name(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.path)
    }

    /// Tells whether a drive is its own.
    fn has_drive(&self, drive: &Value) -> bool {
        crate::inventory::device_path(drive).is_some_and(|path| {
            let below = path.strip_prefix(&self.path);
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

fn devices(qmp: &mut Qmp) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for (place, have_ids) in [("/machine/peripheral", true), ("/machine/peripheral-anon", false)] {
        for entry in array(qmp.execute("qom-list", json!({"path": place}))?)? {
            let Some(kind) = child_type(&entry) else { continue };
            let name = text(&entry, "name")?;
            let path = format!("{place}/{name}");
            let get = |property: &str| json!({"path": path, "property": property});
            let plugged = qmp.execute("qom-get", get("hotplugged"))? == true;
            let bus = qmp.execute("qom-get", get("parent_bus"))?;
            devices.push(Device {
                id: have_ids.then(|| name.to_owned()),
                kind,
                plugged,
                bus: bus.as_str().unwrap_or_default().to_owned(),
                path,
            });
        }
    }
    devices.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(devices)
}

fn child_type(entry: &Value) -> Option<String> {
    let kind = entry["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
    Some(kind.to_owned())
}

/// A command line on its way to what the VM is now.
struct Work<'w> {
    /// Where QEMU's relative paths start from.
    directory: &'w Path,
    words: Vec<OptionWord>,
    out: Hardware,
}

impl Work<'_> {
    /// Drops the devices that are gone, or were exchanged for others of their names.
    /// Tells whether there were any.
    fn drop_removed(&mut self, devices: &[Device]) -> bool {
        let cold: BTreeSet<&str> =
            devices.iter().filter(|one| !one.plugged).filter_map(|one| one.id.as_deref()).collect();
        let (mut removed, mut drives) = (Vec::new(), Vec::new());
        let mut without_id = 0;
        self.words.retain(|word| match (word.name.as_str(), &word.value) {
            ("device", Some(value)) => match id_of(value) {
                Some(id) if !cold.contains(id.as_str()) => {
                    drives.extend(Fields::read(value).get("drive").map(str::to_owned));
                    removed.push(id);
                    false
                }
                Some(_) => true,
                None => {
                    without_id += 1;
                    true
                }
            },
            _ => true,
        });
        // QEMU removes what `-drive` made with the device, a moment later
        // (`blockdev_auto_del` in blockdev.c).
        for drive in drives {
            if let Some(at) = find(&self.words, "drive", &drive) {
                self.words.remove(at);
            }
        }
        let known = |id: &&str| find(&self.words, "device", id).is_none();
        for id in cold.iter().filter(|id| known(id)) {
            let what = format!("the device `{id}` is not on the command line");
            self.out.unknown.push(format!("{what} by which this VM is known"));
        }
        let left = devices.iter().filter(|one| one.id.is_none() && !one.plugged).count();
        if left < without_id {
            let what = "a device without an id was removed since QEMU started";
            self.out.unknown.push(format!("{what}, and there is no telling which"));
        }
        let was_removed = |id: &String| format!("the device `{id}` was removed");
        self.out.changes.extend(removed.iter().map(was_removed));
        !removed.is_empty()
    }

    /// Adds the devices that came since the start, what they are plugged into first.
    fn add_plugged(
        &mut self,
        qmp: &mut Qmp,
        devices: &[Device],
        drives: &[Value],
        backends: &Backends,
    ) -> Result<()> {
        let mut rest: Vec<&Device> = devices.iter().filter(|one| one.plugged).collect();
        while !rest.is_empty() {
            let is_below = |one: &Device, other: &Device| {
                one.bus.strip_prefix(&other.path).is_some_and(|below| below.starts_with('/'))
            };
            let free = rest.iter().position(|one| !rest.iter().any(|other| is_below(one, other)));
            let device = rest.remove(free.unwrap_or_default());
            match device::describe(qmp, device, drives, backends, &self.words)? {
                Ok(words) => {
                    self.words.extend(words);
                    self.out.changes.push(format!("the device `{}` was added", device.name()));
                }
                Err(why) => self.out.unknown.push(format!(
                    "the device `{}` ({}) was added since QEMU started, and {why}",
                    device.name(),
                    device.kind
                )),
            }
        }
        Ok(())
    }

    /// Returns where the option of a name with this id is.
    fn find(&self, option: &str, id: &str) -> Option<usize> {
        find(&self.words, option, id)
    }
}

/// Returns where the option of a name with this id, or name of a node, is.
fn find(words: &[OptionWord], option: &str, id: &str) -> Option<usize> {
    let key = if option == "blockdev" { "node-name" } else { "id" };
    words.iter().position(|word| {
        let fields = word.value.as_deref().filter(|_| word.name == option).map(Fields::read);
        fields.is_some_and(|fields| fields.get(key) == Some(id))
    })
}

fn id_of(value: &str) -> Option<String> {
    Fields::read(value).get("id").map(str::to_owned)
}

/// Makes an option of a JSON value.
fn option(name: &str, value: &Value) -> OptionWord {
    OptionWord { name: name.to_owned(), value: Some(value.to_string()) }
}
