//! What libvirt has noted of a snapshot: the XML that `virsh snapshot-dumpxml` prints,
//! and that lies in `/var/lib/libvirt/qemu/snapshot` (libvirt's `formatsnapshot.html`).
//!
//! It is as foreign as an image: the names of files in it are reported, and nobody has
//! looked at them. Of XML there is nothing here but elements, attributes and text; a
//! document type, and so every entity of one's own, is refused.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion, escape};

use crate::ImageFormat;
use crate::error::{Error, limit, malformed, require, unsupported};

/// The largest XML of a snapshot: a VM of a thousand devices has less.
pub const MAX_XML: u64 = 4 << 20;
/// How deep elements may be in others.
const MAX_DEPTH: usize = 32;

/// A snapshot that libvirt knows. All of it is untrusted text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibvirtSnapshot {
    /// What somebody called it.
    pub name: String,
    /// What somebody wrote about it.
    pub description: String,
    /// The snapshot that the VM's state came from.
    pub parent: Option<String>,
    /// When it was taken, in seconds since 1970.
    pub created: i64,
    /// Whether the VM goes on from it now, as far as it says so.
    pub is_current: bool,
    /// What the VM is called.
    pub domain: String,
    /// The file with its memory, if that is not in a disk.
    pub memory: Option<String>,
    /// The disks that it has.
    pub disks: Vec<LibvirtDisk>,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtDisk {
    /// How the VM calls it, such as `vda`.
    pub target: String,
    /// The file that the VM wrote to until then.
    pub file: String,
    /// Its format.
    pub format: ImageFormat,
    /// Where what it had then is.
    pub place: DiskPlace,
}

/// Where a snapshot of a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskPlace {
    /// In the file, as an internal snapshot with the snapshot's name.
    Internal,
    /// It is the file itself, since the VM writes to another one over it from then on.
    External {
        /// The files that were made over it: with the snapshot, and at reverts to it.
        over: Vec<String>,
    },
}

impl LibvirtSnapshot {
    /// Reads the XML of one snapshot.
    pub fn read(xml: &[u8]) -> Result<Self, Error> {
        limit("the XML has bytes", u64::try_from(xml.len()).unwrap_or(u64::MAX), MAX_XML)?;
        let text = std::str::from_utf8(xml).map_err(|_| malformed("it is not text in UTF-8"))?;
        let mut noted = Noted::default();
        walk(text, &mut noted)?;
        noted.joined()
    }
}

/// What was read, before its parts are put together.
#[derive(Debug, Default)]
struct Noted {
    snapshot: LibvirtSnapshot,
    has_root: bool,
    created: String,
    active: String,
    memory: (String, String),
    /// What it says of its disks; `None` if it says nothing, as libvirt before 0.9.5.
    disks: Option<Vec<NotedDisk>>,
    /// The files that were made at reverts.
    reverted: Vec<NotedDisk>,
    /// The disks of the VM, as they were then.
    of_domain: Vec<NotedDisk>,
}

/// An element `disk`, of whatever kind.
#[derive(Debug, Default)]
struct NotedDisk {
    name: String,
    snapshot: String,
    device: String,
    file: String,
    format: String,
    is_read_only: bool,
}

/// Tells what each element says.
fn walk(text: &str, noted: &mut Noted) -> Result<(), Error> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut path: Vec<String> = Vec::new();
    loop {
        let event = reader.read_event().map_err(|error| malformed(format!("no XML: {error}")))?;
        match event {
            Event::Start(element) => {
                limit("elements are in others", count(path.len() + 1), count(MAX_DEPTH))?;
                path.push(String::from_utf8_lossy(element.name().as_ref()).into_owned());
                noted.start(&names(&path), &element)?;
            }
            Event::End(_) => drop(path.pop()),
            Event::Text(words) => {
                let words = words.decode().map_err(|_| malformed("no XML: wrong text"))?;
                noted.text(&names(&path), &words);
            }
            Event::CData(words) => {
                let words = words.decode().map_err(|_| malformed("no XML: wrong text"))?;
                noted.text(&names(&path), &words);
            }
            Event::GeneralRef(reference) => {
                let name = reference.decode().map_err(|_| malformed("no XML: wrong text"))?;
                let meant = escape::unescape(&format!("&{name};")).map(Into::<String>::into);
                let meant = meant.map_err(|_| malformed("it has an entity of its own"))?;
                noted.text(&names(&path), &meant);
            }
            Event::DocType(_) => return Err(unsupported("it has a document type")),
            // An empty element comes as a start and an end.
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err(malformed("no XML: it ends early")),
        }
    }
}

fn count(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}

fn names(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

/// Returns an attribute, empty if it is not there.
fn attribute(element: &BytesStart<'_>, name: &str) -> Result<String, Error> {
    // Without the check for doubles, which takes long where there are many.
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(|_| malformed("no XML: a wrong attribute"))?;
        if attribute.key.as_ref() == name.as_bytes() {
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            let value = value.map_err(|_| malformed("no XML: a wrong attribute"))?;
            return Ok(value.into_owned());
        }
    }
    Ok(String::new())
}

impl Noted {
    fn start(&mut self, path: &[&str], element: &BytesStart<'_>) -> Result<(), Error> {
        match path {
            ["domainsnapshot"] => {
                require(!self.has_root, "it is of several snapshots")?;
                self.has_root = true;
            }
            [_] => return Err(malformed("it is not the XML of a libvirt snapshot")),
            [_, "memory"] => {
                self.memory = (attribute(element, "snapshot")?, attribute(element, "file")?);
            }
            [_, "disks"] => _ = self.disks.get_or_insert_default(),
            [_, "disks", "disk"] | [_, "revertDisks", "disk"] => {
                let (name, snapshot) =
                    (attribute(element, "name")?, attribute(element, "snapshot")?);
                self.list(path[1]).push(NotedDisk { name, snapshot, ..NotedDisk::default() });
            }
            [_, "domain", "devices", "disk"] => {
                let device = attribute(element, "device")?;
                self.of_domain.push(NotedDisk { device, ..NotedDisk::default() });
            }
            [_, list @ ("disks" | "revertDisks"), "disk", part]
            | [_, list @ "domain", "devices", "disk", part] => {
                let Some(disk) = self.list(list).last_mut() else { return Ok(()) };
                match *part {
                    "source" => disk.file = attribute(element, "file")?,
                    "driver" => disk.format = attribute(element, "type")?,
                    "target" => disk.name = attribute(element, "dev")?,
                    "readonly" => disk.is_read_only = true,
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn list(&mut self, of: &str) -> &mut Vec<NotedDisk> {
        match of {
            "disks" => self.disks.get_or_insert_default(),
            "revertDisks" => &mut self.reverted,
            _ => &mut self.of_domain,
        }
    }

    fn text(&mut self, path: &[&str], words: &str) {
        let snapshot = &mut self.snapshot;
        let place = match path {
            [_, "name"] => &mut snapshot.name,
            [_, "description"] => &mut snapshot.description,
            [_, "parent", "name"] => snapshot.parent.get_or_insert_default(),
            [_, "domain", "name"] => &mut snapshot.domain,
            [_, "creationTime"] => &mut self.created,
            [_, "active"] => &mut self.active,
            _ => return,
        };
        place.push_str(words);
    }

    /// Puts together what is said of the snapshot and of the VM.
    fn joined(self) -> Result<LibvirtSnapshot, Error> {
        let Self { mut snapshot, has_root, created, active, memory, disks, reverted, of_domain } =
            self;
        require(has_root, "it is not the XML of a libvirt snapshot")?;
        require(!snapshot.name.is_empty(), "the snapshot has no name")?;
        let created = created.trim().parse().ok().filter(|seconds| *seconds >= 0);
        snapshot.created =
            created.ok_or_else(|| malformed("it does not say when the snapshot was taken"))?;
        snapshot.is_current = active.trim() == "1";
        snapshot.memory = Some(memory).filter(|(place, _)| place == "external").map(|(_, f)| f);
        let disks = disks.unwrap_or_else(|| {
            let own = of_domain.iter().filter(|disk| disk.is_written());
            let internal = |disk: &NotedDisk| NotedDisk {
                name: disk.name.clone(),
                snapshot: "internal".to_owned(),
                ..NotedDisk::default()
            };
            own.map(internal).collect()
        });
        for disk in &disks {
            snapshot.disks.extend(disk.joined(&of_domain, &reverted)?);
        }
        require(!snapshot.disks.is_empty(), "the snapshot has no disk")?;
        Ok(snapshot)
    }
}

impl NotedDisk {
    fn is_written(&self) -> bool {
        matches!(&*self.device, "" | "disk") && !self.is_read_only
    }

    /// Returns the disk of a snapshot; `None` if the snapshot leaves it out.
    fn joined(&self, of_domain: &[Self], reverted: &[Self]) -> Result<Option<LibvirtDisk>, Error> {
        if self.snapshot == "no" {
            return Ok(None);
        }
        let of = |disk: &&Self| disk.name == self.name || disk.file == self.name;
        let before = of_domain.iter().find(of).ok_or_else(|| {
            malformed("it does not say which file was the disk before the snapshot")
        })?;
        if before.file.is_empty() {
            return Err(unsupported(format!("the disk `{}` is no file", before.name)));
        }
        let format = before.format.parse().map_err(|_| {
            unsupported(format!("the disk `{}` is of a format that is not imported", before.name))
        })?;
        let place = match &*self.snapshot {
            "internal" => DiskPlace::Internal,
            "external" | "" => {
                let at_reverts = reverted.iter().filter(|disk| disk.name == self.name);
                let all = [self].into_iter().chain(at_reverts).map(|disk| disk.file.clone());
                DiskPlace::External { over: all.filter(|file| !file.is_empty()).collect() }
            }
            other => return Err(unsupported(format!("the disk's snapshot is `{other}`"))),
        };
        let (target, file) = (before.name.clone(), before.file.clone());
        Ok(Some(LibvirtDisk { target, file, format, place }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(inner: &str, disks: &str) -> String {
        format!(
            "<?xml version='1.0'?>\n<!-- x -->\n<domainsnapshot><name>s1</name>{inner}\
             <creationTime>1764000000</creationTime>{disks}<domain type='kvm'><name>web</name>\
             <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='/i/a &amp; b.qcow2'/><backingStore><source file='/i/x'/></backingStore>\
             <target dev='vda' bus='virtio'/></disk><disk type='file' device='cdrom'>\
             <source file='/cd'/><target dev='sda'/><readonly/></disk></devices></domain>\
             </domainsnapshot>"
        )
    }

    const EXTERNAL: &str = "<disks><disk name='vda' snapshot='external' type='file'>\
        <driver type='qcow2'/><source file='/i/a.s1'/></disk><disk name='sda' snapshot='no'/></disks>";

    #[test]
    fn what_libvirt_says_is_understood() {
        let inner = "<description>vor &lt;Update&gt; &#8594; <![CDATA[<b>]]></description>\
            <parent><name>s0</name></parent><active>1</active><memory snapshot='external' file='/m'/>";
        let read = LibvirtSnapshot::read(snapshot(inner, EXTERNAL).as_bytes()).unwrap();
        let place = DiskPlace::External { over: vec!["/i/a.s1".to_owned()] };
        let (target, file) = ("vda".to_owned(), "/i/a & b.qcow2".to_owned());
        let expected = LibvirtSnapshot {
            name: "s1".to_owned(),
            description: "vor <Update> → <b>".to_owned(),
            parent: Some("s0".to_owned()),
            created: 1_764_000_000,
            is_current: true,
            domain: "web".to_owned(),
            memory: Some("/m".to_owned()),
            disks: vec![LibvirtDisk { target, file, format: ImageFormat::Qcow2, place }],
        };
        assert_eq!(read, expected);
        let old = LibvirtSnapshot::read(snapshot("", "").as_bytes()).unwrap();
        assert_eq!(old.disks.len(), 1, "a CD is no disk");
        assert_eq!((old.disks[0].place.clone(), old.memory), (DiskPlace::Internal, None));
    }

    #[test]
    fn files_that_a_revert_has_made_are_known() {
        let reverted = format!(
            "{EXTERNAL}<revertDisks><disk name='vda' snapshot='external'>\
             <source file='/i/a.17'/></disk></revertDisks>"
        );
        let read = LibvirtSnapshot::read(snapshot("", &reverted).as_bytes()).unwrap();
        let over = vec!["/i/a.s1".to_owned(), "/i/a.17".to_owned()];
        assert_eq!(read.disks[0].place, DiskPlace::External { over });
    }

    #[test]
    fn what_is_not_that_is_refused() {
        let check = |xml: &str, expected: &str| {
            let error = LibvirtSnapshot::read(xml.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected}");
        };
        let whole = snapshot("", EXTERNAL);
        check("", "not the XML of a libvirt snapshot");
        check("<domain/>", "not the XML of a libvirt snapshot");
        check(&whole[..whole.len() - 20], "no XML");
        check(&format!("{whole}{whole}"), "several snapshots");
        check(&whole.replace("<name>s1</name>", ""), "no name");
        check(&whole.replace("1764000000", "-5"), "when the snapshot was taken");
        check(&whole.replace("name='vda'", "name='vdb'"), "which file was the disk before");
        check(
            &whole.replace(
                "type='qcow2'/><source file='/i/a &amp; b.qcow2'",
                "type='qed'/><source file='/i/a'",
            ),
            "format that is not imported",
        );
        check(
            &whole.replace("<source file='/i/a &amp; b.qcow2'/>", "<source dev='/dev/sda'/>"),
            "no file",
        );
        check(&whole.replace("snapshot='external'", "snapshot='manual'"), "`manual`");
        check(&whole.replace("<name>s1", "<name>&own;"), "entity of its own");
        let bomb = "<!DOCTYPE d [<!ENTITY a 'x'><!ENTITY b SYSTEM 'file:///etc/passwd'>]>";
        check(&format!("{bomb}{whole}"), "document type");
        check(&format!("<domainsnapshot>{}", "<a>".repeat(100)), "the limit is 32");
        check(&" ".repeat(5 << 20), "the limit is 4194304");
        assert!(LibvirtSnapshot::read(b"<domainsnapshot>\xff").is_err());
    }

    #[test]
    fn any_change_gives_an_answer_soon() {
        let whole = snapshot("<parent><name>s0</name></parent>", EXTERNAL).into_bytes();
        for at in 0..whole.len() {
            for byte in [b'<', b'>', b'&', b'"', 0, 0xff] {
                let mut other = whole.clone();
                other[at] = byte;
                let _ = LibvirtSnapshot::read(&other);
            }
            let _ = LibvirtSnapshot::read(&whole[..at]);
        }
        // Looking for doubles among so many takes hours.
        let many: String = (0..300_000).map(|n| format!(" a{n}=''")).collect();
        let many = format!("<domainsnapshot><memory{many}/></domainsnapshot>");
        assert!(LibvirtSnapshot::read(many.as_bytes()).is_err());
    }
}
