//! The arguments of QEMU as options with values: read, and rewritten for a new
//! start. Nothing is run or opened here.
//!
//! Source of the grammar: QEMU `qemu-options.hx` and `system/vl.c`: an option
//! starts with one or two dashes, and all but those listed below take a value.

use crate::fields::Fields;
use crate::inventory::PREFIX;

/// The options without a value, of QEMU 7.1 to 10.0.
const WITHOUT_VALUE: &[&str] = &[
    "h",
    "help",
    "version",
    "mem-prealloc",
    "snapshot",
    "usb",
    "nographic",
    "full-screen",
    "win2k-hack",
    "no-fd-bootchk",
    "no-acpi",
    "no-hpet",
    "preconfig",
    "S",
    "s",
    "enable-kvm",
    "xen-attach",
    "xen-domid-restrict",
    "no-reboot",
    "no-shutdown",
    "daemonize",
    "only-migratable",
    "nodefaults",
    "semihosting",
    "old-param",
    "no-user-config",
    "enable-sync-profile",
    "enable-fips",
    "perfmap",
    "jitdump",
    "singlestep",
    "nouserconfig",
    "realtime",
    "tdf",
];

/// One option as it stands on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionWord {
    /// Its name without dashes; empty for a bare word, which names a disk image.
    pub name: String,
    /// Its value, if it takes one.
    pub value: Option<String>,
}

/// Splits arguments into options. A value that is missing at the end is `None`.
pub fn options(arguments: &[String]) -> Vec<OptionWord> {
    let mut words = arguments.iter();
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-') else {
            options.push(OptionWord { name: String::new(), value: Some(word.clone()) });
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name).to_owned();
        let value =
            if WITHOUT_VALUE.contains(&name.as_str()) { None } else { words.next().cloned() };
        options.push(OptionWord { name, value });
    }
    options
}

/// Returns the options as arguments again.
pub fn arguments(options: &[OptionWord]) -> Vec<String> {
    let mut arguments = Vec::new();
    for OptionWord { name, value } in options {
        if !name.is_empty() {
            arguments.push(format!("-{name}"));
        }
        arguments.extend(value.clone());
    }
    arguments
}

/// Returns the arguments without what belongs to the last start alone: loading
/// a state, waiting for a `cont`, going to the background, a monitor of ours.
pub fn without_start_options(given: &[String]) -> Vec<String> {
    let is_ours = |option: &OptionWord| {
        let value = option.value.as_deref().unwrap_or_default();
        let id = match option.name.as_str() {
            "chardev" => value_of(value, "id"),
            "mon" => value_of(value, "chardev"),
            _ => None,
        };
        id.is_some_and(|id| id.starts_with(PREFIX))
    };
    let mut kept = options(given);
    kept.retain(|option| !["incoming", "loadvm", "S", "daemonize"].contains(&option.name.as_str()));
    kept.retain(|option| !is_ours(option));
    arguments(&kept)
}

/// Returns the value of `key` in an option value such as `file=a,if=virtio`.
/// Two commas stand for one, as QEMU has it.
pub fn value_of(value: &str, key: &str) -> Option<String> {
    parts(value).find_map(|part| {
        let (name, value) = part.split_once('=')?;
        (name == key).then(|| value.to_owned())
    })
}

/// Names what on the command line came from the process that started QEMU and
/// cannot be had again: file descriptors. `None` if there is no such thing.
pub fn inherited_descriptor(given: &[String]) -> Option<String> {
    options(given).into_iter().find_map(|option| {
        let value = option.value.unwrap_or_default();
        let inherits = option.name == "add-fd"
            || parts(&value).any(|part| {
                part.split_once('=').is_some_and(|(key, value)| {
                    let descriptor = ["fd", "fds", "vhostfd", "vhostfds"].contains(&key);
                    descriptor || (key == "path" && value.starts_with("/dev/fdset/"))
                })
            });
        inherits.then(|| format!("-{} {value}", option.name))
    })
}

/// Returns the paths of small files that options name: kernel, initial RAM disk,
/// device tree, firmware. They are as written: relative ones start from QEMU's
/// directory, and some are names that QEMU looks up in its own data folder.
pub fn named_files(given: &[String]) -> Vec<String> {
    let mut files = Vec::new();
    for OptionWord { name, value } in options(given) {
        let Some(value) = value else { continue };
        match name.as_str() {
            "kernel" | "dtb" | "bios" | "shim" => files.push(value),
            // With `-kernel` of the multiboot kind this is a list, each with arguments.
            "initrd" => files
                .extend(parts(&value).filter_map(|part| part.split(' ').next().map(str::to_owned))),
            "machine" | "M" => files.extend(
                ["kernel", "initrd", "dtb", "firmware"]
                    .iter()
                    .filter_map(|key| value_of(&value, key)),
            ),
            "acpitable" | "smbios" | "fw_cfg" | "device" => {
                files.extend(["file", "romfile"].iter().filter_map(|key| value_of(&value, key)));
            }
            _ => {}
        }
    }
    files.retain(|file| !file.is_empty());
    files
}

/// Returns the arguments with each file name in `replaced` exchanged.
pub fn with_files_replaced(given: &[String], replaced: &[(String, String)]) -> Vec<String> {
    let mut words = options(given);
    for option in &mut words {
        let Some(value) = &mut option.value else { continue };
        let takes_files = [
            "kernel",
            "dtb",
            "bios",
            "shim",
            "initrd",
            "machine",
            "M",
            "acpitable",
            "smbios",
            "fw_cfg",
            "device",
        ]
        .contains(&option.name.as_str());
        if !takes_files {
            continue;
        }
        for (old, new) in replaced {
            let changed: Vec<String> = parts(value)
                .map(|part| match part.split_once('=') {
                    _ if part == *old => new.clone(),
                    Some((key, value)) if value == old => format!("{key}={new}"),
                    _ => part,
                })
                .map(|part| part.replace(',', ",,"))
                .collect();
            *value = changed.join(",");
        }
    }
    arguments(&words)
}

/// Returns the socket that leads to the guest's agent, as the command line has it.
pub fn agent_socket(given: &[String]) -> Option<String> {
    let words = options(given);
    let fields = |name: &'static str| {
        let named = words.iter().filter(move |word| word.name == name);
        named.filter_map(|word| word.value.as_deref()).map(Fields::read)
    };
    let port = fields("device").find(|device| device.get("name") == Some(crate::agent::PORT))?;
    let chardev = port.get("chardev")?;
    let socket = fields("chardev").find(|device| device.get("id") == Some(chardev))?;
    socket.get("path").map(str::to_owned)
}

/// Splits an option value at single commas.
pub(crate) fn parts(value: &str) -> impl Iterator<Item = String> {
    const COMMA: &str = "\u{0}";
    value
        .replace(",,", COMMA)
        .split(',')
        .map(|part| part.replace(COMMA, ","))
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_belongs_to_one_start_is_left_out() {
        let check = |given: &str, expected: &str| {
            assert_eq!(without_start_options(&words(given)), words(expected), "{given}");
        };
        check("-m 1G -S -incoming defer -daemonize", "-m 1G");
        check("--incoming tcp:0:1 --m 1G", "-m 1G");
        check("-append -S -kernel k", "-append -S -kernel k");
        check("-chardev pipe,id=tintype-rescue,path=p -mon chardev=tintype-rescue -m 1", "-m 1");
        check("-chardev null,id=a -mon chardev=a", "-chardev null,id=a -mon chardev=a");
        check("disk.img -snapshot", "disk.img -snapshot");
        check("-m 1G -loadvm x -name -incoming", "-m 1G -name -incoming");
    }

    #[test]
    fn inherited_descriptors_are_found() {
        let check = |given: &str, found: Option<&str>| {
            assert_eq!(inherited_descriptor(&words(given)).as_deref(), found, "{given}");
        };
        check("-netdev tap,id=n,fd=30", Some("-netdev tap,id=n,fd=30"));
        check("-add-fd fd=3,set=1", Some("-add-fd fd=3,set=1"));
        check("-netdev tap,id=fd", None);
        check("-append fd=1,fd=2", Some("-append fd=1,fd=2"));
    }

    #[test]
    fn files_are_named_and_replaced() {
        let given =
            words("-kernel /k -initrd /i -append /k -M q35,firmware=/f -device x,romfile=/r");
        assert_eq!(named_files(&given), ["/k", "/i", "/f", "/r"]);
        let replaced = [("/k".to_owned(), "/new,k".to_owned()), ("/f".to_owned(), "/g".to_owned())];
        assert_eq!(
            with_files_replaced(&given, &replaced),
            words("-kernel /new,,k -initrd /i -append /k -M q35,firmware=/g -device x,romfile=/r")
        );
    }

    #[test]
    fn the_socket_of_the_agent_is_found() {
        let check = |given: &str, expected: Option<&str>| {
            assert_eq!(agent_socket(&words(given)).as_deref(), expected, "{given}");
        };
        let port = "-device virtserialport,chardev=a,name=org.qemu.guest_agent.0";
        check(&format!("-chardev socket,id=a,path=/run/a,server=on {port}"), Some("/run/a"));
        check(&format!("-chardev pty,id=a {port}"), None);
        check("-chardev socket,id=a,path=/run/a", None);
    }

    #[test]
    fn commas_can_be_written_twice() {
        assert_eq!(value_of("file=a,,b,if=virtio", "file").as_deref(), Some("a,b"));
        assert_eq!(value_of("if=virtio", "file"), None);
    }
}
