//! Guests that do not boot: the first one of a kind boots, is saved together with
//! its disks, and the others start from there, in well under a second.
//!
//! Saved guests are in `golden` beside the built ones, a folder for each way to
//! configure one; delete it at will. One that was saved before its kind was built
//! anew is replaced.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::disk::copy;
use crate::image::guests_folder;
use crate::{Content, Disk, Error, Guest, GuestBuilder, Qmp, Release};

/// How long saving and loading may take.
const TRANSFER: Duration = Duration::from_secs(60);

/// The first release that saves memory at fixed places of a file, which is quickest.
const MAPPED: Release = Release { major: 9, minor: 0 };

impl GuestBuilder {
    /// Starts the guest where a saved one like it had just booted; saves that one
    /// first if there is none. The guest runs and takes commands when this returns.
    ///
    /// QEMU's command line then ends in `-incoming defer`. A guest with an image of
    /// the test's own boots, since nobody else has one like it.
    pub fn start(self) -> Result<Guest, Error> {
        let own =
            |disk: &Disk| matches!(disk.content, Content::Copy { .. } | Content::Existing { .. });
        if self.disks.iter().any(own) {
            return self.boot();
        }
        let wanted = format!("{:?} {self:?}", self.chosen_qemu()?.release());
        let mut hasher = DefaultHasher::new();
        wanted.hash(&mut hasher);
        let folder = guests_folder().join("golden").join(format!("{:016x}", hasher.finish()));
        let path = self.kind.folder().join("key");
        let built = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let config = format!("{wanted}\n{built}\n");
        fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        let path = folder.join("lock");
        let lock = File::create(&path).map_err(Error::file("make", &path))?;
        let locked = |result: rustix::io::Result<()>| {
            result.map_err(|error| Error::file("lock", &path)(error.into()))
        };
        locked(flock(&lock, FlockOperation::LockExclusive))?;
        if !fs::read_to_string(folder.join("config")).is_ok_and(|text| text == config) {
            save(self.clone().boot()?, &folder, &config)?;
        }
        locked(flock(&lock, FlockOperation::LockShared))?;
        self.load(&folder)
    }

    fn load(mut self, folder: &Path) -> Result<Guest, Error> {
        for (index, disk) in self.disks.iter_mut().enumerate() {
            *disk = Disk::copy_of(disk.format, saved_disk(folder, index));
        }
        if let Some(format) = self.variables {
            self.saved_variables = Some(folder.join(format!("variables.{}", format.name())));
        }
        let mut prepared = self.prepare()?;
        prepared.add(["-incoming", "defer"]);
        let mut guest = prepared.spawn()?;
        let mut qmp = guest.qmp()?;
        transfer(&mut qmp, &guest, "migrate-incoming", &folder.join("state"))?;
        qmp.execute("cont", json!({}))?;
        drop(qmp);
        guest.serial().wait_answer(TRANSFER)?;
        Ok(guest)
    }
}

/// Saves a guest that has booted, with its disks, and ends it.
fn save(mut guest: Guest, folder: &Path, config: &str) -> Result<(), Error> {
    guest.serial().run("sync", TRANSFER)?;
    guest.serial().disconnect();
    let mut qmp = guest.qmp()?;
    qmp.execute("stop", json!({}))?;
    let state = folder.join("state");
    let _ = fs::remove_file(&state);
    transfer(&mut qmp, &guest, "migrate", &state)?;
    qmp.execute("quit", json!({}))?;
    guest.wait_end(TRANSFER);
    for (index, disk) in guest.files().disks().iter().enumerate() {
        let saved = saved_disk(folder, index);
        copy(disk, &saved)?;
    }
    for name in ["variables.raw", "variables.qcow2"] {
        let path = guest.files().folder().join(name);
        if path.exists() {
            copy(&path, &folder.join(name))?;
        }
    }
    // Last: it says that all the rest is there.
    let path = folder.join("config");
    fs::write(&path, config).map_err(Error::file("write", &path))
}

/// Moves a guest's memory and devices to or from a file, and leaves QEMU's
/// migration settings as they were.
fn transfer(qmp: &mut Qmp, guest: &Guest, command: &str, state: &Path) -> Result<(), Error> {
    let mapped = guest.files().qemu().release() >= MAPPED;
    let set_mapped = |qmp: &mut Qmp, on: bool| {
        let wanted = json!({ "capabilities": [{ "capability": "mapped-ram", "state": on }] });
        if mapped { qmp.execute("migrate-set-capabilities", wanted).map(drop) } else { Ok(()) }
    };
    set_mapped(qmp, true)?;
    let file = state.display();
    let uri = match (mapped, command) {
        (true, _) => format!("file:{file}"),
        (false, "migrate") => format!("exec:cat >'{file}'"),
        (false, _) => format!("exec:cat '{file}'"),
    };
    qmp.execute(command, json!({ "uri": uri }))?;
    qmp.wait_migrated(TRANSFER)?;
    set_mapped(qmp, false)
}

fn saved_disk(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("disk-{index}"))
}
