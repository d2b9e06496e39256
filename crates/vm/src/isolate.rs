//! Rewrites a command line for a guest that is only tried out: nothing that it does
//! leaves its QEMU. What it writes on serial lines goes to files. What cannot be
//! isolated is refused by name; what two VMs cannot both have, `relocate` refuses.
//!
//! The devices stay, so that saved memory fits. Nothing is opened or made here.

use std::collections::BTreeSet;

use crate::arguments::{OptionWord, arguments, options};
use crate::error::{Error, Result};
use crate::fields::Fields;

/// Options that stand for a character device in short.
const LINES: [&str; 4] = ["serial", "parallel", "virtioconsole", "debugcon"];

/// Monitors of others, which have no part in it.
const MONITORS: [&str; 3] = ["monitor", "qmp", "qmp-pretty"];

/// Devices whose character device prints what the guest says.
const CONSOLES: [&str; 7] = [
    "isa-serial",
    "pci-serial",
    "usb-serial",
    "virtconsole",
    "isa-debugcon",
    "isa-parallel",
    "sclpconsole",
];

/// Devices that reach into the host.
const REACHING: [&str; 3] = ["usb-mtp", "usb-redir", "ccid-card-emulated"];

/// A command line for a guest that is only tried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolated {
    /// The arguments.
    pub arguments: Vec<String>,
    /// The names of the files with what it writes on serial lines. `relocate` takes
    /// them to the VM's own folder.
    pub outputs: Vec<String>,
}

/// Rewrites the arguments of a guest whose memory is loaded, or that boots.
pub fn isolate(given: &[String], has_memory: bool) -> Result<Isolated> {
    let words = options(given);
    let mut work = Work { has_memory, consoles: consoles(&words), outputs: Vec::new() };
    let mut kept = Vec::new();
    for option in words {
        kept.extend(work.rewrite(option)?);
    }
    Ok(Isolated { arguments: arguments(&kept), outputs: work.outputs })
}

struct Work {
    has_memory: bool,
    /// The ids of character devices that print what the guest says.
    consoles: BTreeSet<String>,
    outputs: Vec<String>,
}

impl Work {
    fn rewrite(&mut self, option: OptionWord) -> Result<Option<OptionWord>> {
        let OptionWord { name, value } = option;
        let Some(text) = value.as_deref() else {
            // A debugger's port, which the first VM has.
            return Ok((name != "s").then_some(OptionWord { name, value }));
        };
        let value = match name.as_str() {
            name if MONITORS.contains(&name) => return Ok(None),
            name if LINES.contains(&name) => self.line(text),
            "chardev" => self.character_device(text),
            "netdev" | "nic" | "net" => self.network(&name, text)?,
            "vnc" => "none".to_owned(),
            "display" if !text.starts_with("egl-headless") => "none".to_owned(),
            "audiodev" | "audio" => silent(text),
            "device" | "object" | "virtfs" | "fsdev" => {
                refuse_reaching(&name, text)?;
                text.to_owned()
            }
            _ => text.to_owned(),
        };
        Ok(Some(OptionWord { name, value: Some(value) }))
    }

    fn line(&mut self, value: &str) -> String {
        match value.split([':', ',']).next() {
            Some("none" | "null" | "chardev" | "vc") => value.to_owned(),
            _ => format!("file:{}", self.output()),
        }
    }

    fn character_device(&mut self, value: &str) -> String {
        let fields = Fields::read(value);
        match fields.get("id").filter(|id| self.consoles.contains(*id)) {
            Some(id) => format!("file,id={id},path={}", self.output()),
            None => value.to_owned(),
        }
    }

    /// Leaves a network of its own, on which nobody else is, and from which nothing
    /// leads away.
    fn network(&self, option: &str, value: &str) -> Result<String> {
        let fields = Fields::read(value);
        let kind = fields.get("type").or(fields.first()).unwrap_or_default();
        if let Some(rule) =
            ["guestfwd", "guestfwd.str", "smb"].iter().find(|key| fields.get(key).is_some())
        {
            return Err(cannot(option, value, &format!("`{rule}` leads to a program of the host")));
        }
        match kind {
            "none" | "hubport" => Ok(value.to_owned()),
            "nic" if option == "net" => Ok(value.to_owned()),
            "user" => Ok(restricted(fields).write()),
            // The devices of a saved guest expect what this network can do.
            _ if self.has_memory => {
                Err(cannot(option, value, "saved memory expects this network, on which others are"))
            }
            _ => {
                let kept = ["id", "model", "mac", "addr", "netdev"];
                let kept = kept.iter().filter_map(|key| Some((*key, fields.get(key)?)));
                let mut other = "user,restrict=on".to_owned();
                kept.for_each(|(key, value)| other.push_str(&format!(",{key}={value}")));
                Ok(other)
            }
        }
    }

    fn output(&mut self) -> String {
        let name = format!("serial-{}", self.outputs.len());
        self.outputs.push(name.clone());
        name
    }
}

/// Finds the character devices of consoles.
fn consoles(words: &[OptionWord]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for OptionWord { name, value } in words {
        let value = value.as_deref().unwrap_or_default();
        if LINES.contains(&name.as_str()) {
            found.extend(value.strip_prefix("chardev:").map(str::to_owned));
        }
        if name == "device" {
            let fields = Fields::read(value);
            let driver = fields.get("driver").or(fields.first()).unwrap_or_default();
            if CONSOLES.iter().any(|console| driver.starts_with(console)) {
                found.extend(fields.get("chardev").map(str::to_owned));
            }
        }
    }
    found
}

/// Takes from a network of the user mode all that leads in and out.
fn restricted(fields: Fields) -> Fields {
    match fields {
        Fields::Words(mut words) => {
            let leads = |key: &str| ["hostfwd", "tftp", "bootfile", "restrict"].contains(&key);
            words.retain(|(key, _)| !key.as_deref().is_some_and(leads));
            words.push((Some("restrict".to_owned()), "on".to_owned()));
            Fields::Words(words)
        }
        Fields::Json(mut json) => {
            if let Some(object) = json.as_object_mut() {
                ["hostfwd", "tftp", "bootfile"].iter().for_each(|key| drop(object.remove(*key)));
                object.insert("restrict".to_owned(), true.into());
            }
            Fields::Json(json)
        }
    }
}

/// Keeps the name of a sound device, and lets nobody hear it.
fn silent(value: &str) -> String {
    let fields = Fields::read(value);
    let kept = ["id", "model"].iter().filter_map(|key| Some((*key, fields.get(key)?)));
    kept.fold("driver=none".to_owned(), |text, (key, value)| format!("{text},{key}={value}"))
}

fn refuse_reaching(option: &str, value: &str) -> Result<()> {
    let fields = Fields::read(value);
    let kind = fields.get("driver").or(fields.get("qom-type")).or(fields.first());
    let kind = kind.unwrap_or_default();
    let is_locked = ["on", "true"].iter().any(|on| fields.get("readonly") == Some(on));
    match option {
        "device" if REACHING.iter().any(|start| kind.starts_with(start)) => {
            Err(cannot(option, value, "it reaches into the host"))
        }
        "object" if kind.starts_with("input-") => {
            Err(cannot(option, value, "it is an input device of the host"))
        }
        "virtfs" | "fsdev" if !is_locked && kind != "synth" => {
            Err(cannot(option, value, "the guest can write to a folder of the host"))
        }
        _ => Ok(()),
    }
}

fn cannot(option: &str, value: &str, why: &str) -> Error {
    Error::unsupported(format!("`-{option} {value}` cannot be isolated: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(given: &str, has_memory: bool) -> Result<Isolated> {
        let given: Vec<String> = given.split(' ').map(str::to_owned).collect();
        isolate(&given, has_memory)
    }

    #[test]
    fn nothing_leads_out() {
        let check = |given: &str, expected: &str| {
            assert_eq!(run(given, true).unwrap().arguments.join(" "), expected, "{given}");
        };
        check(
            "-netdev user,id=n,hostfwd=tcp::22-:22,net=10.1.0.0/24 -device e1000,netdev=n",
            "-netdev user,id=n,net=10.1.0.0/24,restrict=on -device e1000,netdev=n",
        );
        check(
            r#"-netdev {"type":"user","id":"n","hostfwd":[{"str":"tcp::1-:2"}]}"#,
            r#"-netdev {"id":"n","restrict":true,"type":"user"}"#,
        );
        check("-nic user,model=e1000,tftp=/srv", "-nic user,model=e1000,restrict=on");
        check("-nic none -s -m 1", "-nic none -m 1");
        check("-qmp unix:/q,server -monitor stdio -m 1", "-m 1");
        check("-vnc :1 -display gtk,gl=on", "-vnc none -display none");
        check("-audiodev pa,id=a,server=/run/p -m 1", "-audiodev driver=none,id=a -m 1");
        check(
            "-virtfs local,path=/a,mount_tag=t,readonly=on",
            "-virtfs local,path=/a,mount_tag=t,readonly=on",
        );
    }

    #[test]
    fn what_it_says_goes_to_files() {
        let check = |given: &str, expected: &str, outputs: &[&str]| {
            let isolated = run(given, true).unwrap();
            assert_eq!(isolated.arguments.join(" "), expected, "{given}");
            assert_eq!(isolated.outputs, outputs, "{given}");
        };
        check("-serial tcp:127.0.0.1:4444,server", "-serial file:serial-0", &["serial-0"]);
        check(
            "-serial mon:stdio -serial null",
            "-serial file:serial-0 -serial null",
            &["serial-0"],
        );
        check(
            "-chardev socket,id=c,path=/s,server=on -serial chardev:c",
            "-chardev file,id=c,path=serial-0 -serial chardev:c",
            &["serial-0"],
        );
        check(
            "-chardev pty,id=c -chardev pty,id=d -device virtconsole,chardev=c",
            "-chardev file,id=c,path=serial-0 -chardev pty,id=d -device virtconsole,chardev=c",
            &["serial-0"],
        );
    }

    #[test]
    fn a_guest_that_boots_gets_another_network() {
        let booting = |given: &str| run(given, false).unwrap().arguments.join(" ");
        assert_eq!(
            booting("-netdev tap,id=n,ifname=t0 -device virtio-net-pci,netdev=n"),
            "-netdev user,restrict=on,id=n -device virtio-net-pci,netdev=n"
        );
        assert_eq!(
            booting("-net nic,model=e1000 -net bridge"),
            "-net nic,model=e1000 -net user,restrict=on"
        );
    }

    #[test]
    fn what_cannot_be_isolated_is_refused_by_name() {
        let check = |given: &str, words: &str| {
            let error = run(given, true).unwrap_err().to_string();
            assert!(error.contains(words), "{given}: {error}");
        };
        check("-netdev tap,id=n,ifname=t0", "`-netdev tap,id=n,ifname=t0` cannot be isolated");
        check("-netdev user,id=n,guestfwd=tcp:10.0.2.9:1-cmd:x", "leads to a program of the host");
        check("-virtfs local,path=/srv,mount_tag=t", "can write to a folder");
        check("-device usb-mtp,rootdir=/home", "reaches into the host");
        check("-object input-linux,id=i,evdev=/dev/input/event0", "an input device of the host");
    }
}
