//! Drives whose image is another one than on the command line: a medium that was
//! changed or ejected, or a disk that an overlay or a copy has taken over.

use serde_json::Value;

use super::{Device, Work, backend, find, option};
use crate::arguments::OptionWord;
use crate::fields::Fields;

/// What the command line says of a drive.
enum Source {
    /// `-drive`, at this place.
    Drive(usize),
    /// `-device` at this place, with this node or with none.
    Node(usize, Option<String>),
    /// A short option at this place, or none: the drive that every machine has.
    Cdrom(Option<usize>),
}

impl Work<'_> {
    /// Makes each drive of the command line have the image that it has now.
    pub(super) fn follow_drives(&mut self, devices: &[Device], drives: &[Value]) {
        // Then images are temporary files, made anew at each start.
        if self.words.iter().any(|word| word.name == "snapshot") {
            return;
        }
        for drive in drives {
            let owner = devices.iter().find(|device| device.has_drive(drive));
            if drive["qdev"].is_null() || owner.is_some_and(|device| device.plugged) {
                continue;
            }
            let name = owner.map(Device::name).or(drive["device"].as_str()).unwrap_or("?");
            if let Err(why) = self.follow(drive, owner, name) {
                self.out.unknown.push(format!(
                    "the drive `{name}` has another image than on QEMU's command line, and {why}"
                ));
            }
        }
    }

    fn follow(&mut self, drive: &Value, owner: Option<&Device>, name: &str) -> Result<(), String> {
        let file = drive["inserted"]["image"]["filename"].as_str();
        let Some(source) = self.source(drive, owner) else {
            return match file {
                Some(file) if self.is_file(file) && !self.names(file) => {
                    Err("there is no telling which option it is of".to_owned())
                }
                _ => Ok(()),
            };
        };
        let change = match &source {
            Source::Drive(at) => self.follow_option(*at, drive)?,
            Source::Node(at, node) => self.follow_node(*at, node.as_deref(), drive, name)?,
            Source::Cdrom(at) => self.follow_cdrom(*at, drive)?,
        };
        if change {
            self.out.changes.push(match file {
                Some(file) => format!("the drive `{name}` has the image {file} now"),
                None => format!("the drive `{name}` is empty now"),
            });
        }
        Ok(())
    }

    fn source(&self, drive: &Value, owner: Option<&Device>) -> Option<Source> {
        if let Some(id) = owner.and_then(|device| device.id.as_deref()) {
            let at = self.find("device", id)?;
            let fields = Fields::read(self.words[at].value.as_deref()?);
            let Some(below) = fields.get("drive") else { return Some(Source::Node(at, None)) };
            let with_drive = find(&self.words, "drive", below).map(Source::Drive);
            return Some(with_drive.unwrap_or(Source::Node(at, Some(below.to_owned()))));
        }
        let device = drive["device"].as_str().filter(|name| !name.is_empty())?;
        let by_id = find(&self.words, "drive", device).map(Source::Drive);
        let is_cdrom = || device.starts_with("ide") && device.contains("-cd");
        by_id.or_else(|| is_cdrom().then(|| self.cdrom())?)
    }

    /// Finds the one CD drive that the machine makes by itself.
    fn cdrom(&self) -> Option<Source> {
        let is_cdrom = |word: &OptionWord| {
            let fields = || word.value.as_deref().map(Fields::read);
            let unnamed = |fields: Fields| {
                fields.get("media") == Some("cdrom")
                    && fields.get("id").is_none()
                    && fields.get("if").is_none_or(|kind| kind == "ide")
            };
            word.name == "cdrom" || (word.name == "drive" && fields().is_some_and(unnamed))
        };
        let mut found = (0..self.words.len()).filter(|&at| is_cdrom(&self.words[at]));
        match (found.next(), found.next()) {
            (at, None) => Some(Source::Cdrom(at)),
            _ => None,
        }
    }

    /// Gives `-drive` the image of now. Tells whether it was another one.
    fn follow_option(&mut self, at: usize, drive: &Value) -> Result<bool, String> {
        let mut fields = Fields::read(self.words[at].value.as_deref().unwrap_or_default());
        let keys = ["file", "file.filename"];
        let key = keys.into_iter().find(|key| fields.get(key).is_some());
        let given = key.and_then(|key| fields.get(key));
        let now = drive["inserted"]["image"]["filename"].as_str();
        let is_temporary = fields.get("snapshot") == Some("on");
        match (given, now) {
            (None, None) => return Ok(false),
            // Other names than of files QEMU may tell in another way.
            (Some(given), Some(now))
                if self.is_same(given, now)
                    || is_temporary
                    || !(self.is_file(given) || self.is_file(now)) =>
            {
                return Ok(false);
            }
            (_, None) => {
                ["file", "file.filename", "file.driver", "format", "driver"]
                    .into_iter()
                    .for_each(|key| fields.remove(key));
            }
            (_, Some(now)) => {
                let node = backend::node(drive, "")?;
                let format = match node["driver"].as_str() {
                    Some("file" | "host_device") => "raw",
                    Some(format) => format,
                    None => return Err("QEMU does not say its format".to_owned()),
                };
                fields.set(key.unwrap_or("file"), now);
                fields.remove("driver");
                fields.set("format", format);
            }
        }
        self.words[at].value = Some(fields.write());
        Ok(true)
    }

    /// Gives the device at a place the node of now, and describes that.
    fn follow_node(
        &mut self,
        at: usize,
        given: Option<&str>,
        drive: &Value,
        name: &str,
    ) -> Result<bool, String> {
        let now = drive["inserted"]["node-name"].as_str();
        if now == given {
            return Ok(false);
        }
        let mut fields = Fields::read(self.words[at].value.as_deref().unwrap_or_default());
        fields.remove("drive");
        if let Some(now) = now {
            // Names that QEMU makes cannot be given.
            let node = if now.starts_with('#') { format!("{name}-medium") } else { now.to_owned() };
            if find(&self.words, "blockdev", &node).is_none() {
                self.words.push(option("blockdev", &backend::node(drive, &node)?));
            }
            fields.set("drive", &node);
        }
        self.words[at].value = Some(fields.write());
        if let Some(given) = given {
            drop_node(&mut self.words, given);
        }
        Ok(true)
    }

    fn follow_cdrom(&mut self, at: Option<usize>, drive: &Value) -> Result<bool, String> {
        let (at, added) = match at {
            Some(at) => (at, false),
            None if drive["inserted"].is_null() => return Ok(false),
            None => {
                let value = Some("index=2,media=cdrom".to_owned());
                self.words.push(OptionWord { name: "drive".to_owned(), value });
                (self.words.len() - 1, true)
            }
        };
        if self.words[at].name == "cdrom" {
            let file = self.words[at].value.take().unwrap_or_default().replace(',', ",,");
            let value = Some(format!("index=2,media=cdrom,file={file}"));
            self.words[at] = OptionWord { name: "drive".to_owned(), value };
        }
        Ok(self.follow_option(at, drive)? || added)
    }

    /// Tells whether any option names a file.
    fn names(&self, file: &str) -> bool {
        self.words.iter().filter_map(|word| word.value.as_deref()).any(|value| {
            let mut found = self.is_same(value, file);
            Fields::read(value).visit(&mut |_, value| found |= self.is_same(value, file));
            found
        })
    }

    fn is_file(&self, name: &str) -> bool {
        self.directory.join(name.strip_prefix("file:").unwrap_or(name)).exists()
    }

    fn is_same(&self, given: &str, now: &str) -> bool {
        let path = |name: &str| self.directory.join(name.strip_prefix("file:").unwrap_or(name));
        path(given) == path(now)
    }
}

/// Drops a node that nothing on the command line stands on any more, and what it stood
/// on alone: it would hold its image, which may be the backing file of the one of now.
pub(crate) fn drop_node(words: &mut Vec<OptionWord>, name: &str) {
    let is_used = |word: &OptionWord| {
        let mut found = false;
        if let ("blockdev" | "drive" | "device", Some(value)) = (&*word.name, &word.value) {
            let names = |key: &str| !matches!(key, "" | "id" | "node-name" | "serial");
            Fields::read(value).visit(&mut |key, value| found |= names(key) && value == name);
        }
        found
    };
    let Some(at) = find(words, "blockdev", name) else { return };
    if words.iter().any(is_used) {
        return;
    }
    let word = words.remove(at);
    let fields = Fields::read(word.value.as_deref().unwrap_or_default());
    for key in ["file", "backing"] {
        if let Some(below) = fields.get(key) {
            drop_node(words, below);
        }
    }
}
