//! Files that a command line names and that have another place now. Of disk images it
//! says the format too, however the option is written, so that none is ever probed.
//!
//! An image that has moved is whole by itself. What was said of the old one alone goes
//! with it: which part of a file was the disk, what lay below it, and, if it is of
//! another format now, what only the old format knows.

use std::path::Path;

use serde_json::{Map, Value};

use crate::arguments::OptionWord;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::hardware::drop_node;
use crate::relocate::MovedFile;

/// The drivers that make a disk of a file's bytes, but for those of networks.
const FORMATS: [&str; 13] = [
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "parallels",
    "bochs",
    "cloop",
    "dmg",
    "luks",
];

/// What is said of a node whatever its driver is (`BlockdevOptions` in
/// qapi/block-core.json), and is passed on to the node of the file below it.
const OF_ANY_NODE: [&str; 7] = [
    "auto-read-only",
    "cache",
    "detect-zeroes",
    "discard",
    "force-share",
    "node-name",
    "read-only",
];

/// What was said of the old image alone.
const OF_OLD_IMAGE: [&str; 4] = ["backing", "data-file", "offset", "size"];

/// What only qcow2 knows, but for encryption, which nobody should lose unawares.
const OF_QCOW2: [&str; 11] = [
    "cache-clean-interval",
    "cache-size",
    "discard-no-unref",
    "l2-cache-entry-size",
    "l2-cache-size",
    "lazy-refcounts",
    "overlap-check",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
    "refcount-cache-size",
];

/// Files that have moved, on their way into a command line.
pub(crate) struct Images<'i> {
    files: &'i [MovedFile],
    directory: &'i Path,
    /// Which of the files were named.
    found: Vec<bool>,
    /// Nodes of files whose format is said by the node above, and that format.
    protocols: Vec<(String, String)>,
    /// Nodes that lay below an old image.
    below: Vec<String>,
}

/// An image that an option has named.
struct Named {
    key: String,
    format: String,
    /// Whether that was in the name of a file, as `json:{…}`.
    in_name: bool,
}

impl<'i> Images<'i> {
    /// Of files, where relative paths are taken from a directory.
    pub(crate) fn new(files: &'i [MovedFile], directory: &'i Path) -> Self {
        let found = vec![false; files.len()];
        Self { files, directory, found, protocols: Vec::new(), below: Vec::new() }
    }

    /// Returns the new place of a file, if it has moved.
    pub(crate) fn moved(&mut self, value: &str) -> Option<String> {
        let number = self.position(value)?;
        self.found[number] = true;
        Some(self.files[number].to.display().to_string())
    }

    fn position(&self, value: &str) -> Option<usize> {
        let path = self.directory.join(value.strip_prefix("file:").unwrap_or(value));
        self.files.iter().position(|file| !value.is_empty() && file.from == path)
    }

    /// Exchanges the files that the value of an option names.
    pub(crate) fn exchange(&mut self, fields: &mut Fields, option: &str) -> Result<()> {
        let is_drive = option == "drive";
        if let ("blockdev", Fields::Words(words)) = (option, &mut *fields)
            && let Some((key @ None, _)) = words.first_mut()
        {
            *key = Some("driver".to_owned());
        }
        for Named { key, format, in_name } in self.exchange_names(fields)? {
            let above = key.strip_suffix("filename");
            if in_name {
                // What the name says counts, unless the option says it, too.
                if ["driver", "format"].iter().any(|key| fields.get(key).is_some()) {
                    self.say(fields, top(fields, is_drive), &format)?;
                }
            } else if is_drive && key == "file" {
                self.say(fields, top(fields, is_drive), &format)?;
            } else if above == Some("") {
                let node = fields.get("node-name").unwrap_or_default().to_owned();
                self.protocols.push((node, format));
            } else {
                let node = above.and_then(|above| above.strip_suffix("file."));
                let driver = match node.ok_or_else(|| unknown(&key))? {
                    "" => top(fields, is_drive).to_owned(),
                    node => format!("{node}driver"),
                };
                self.say(fields, &driver, &format)?;
            }
        }
        Ok(())
    }

    /// Exchanges the names, and returns those of images.
    fn exchange_names(&mut self, fields: &mut Fields) -> Result<Vec<Named>> {
        let mut images = Vec::new();
        let mut outcome = Ok(());
        fields.visit(&mut |key, value| {
            let named = if let Some(number) = self.position(value) {
                let file = &self.files[number];
                *value = file.to.display().to_string();
                self.found[number] = true;
                file.format.clone().map(|format| (format, false))
            } else if let Some(json) = value.strip_prefix("json:") {
                match self.exchange_within(json) {
                    Ok(Some((name, format))) => {
                        *value = name;
                        Some((format, true))
                    }
                    Ok(None) => None,
                    Err(error) => {
                        outcome = Err(error);
                        None
                    }
                }
            } else {
                None
            };
            let named = named.map(|(format, in_name)| (key.to_owned(), format, in_name));
            images.extend(named.map(|(key, format, in_name)| Named { key, format, in_name }));
        });
        outcome.map(|()| images)
    }

    /// Exchanges the image in a name that describes its nodes. Returns the new name, and
    /// the format.
    fn exchange_within(&mut self, json: &str) -> Result<Option<(String, String)>> {
        let mut fields = Fields::read(json);
        let Some(Named { key, format, .. }) = self.exchange_names(&mut fields)?.pop() else {
            return Ok(None);
        };
        match key.strip_suffix("filename") {
            Some("") if format == "raw" => {}
            Some("") => put_below(&mut fields, &format),
            above => {
                let node = above.and_then(|above| above.strip_suffix("file."));
                let node = node.ok_or_else(|| unknown(&key))?;
                self.say(&mut fields, &format!("{node}driver"), &format)?;
            }
        }
        Ok(Some((format!("json:{}", fields.write()), format)))
    }

    /// Says the format of an image in the node that stands on its file, by the key of
    /// that node's driver: below others it is `file.driver`.
    fn say(&mut self, fields: &mut Fields, key: &str, format: &str) -> Result<()> {
        match fields.get(key) {
            Some(other) if !FORMATS.contains(&other) && format == "raw" => return Ok(()),
            Some(other) if !FORMATS.contains(&other) => {
                let why = format!("`{other}` stands on a disk image itself");
                return Err(Error::unsupported(format!("{why}, which is {format} now")));
            }
            _ => fields.set(key, format),
        }
        let node = key.strip_suffix("driver").unwrap_or_default();
        self.below.extend(fields.get(&format!("{node}backing")).map(str::to_owned));
        let of_format: &[&str] = if format == "qcow2" { &[] } else { &OF_QCOW2 };
        for old in OF_OLD_IMAGE.iter().chain(of_format) {
            fields.remove_whole(&format!("{node}{old}"));
        }
        Ok(())
    }

    /// Says the formats that are said in other options than the files, and looks that
    /// every image was named.
    pub(crate) fn finish(mut self, words: &mut Vec<OptionWord>) -> Result<()> {
        for (node, format) in std::mem::take(&mut self.protocols) {
            self.say_above(words, &node, &format)?;
        }
        let mut files = self.files.iter().zip(&self.found);
        let lost = files.find(|(file, found)| file.format.is_some() && !**found);
        if let Some((file, _)) = lost {
            return Err(Error::unsupported(format!(
                "the command line names the disk image {} in a way that cannot be changed",
                file.from.display()
            )));
        }
        for node in self.below {
            drop_node(words, &node);
        }
        Ok(())
    }

    /// Says the format of a file in the node that stands on the file's own.
    fn say_above(&mut self, words: &mut [OptionWord], node: &str, format: &str) -> Result<()> {
        for word in words.iter_mut() {
            let is_block = matches!(word.name.as_str(), "blockdev" | "drive");
            let Some(value) = word.value.as_mut().filter(|_| is_block) else { continue };
            let mut fields = Fields::read(value);
            let key = match stands_on(&mut fields, node).as_deref() {
                None => continue,
                Some("") => top(&fields, word.name == "drive").to_owned(),
                Some(above) => format!("{above}driver"),
            };
            if fields.get(&key).is_none_or(|driver| FORMATS.contains(&driver)) {
                self.say(&mut fields, &key, format)?;
                *value = fields.write();
                return Ok(());
            }
        }
        if format == "raw" {
            // What uses the file itself has no need of a node above.
            return Ok(());
        }
        for word in words.iter_mut().filter(|word| word.name == "blockdev") {
            let Some(value) = &mut word.value else { continue };
            let mut fields = Fields::read(value);
            if fields.get("node-name") == Some(node) {
                put_below(&mut fields, format);
                *value = fields.write();
                return Ok(());
            }
        }
        Err(Error::unsupported(format!("nothing says the format of the node `{node}`")))
    }
}

/// Returns the key by which an option says the driver of its first node.
fn top(fields: &Fields, is_drive: bool) -> &'static str {
    if is_drive && fields.get("driver").is_none() { "format" } else { "driver" }
}

/// Returns where a node is that stands on another one, which it names.
fn stands_on(fields: &mut Fields, node: &str) -> Option<String> {
    let mut above = None;
    fields.visit(&mut |key, value| {
        let is_file = key == "file" || key.ends_with(".file");
        if is_file && value == node {
            above = key.strip_suffix("file").map(str::to_owned);
        }
    });
    above
}

/// Puts the node of a file below one that says a format, which gets its name.
fn put_below(fields: &mut Fields, format: &str) {
    let is_general = |key: &str| OF_ANY_NODE.contains(&key.split('.').next().unwrap_or(key));
    match fields {
        Fields::Words(words) => {
            for key in words.iter_mut().filter_map(|(key, _)| key.as_mut()) {
                if !is_general(key) {
                    *key = format!("file.{key}");
                }
            }
            words.insert(0, (Some("driver".to_owned()), format.to_owned()));
        }
        Fields::Json(json) => {
            let all = json.as_object().cloned().unwrap_or_default();
            let (mut node, file): (Map<_, _>, Map<_, _>) =
                all.into_iter().partition(|(key, _)| is_general(key));
            node.insert("driver".to_owned(), format.into());
            node.insert("file".to_owned(), Value::Object(file));
            *json = Value::Object(node);
        }
    }
}

fn unknown(key: &str) -> Error {
    Error::unsupported(format!("the command line names a disk image as `{key}`"))
}

#[cfg(test)]
mod tests {
    use crate::process::CommandLine;
    use crate::relocate::{MovedFile, RelocateParams, relocate};

    /// Moves `/srv/a.img` to `/new/a`, which has a format, and expects the command line.
    #[track_caller]
    fn check(format: &str, given: &str, expected: &str) {
        assert_eq!(moved(format, given).unwrap(), expected, "{given}");
    }

    fn moved(format: &str, given: &str) -> Result<String, String> {
        let line = CommandLine {
            program: "/usr/bin/qemu".into(),
            arguments: given.split(' ').map(str::to_owned).collect(),
            directory: "/srv".into(),
            environment: Vec::new(),
        };
        let (from, to) = ("/srv/a.img".into(), "/new/a".into());
        let files = [MovedFile { from, to, format: Some(format.to_owned()) }];
        let folder = "/new".as_ref();
        let params = RelocateParams { files: &files, folder, seed: [0; 16], free_port: None };
        let moved = relocate(&line, &params).map_err(|error| error.to_string())?;
        Ok(moved.arguments.join(" "))
    }

    #[test]
    fn a_drive_gets_the_format_of_its_image() {
        check("qcow2", "-drive file=a.img,format=raw", "-drive file=/new/a,format=qcow2");
        check("qcow2", "-drive file=a.img,driver=raw", "-drive file=/new/a,driver=qcow2");
        check("qcow2", "-drive if=ide,file=a.img", "-drive if=ide,file=/new/a,format=qcow2");
        check(
            "qcow2",
            "-drive format=raw,file.driver=file,file.filename=file:/srv/a.img",
            "-drive format=qcow2,file.driver=file,file.filename=/new/a",
        );
        check("raw", "-fda a.img", "-drive if=floppy,index=0,file=/new/a,format=raw");
        check(
            "raw",
            "-drive format=qcow2,l2-cache-size=1M,overlap-check.template=all,file=a.img",
            "-drive format=raw,file=/new/a",
        );
    }

    #[test]
    fn a_node_gets_the_format_of_its_image() {
        check(
            "qcow2",
            "-blockdev driver=raw,node-name=n,file.driver=file,file.filename=/srv/a.img",
            "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=/new/a",
        );
        check(
            "qcow2",
            "-blockdev raw,node-name=n,file.driver=file,file.filename=a.img",
            "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=/new/a",
        );
        check(
            "qcow2",
            r#"-blockdev {"driver":"raw","file":{"driver":"file","filename":"a.img"}}"#,
            r#"-blockdev {"driver":"qcow2","file":{"driver":"file","filename":"/new/a"}}"#,
        );
        check(
            "qcow2",
            "-blockdev driver=file,node-name=f,filename=a.img -blockdev driver=raw,file=f",
            "-blockdev driver=file,node-name=f,filename=/new/a -blockdev driver=qcow2,file=f",
        );
        check(
            "qcow2",
            "-blockdev throttle,throttle-group=g,file.driver=raw,file.file=f \
             -blockdev file,node-name=f,filename=a.img",
            "-blockdev driver=throttle,throttle-group=g,file.driver=qcow2,file.file=f \
             -blockdev driver=file,node-name=f,filename=/new/a",
        );
    }

    #[test]
    fn a_file_without_a_format_gets_a_node_above() {
        check(
            "qcow2",
            "-blockdev file,node-name=f,filename=a.img,cache.direct=on,aio=native",
            "-blockdev driver=qcow2,file.driver=file,node-name=f,file.filename=/new/a,\
             cache.direct=on,file.aio=native",
        );
        check(
            "qcow2",
            r#"-blockdev {"driver":"file","node-name":"f","filename":"a.img","read-only":false}"#,
            r#"-blockdev {"driver":"qcow2","file":{"driver":"file","filename":"/new/a"},"node-name":"f","read-only":false}"#,
        );
        let alone = "-blockdev driver=file,node-name=f,filename=";
        check("raw", &format!("{alone}a.img"), &format!("{alone}/new/a"));
    }

    #[test]
    fn names_that_describe_nodes_are_changed_within() {
        check(
            "qcow2",
            r#"-drive format=raw,file=json:{"driver":"raw",,"file":{"driver":"file",,"filename":"a.img"}}"#,
            r#"-drive format=qcow2,file=json:{"driver":"qcow2",,"file":{"driver":"file",,"filename":"/new/a"}}"#,
        );
        check(
            "qcow2",
            r#"-hda json:{"file.driver":"file","file.filename":"a.img"}"#,
            r#"-drive index=0,media=disk,file=json:{"driver":"qcow2",,"file.driver":"file",,"file.filename":"/new/a"}"#,
        );
        check(
            "qcow2",
            r#"-drive file=json:{"driver":"file",,"filename":"a.img"}"#,
            r#"-drive file=json:{"driver":"qcow2",,"file":{"driver":"file",,"filename":"/new/a"}}"#,
        );
        check(
            "raw",
            r#"-drive file=json:{"driver":"file",,"filename":"a.img"}"#,
            r#"-drive file=json:{"driver":"file",,"filename":"/new/a"}"#,
        );
    }

    #[test]
    fn what_was_of_the_old_image_alone_goes() {
        check(
            "qcow2",
            "-drive file=a.img,format=raw,offset=512,size=1M",
            "-drive file=/new/a,format=qcow2",
        );
        check(
            "qcow2",
            "-blockdev qcow2,node-name=base,file.driver=file,file.filename=/srv/base \
             -blockdev qcow2,node-name=n,backing=base,file.driver=file,file.filename=a.img",
            "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=/new/a",
        );
        check(
            "qcow2",
            r#"-blockdev {"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"a.img"}}"#,
            r#"-blockdev {"driver":"qcow2","file":{"driver":"file","filename":"/new/a"}}"#,
        );
        // Another disk stands on it still.
        let other = "-blockdev driver=raw,node-name=base,file.driver=file,file.filename=/b \
                     -blockdev driver=qcow2,node-name=o,backing=base,file.driver=file,file.filename=/c";
        check(
            "qcow2",
            &format!("{other} -drive file=a.img,format=qcow2,backing=base"),
            &format!("{other} -drive file=/new/a,format=qcow2"),
        );
    }

    #[test]
    fn what_would_be_opened_in_another_way_is_refused() {
        let check = |given: &str, words: &str| {
            let error = moved("qcow2", given).unwrap_err();
            assert!(error.contains(words), "{given}: {error}");
        };
        check("-name a.img", "a.img in a way");
        check("-device x,y=a.img", "a disk image as `y`");
        check(
            "-blockdev throttle,throttle-group=g,file.driver=file,file.filename=a.img",
            "`throttle` stands on a disk image itself",
        );
    }
}
