//! Takes a medium out of a command line: the drive that had it starts empty.

use std::path::Path;

use crate::arguments::{OptionWord, arguments, options};
use crate::fields::Fields;
use crate::process::CommandLine;

/// Drives that can be empty.
const REMOVABLE: [&str; 3] = ["floppy", "ide-cd", "scsi-cd"];

/// Returns the arguments with the drive of that file empty; `None` if no drive that can
/// be empty has it.
pub fn without_medium(line: &CommandLine, file: &Path) -> Option<Vec<String>> {
    let is_it =
        |name: &str| line.directory.join(name.strip_prefix("file:").unwrap_or(name)) == file;
    let names_it = |word: &OptionWord| {
        let fields = word.value.as_deref().map(Fields::read);
        fields.is_some_and(|fields| {
            let keys = ["file", "file.filename", "filename"];
            keys.iter().any(|key| fields.get(key).is_some_and(is_it))
        })
    };
    let mut words = options(&line.arguments);
    let short =
        |word: &OptionWord| word.name == "cdrom" && word.value.as_deref().is_some_and(is_it);
    if let Some(word) = words.iter_mut().find(|word| short(word)) {
        *word =
            OptionWord { name: "drive".to_owned(), value: Some("index=2,media=cdrom".to_owned()) };
        return Some(arguments(&words));
    }
    if let Some(word) = words.iter_mut().find(|word| word.name == "drive" && names_it(word)) {
        let mut fields = Fields::read(word.value.as_deref()?);
        if fields.get("media") != Some("cdrom") {
            return None;
        }
        ["file", "file.filename", "file.driver", "format", "driver"]
            .into_iter()
            .for_each(|key| fields.remove(key));
        word.value = Some(fields.write());
        return Some(arguments(&words));
    }
    // The device names the node that has the file, or one above it.
    let mut at = words.iter().position(|word| word.name == "blockdev" && names_it(word))?;
    loop {
        let node = words.remove(at);
        let name = Fields::read(node.value.as_deref()?).get("node-name")?.to_owned();
        let uses = |word: &OptionWord, option: &str, key: &str| {
            let value = word.value.as_deref().filter(|_| word.name == option);
            value.is_some_and(|value| Fields::read(value).get(key) == Some(&name))
        };
        if let Some(above) = words.iter().position(|word| uses(word, "blockdev", "file")) {
            at = above;
            continue;
        }
        let device = words.iter_mut().find(|word| uses(word, "device", "drive"))?;
        let mut fields = Fields::read(device.value.as_deref()?);
        if !REMOVABLE.contains(&fields.get("driver").or(fields.first())?) {
            return None;
        }
        fields.remove("drive");
        device.value = Some(fields.write());
        return Some(arguments(&words));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_of_each_notation_becomes_empty() {
        let check = |given: &str, expected: Option<&str>| {
            let line = CommandLine {
                program: "qemu".into(),
                arguments: given.split(' ').map(str::to_owned).collect(),
                directory: "/srv".into(),
                environment: Vec::new(),
            };
            let without = without_medium(&line, Path::new("/srv/a.iso"));
            assert_eq!(without.map(|words| words.join(" ")).as_deref(), expected, "{given}");
        };
        check("-cdrom a.iso -m 1", Some("-drive index=2,media=cdrom -m 1"));
        check(
            "-drive if=none,id=c,media=cdrom,format=raw,file=/srv/a.iso",
            Some("-drive if=none,id=c,media=cdrom"),
        );
        check("-drive file=a.iso,readonly=on,if=virtio", None);
        check(
            "-blockdev driver=file,node-name=f,filename=a.iso \
             -blockdev {\"driver\":\"raw\",\"node-name\":\"r\",\"file\":\"f\"} \
             -device scsi-cd,drive=r,id=d",
            Some("-device scsi-cd,id=d"),
        );
        check(
            "-blockdev driver=raw,node-name=n,file.driver=file,file.filename=a.iso \
             -device virtio-blk-pci,drive=n",
            None,
        );
        check("-cdrom b.iso", None);
    }
}
