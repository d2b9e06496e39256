//! Rewrites a command line for another VM that may run beside the first: files
//! and sockets in a folder of its own, ports and hardware addresses of its own.
//! What two VMs cannot share and what cannot be moved is refused by name.
//!
//! Nothing is opened or made here.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::arguments::{OptionWord, arguments, options};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::images::Images;
use crate::process::CommandLine;

/// A file that has another place now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedFile {
    /// Where it was.
    pub from: PathBuf,
    /// Where it is.
    pub to: PathBuf,
    /// Its format, if it is the image of a disk.
    pub format: Option<String>,
}

/// A port of this machine that led into the guest, and the one that does now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MovedPort {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port of the first VM.
    pub from: u16,
    /// The port of this one.
    pub to: u16,
}

/// Finds a free port.
pub type FreePort<'p> = &'p dyn Fn(&str, &str) -> std::io::Result<u16>;

/// What a VM gets that another one has already.
pub struct RelocateParams<'p> {
    /// The files that have moved.
    pub files: &'p [MovedFile],
    /// The folder for sockets and logs.
    pub folder: &'p Path,
    /// What hardware addresses and the generation id are made of; no two VMs
    /// have the same.
    pub seed: [u8; 16],
    /// Finds a free port for `tcp` or `udp` on an address, which may be empty.
    /// Without it this is the first VM itself on another machine: it keeps its
    /// ports, its hardware addresses and its use of the host.
    pub free_port: Option<FreePort<'p>>,
}

/// A command line that was rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relocated {
    /// The arguments.
    pub arguments: Vec<String>,
    /// The ports that were moved.
    pub ports: Vec<MovedPort>,
    /// The hardware addresses of its network cards, in order.
    pub macs: Vec<String>,
    /// Sockets and logs, each as it was and as it is.
    pub moved: Vec<(String, PathBuf)>,
}

/// Options whose value is one path, commas and all.
const PATHS: [&str; 5] = ["bios", "dtb", "initrd", "kernel", "shim"];

/// Devices that are parts of the host, which has each of them once.
const HOST_DEVICES: [&str; 8] =
    ["vfio-", "usb-host", "vhost-", "scsi-generic", "scsi-block", "ivshmem", "pci-assign", "xen-"];

/// Networks of which every VM has one of its own. On a network that two VMs share
/// the second one would answer for the first: its driver has read the hardware
/// address before the instant, and keeps it.
const OWN_NETWORKS: [&str; 3] = ["user", "none", "hubport"];

/// Rewrites a command line.
pub fn relocate(line: &CommandLine, params: &RelocateParams<'_>) -> Result<Relocated> {
    let mut work = Work {
        params,
        images: Images::new(params.files, &line.directory),
        out: Relocated {
            arguments: Vec::new(),
            ports: Vec::new(),
            macs: Vec::new(),
            moved: Vec::new(),
        },
    };
    let mut words = Vec::new();
    for option in options(&line.arguments) {
        words.push(work.rewrite(option)?);
    }
    work.images.finish(&mut words)?;
    work.out.arguments = arguments(&words);
    Ok(work.out)
}

struct Work<'w> {
    params: &'w RelocateParams<'w>,
    images: Images<'w>,
    out: Relocated,
}

impl Work<'_> {
    fn rewrite(&mut self, option: OptionWord) -> Result<OptionWord> {
        let OptionWord { name, value } = as_drive(option);
        let Some(value) = value else { return Ok(OptionWord { name, value }) };
        let value = match name.as_str() {
            "pidfile" | "D" => self.own(&value)?,
            "append" | "name" | "uuid" => value,
            name if PATHS.contains(&name) => self.images.moved(&value).unwrap_or(value),
            "qmp" | "qmp-pretty" | "monitor" | "serial" | "parallel" => self.line(&name, &value)?,
            name => self.fields(name, &value)?,
        };
        Ok(OptionWord { name, value: Some(value) })
    }

    /// Rewrites an option that consists of keys and values.
    fn fields(&mut self, name: &str, value: &str) -> Result<String> {
        let mut fields = Fields::read(value);
        self.refuse_shared(name, value, &fields)?;
        self.images.exchange(&mut fields, name)?;
        match name {
            "chardev" => self.character_device(&mut fields, value)?,
            "netdev" | "nic" | "net" if self.is_second() => self.ports(&mut fields, value)?,
            _ => {}
        }
        let is_card = name == "device" && fields.get("netdev").is_some();
        let is_card = is_card || (name == "nic" && fields.first() != Some("none"));
        if is_card && self.is_second() {
            let mac = mac(self.params.seed, self.out.macs.len());
            fields.set("mac", &mac);
            self.out.macs.push(mac);
        }
        let driver = fields.get("driver").or(fields.first());
        if name == "device" && driver == Some("vmgenid") {
            fields.set("guid", &guid(self.params.seed));
        }
        Ok(fields.write())
    }

    /// Rewrites a line in the short form of character devices: `unix:PATH,server`.
    fn line(&mut self, option: &str, value: &str) -> Result<String> {
        let (kind, rest) = value.split_once(':').unwrap_or((value, ""));
        let (place, more) = match rest.split_once(',') {
            Some((place, more)) => (place, format!(",{more}")),
            None => (rest, String::new()),
        };
        match kind {
            "unix" if is_server(&more) => Ok(format!("unix:{}{more}", self.own(place)?)),
            "file" => Ok(format!("file:{}{more}", self.own(place)?)),
            "none" | "null" | "vc" | "pty" | "stdio" | "mon" | "chardev" | "msmouse" => {
                Ok(value.to_owned())
            }
            _ if !self.is_second() => Ok(value.to_owned()),
            _ => Err(shared(option, value)),
        }
    }

    fn character_device(&mut self, fields: &mut Fields, value: &str) -> Result<()> {
        let kind = fields.get("backend").or(fields.first()).unwrap_or_default();
        let key = match kind {
            "socket" if is_server(&fields.write()) && fields.get("path").is_some() => "path",
            "file" => "path",
            "null" | "vc" | "pty" | "stdio" | "ringbuf" | "memory" | "msmouse" => return Ok(()),
            _ if !self.is_second() => return Ok(()),
            _ => return Err(shared("chardev", value)),
        };
        if let Some(path) = fields.get(key).map(str::to_owned) {
            let own = self.own(&path)?;
            fields.set(key, &own);
        }
        Ok(())
    }

    /// Moves the ports that lead into the guest: `tcp:ADDRESS:PORT-GUEST:PORT`.
    fn ports(&mut self, fields: &mut Fields, value: &str) -> Result<()> {
        let kind = fields.get("type").or(fields.first()).unwrap_or_default().to_owned();
        if !OWN_NETWORKS.contains(&kind.as_str()) {
            return Err(shared("netdev", value));
        }
        let mut outcome = Ok(());
        fields.visit(&mut |key, value| {
            if matches!(key, "hostfwd" | "hostfwd.str") && outcome.is_ok() {
                outcome = self.port(value).map(|moved| *value = moved);
            }
        });
        outcome
    }

    fn port(&mut self, rule: &str) -> Result<String> {
        let bad = || Error::unsupported(format!("the port in `hostfwd={rule}` cannot be read"));
        let (host, guest) = rule.split_once('-').ok_or_else(bad)?;
        let (place, port) = host.rsplit_once(':').ok_or_else(bad)?;
        let (protocol, address) = place.split_once(':').ok_or_else(bad)?;
        let from = port.parse().map_err(|_| bad())?;
        let protocol = if protocol.is_empty() { "tcp" } else { protocol };
        let Some(free_port) = self.params.free_port else { return Ok(rule.to_owned()) };
        let to = free_port(protocol, address)
            .map_err(Error::system(format!("find a free port for {rule}")))?;
        self.out.ports.push(MovedPort { protocol: protocol.to_owned(), from, to });
        Ok(format!("{protocol}:{address}:{to}-{guest}"))
    }

    /// Tells whether the first VM may run beside this one.
    fn is_second(&self) -> bool {
        self.params.free_port.is_some()
    }

    /// Refuses what a host has once.
    fn refuse_shared(&self, option: &str, value: &str, fields: &Fields) -> Result<()> {
        let driver = fields.get("driver").or(fields.first()).unwrap_or_default();
        let is_shared = match option {
            "device" => HOST_DEVICES.iter().any(|start| driver.starts_with(start)),
            "object" => fields.get("share").is_some_and(|share| share == "on"),
            "tpmdev" | "gdb" | "spice" | "vnc" | "mem-path" => value != "none",
            _ => false,
        };
        if is_shared && self.is_second() { Err(shared(option, value)) } else { Ok(()) }
    }

    /// Returns a place in the VM's own folder for a socket or a log.
    fn own(&mut self, path: &str) -> Result<String> {
        let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or("socket");
        let taken = |place: &Path| {
            let files = self.params.files.iter().any(|file| file.to == place);
            files || self.out.moved.iter().any(|(_, other)| other == place)
        };
        let plain = self.params.folder.join(name);
        let numbered = (2..).map(|number| self.params.folder.join(format!("{name}-{number}")));
        let place = std::iter::once(plain)
            .chain(numbered)
            .find(|place| !taken(place))
            .expect("numbers do not end");
        let text = place.to_str().ok_or_else(|| Error::unsupported("a path is not UTF-8 text"))?;
        let text = text.to_owned();
        self.out.moved.push((path.to_owned(), place));
        Ok(text)
    }
}

/// Names the machine type with its version, so that a newer QEMU makes the same
/// machine of it.
pub fn with_machine_type(given: &[String], machine: &str) -> Vec<String> {
    let mut words = options(given);
    let known = words.iter_mut().find(|word| matches!(word.name.as_str(), "machine" | "M"));
    match known.and_then(|word| word.value.as_mut()) {
        None => {
            let value = Some(machine.to_owned());
            words.push(OptionWord { name: "machine".to_owned(), value });
        }
        Some(value) => {
            let mut fields = Fields::read(value);
            match &mut fields {
                Fields::Words(words) if words.first().is_some_and(|(key, _)| key.is_none()) => {
                    machine.clone_into(&mut words[0].1);
                }
                fields => fields.set("type", machine),
            }
            *value = fields.write();
        }
    }
    arguments(&words)
}

/// Writes the short options for disks as `-drive`, which can tell a format.
fn as_drive(option: OptionWord) -> OptionWord {
    let OptionWord { name, value } = option;
    let kind = match name.as_str() {
        "" | "hda" => "index=0,media=disk",
        "hdb" => "index=1,media=disk",
        "hdc" => "index=2,media=disk",
        "hdd" => "index=3,media=disk",
        "fda" => "if=floppy,index=0",
        "fdb" => "if=floppy,index=1",
        "sd" => "if=sd",
        "mtdblock" => "if=mtd",
        "pflash" => "if=pflash",
        _ => return OptionWord { name, value },
    };
    let value = value.map(|file| format!("{kind},file={}", file.replace(',', ",,")));
    OptionWord { name: "drive".to_owned(), value }
}

fn shared(option: &str, value: &str) -> Error {
    Error::unsupported(format!("two VMs cannot both have `-{option} {value}`"))
}

/// Says whether a socket waits for others to connect, so that it can be anywhere.
fn is_server(value: &str) -> bool {
    let mut fields = Fields::read(value);
    let mut server = false;
    fields.visit(&mut |key, value| {
        server |= (key.is_empty() && value == "server") || (key == "server" && value == "on");
    });
    server || value.contains(r#""server":true"#)
}

/// Makes a hardware address that is administered locally (IEEE 802, bit 1 of the
/// first byte), and another one for each card of a VM.
fn mac(seed: [u8; 16], card: usize) -> String {
    let [a, b, c, d, e, ..] = seed;
    let card = u8::try_from(card % 256).expect("a remainder of 256");
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{:02x}", e.wrapping_add(card))
}

fn guid(seed: [u8; 16]) -> String {
    let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    format!("{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(from: &str, to: &str, format: Option<&str>) -> MovedFile {
        MovedFile { from: from.into(), to: to.into(), format: format.map(str::to_owned) }
    }

    fn run(given: &str) -> Result<Relocated> {
        let line = CommandLine {
            program: "/usr/bin/qemu".into(),
            arguments: given.split(' ').map(str::to_owned).collect(),
            directory: "/srv".into(),
            environment: Vec::new(),
        };
        let files =
            [moved("/srv/a.img", "/new/a", Some("qcow2")), moved("/boot/k", "/new/k", None)];
        // Each case names the disk, or it would be refused for that.
        let files = if given.contains("a.img") { &files[..] } else { &files[1..] };
        let params = RelocateParams {
            files,
            folder: Path::new("/new"),
            seed: [0xab; 16],
            free_port: Some(&|_, _| Ok(4000)),
        };
        relocate(&line, &params)
    }

    #[test]
    fn files_move_and_their_formats_are_said() {
        let check = |given: &str, expected: &str| {
            let line = run(given).unwrap().arguments.join(" ");
            assert_eq!(line, expected, "{given}");
        };
        check("-drive file=a.img,if=virtio", "-drive file=/new/a,if=virtio,format=qcow2");
        check("-hda a.img -m 1G", "-drive index=0,media=disk,file=/new/a,format=qcow2 -m 1G");
        check("a.img -S", "-drive index=0,media=disk,file=/new/a,format=qcow2 -S");
        check("-kernel /boot/k -append /boot/k", "-kernel /new/k -append /boot/k");
    }

    #[test]
    fn sockets_ports_and_addresses_become_its_own() {
        let check = |given: &str, expected: &str| {
            let line = run(given).unwrap().arguments.join(" ");
            assert_eq!(line, expected, "{given}");
        };
        check("-qmp unix:/run/q,server=on,wait=off", "-qmp unix:/new/q,server=on,wait=off");
        check("-serial file:/a/log -D /b/log", "-serial file:/new/log -D /new/log-2");
        check(
            "-chardev socket,id=c,path=s,server,nowait",
            "-chardev socket,id=c,path=/new/s,server,nowait",
        );
        check(
            "-netdev user,id=n,hostfwd=tcp:127.0.0.1:22-:22 -device e1000,netdev=n",
            "-netdev user,id=n,hostfwd=tcp:127.0.0.1:4000-:22 \
             -device e1000,netdev=n,mac=02:ab:ab:ab:ab:ab",
        );
        check(
            "-device vmgenid,guid=auto",
            "-device vmgenid,guid=abababab-abab-abab-abab-abababababab",
        );
    }

    #[test]
    fn the_machine_type_is_said_with_its_version() {
        let check = |given: &str, expected: &str| {
            let given: Vec<String> = given.split(' ').map(str::to_owned).collect();
            assert_eq!(with_machine_type(&given, "pc-q35-10.0").join(" "), expected);
        };
        check("-M q35,smm=off", "-M pc-q35-10.0,smm=off");
        check("-machine smm=off,type=q35", "-machine smm=off,type=pc-q35-10.0");
        check("-m 1G", "-m 1G -machine pc-q35-10.0");
    }

    #[test]
    fn what_cannot_be_shared_is_refused_by_name() {
        let check = |given: &str, words: &str| {
            let error = run(given).unwrap_err().to_string();
            assert!(error.contains(words), "{given}: {error}");
        };
        check("-device vfio-pci,host=01:00.0", "vfio-pci,host=01:00.0");
        check("-netdev tap,id=n,ifname=tap0", "ifname=tap0");
        check("-chardev socket,id=c,path=/run/tpm", "path=/run/tpm");
        check("-tpmdev emulator,id=t,chardev=c", "-tpmdev");
        check("-serial tcp:127.0.0.1:4444,server", "tcp:127.0.0.1:4444");
        check("-object memory-backend-file,id=m,mem-path=/m,share=on", "share=on");
        check("-m 1G -name a.img", "a.img in a way");
    }
}
