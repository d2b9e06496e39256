//! Where a VM's channel for the guest agent is, asked of QEMU, and whether it is
//! free: QEMU serves one client of a character device at a time.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Result;
use crate::inventory::array;
use crate::qmp::Qmp;

/// The name of the port that guest agents listen on (QEMU `docs/interop/qemu-ga.rst`).
pub(crate) const PORT: &str = "org.qemu.guest_agent.0";

/// The channel of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentChannel {
    /// Something in the guest listens, and nobody talks to it yet.
    Socket(PathBuf),
    /// There is a channel, and it cannot be used: why.
    Unusable(String),
    /// The VM has none.
    None,
}

impl AgentChannel {
    /// Asks QEMU. Relative paths are taken from `directory`, QEMU's own.
    pub(crate) fn find(qmp: &mut Qmp, directory: &Path) -> Result<Self> {
        let Some(label) = label(qmp)? else { return Ok(Self::None) };
        let devices = array(qmp.execute("query-chardev", json!({}))?)?;
        let device = devices.iter().find(|device| device["label"] == *label);
        let Some(device) = device else {
            return Ok(Self::Unusable("its character device is not there".to_owned()));
        };
        Ok(judge(device, directory))
    }
}

/// Returns the character device behind the agent's port.
fn label(qmp: &mut Qmp) -> Result<Option<String>> {
    for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
        for entry in array(qmp.execute("qom-list", json!({"path": folder}))?)? {
            let (Some(name), "child<virtserialport>") =
                (entry["name"].as_str(), entry["type"].as_str().unwrap_or_default())
            else {
                continue;
            };
            let path = format!("{folder}/{name}");
            let mut property = |name: &str| {
                let value = qmp.execute("qom-get", json!({"path": path, "property": name}))?;
                Ok::<_, crate::Error>(value.as_str().unwrap_or_default().to_owned())
            };
            if property("name")? == PORT {
                return property("chardev").map(Some);
            }
        }
    }
    Ok(None)
}

/// Judges a character device by what `query-chardev` says of it (QEMU
/// `chardev/char-socket.c`, `qemu_chr_compute_filename`).
fn judge(device: &Value, directory: &Path) -> AgentChannel {
    let unusable = |why: String| AgentChannel::Unusable(why);
    let name = device["filename"].as_str().unwrap_or_default();
    let (idle, place) = match name.strip_prefix("disconnected:") {
        Some(place) => (true, place),
        None => (false, name),
    };
    let Some(place) = place.strip_prefix("unix:") else {
        let kind = name.split(':').find(|part| *part != "disconnected").unwrap_or_default();
        return unusable(format!("its channel is `{kind}`; only a unix socket can be used"));
    };
    let Some(path) = place.strip_suffix(",server=on").or(place.strip_suffix(",server")) else {
        return unusable("QEMU connects its channel to another program, which owns it".to_owned());
    };
    if !idle {
        return unusable("another program holds its channel".to_owned());
    }
    if !device["frontend-open"].as_bool().unwrap_or_default() {
        return unusable("no guest agent runs in the guest".to_owned());
    }
    AgentChannel::Socket(directory.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_judged_by_what_qemu_says() {
        let check = |filename: &str, open: bool, expected: &str| {
            let device = json!({"filename": filename, "frontend-open": open});
            match judge(&device, Path::new("/srv")) {
                AgentChannel::Socket(path) => assert_eq!(path, Path::new(expected), "{filename}"),
                AgentChannel::Unusable(why) => assert!(why.contains(expected), "{filename}: {why}"),
                AgentChannel::None => panic!("{filename}"),
            }
        };
        check("disconnected:unix:/run/a,server=on", true, "/run/a");
        check("disconnected:unix:a,server=on", true, "/srv/a");
        check("unix:/run/a,server=on", true, "another program holds");
        check("disconnected:unix:/run/a,server=on", false, "no guest agent runs");
        check("unix:/run/a", true, "another program, which owns it");
        check("pty:/dev/pts/3", true, "`pty`");
        check("disconnected:tcp:127.0.0.1:5,server=on", true, "`tcp`");
    }
}
