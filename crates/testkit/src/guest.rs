//! A guest for one test: its files in a temporary folder, and its process. What it
//! is like is for the builder to say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::image::guests_folder;
use crate::{Error, Qemu, Qmp, Serial};

/// A guest whose files are made and that does not run. The files go when it is
/// dropped, and so does every QEMU that was started with them, by whomever.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) folder: TempDir,
    pub(crate) qemu: Qemu,
    pub(crate) arguments: Vec<String>,
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) ssh_port: Option<u16>,
    pub(crate) has_agent: bool,
}

impl Prepared {
    /// Returns the command line, QEMU first and without a QMP socket, as
    /// `tintype vm run` takes it.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = vec![text(&self.qemu.binary())];
        argv.extend(self.arguments.iter().cloned());
        argv
    }

    /// Returns the QEMU that the guest runs on.
    pub fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    /// Returns the temporary folder with the guest's files and sockets.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the images of the disks, in order.
    pub fn disks(&self) -> &[PathBuf] {
        &self.disks
    }

    /// Returns the socket of the serial line.
    pub fn serial_path(&self) -> PathBuf {
        self.file("serial")
    }

    /// Returns the QMP socket that [`Prepared::spawn`] adds.
    pub fn qmp_path(&self) -> PathBuf {
        self.file("qmp")
    }

    /// Returns the socket of the guest agent, if there is a channel for it.
    pub fn agent_path(&self) -> Option<PathBuf> {
        self.has_agent.then(|| self.file("agent"))
    }

    /// Returns the port on 127.0.0.1 that leads to the guest's port 22, if it has a network.
    pub fn ssh_port(&self) -> Option<u16> {
        self.ssh_port
    }

    /// Returns the arguments that make `ssh` run a command as root in the Debian
    /// guest, if it has a network; the command comes after them.
    pub fn ssh_arguments(&self) -> Option<Vec<String>> {
        let port = self.ssh_port?;
        let key = guests_folder().join("ssh/client");
        let options = "-oBatchMode=yes -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null \
                       -oLogLevel=ERROR -oIdentitiesOnly=yes -oConnectTimeout=60";
        let mut arguments: Vec<String> = options.split(' ').map(str::to_owned).collect();
        arguments.extend(["-i".to_owned(), text(&key), "-p".to_owned(), port.to_string()]);
        arguments.push("root@127.0.0.1".to_owned());
        Some(arguments)
    }

    /// Adds arguments to the end of the command line.
    pub fn add<A: AsRef<str>>(&mut self, arguments: impl IntoIterator<Item = A>) {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
    }

    /// Starts QEMU with a QMP socket, and does not wait for the guest.
    pub fn spawn(self) -> Result<Guest, Error> {
        let child = self.start_qemu(&[])?;
        let serial = Serial::at(&self.serial_path());
        Ok(Guest { serial, child, prepared: self })
    }

    fn start_qemu(&self, more: &[&str]) -> Result<Child, Error> {
        let log = self.file("qemu.log");
        let stderr = fs::File::create(&log).map_err(Error::file("make", &log))?;
        let binary = self.qemu.binary();
        Command::new(&binary)
            .args(&self.arguments)
            .args(more)
            .args(["-qmp", &format!("unix:{},server=on,wait=off", text(&self.qmp_path()))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(Error::file("start", &binary))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ends every QEMU whose command line names a file of this guest.
    fn end_processes(&self) {
        let folder = format!("{}/", text(self.folder.path()));
        let Ok(entries) = fs::read_dir("/proc") else { return };
        for entry in entries.flatten() {
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line);
            let program = line.split('\0').next().unwrap_or_default();
            let id = entry.file_name().to_string_lossy().parse().ok();
            let id = id.and_then(rustix::process::Pid::from_raw);
            if let Some(id) = id
                && program.contains("qemu-")
                && line.contains(&folder)
            {
                // It may have ended by itself meanwhile, which is as good.
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.end_processes();
    }
}

/// A guest with a QEMU process that this program started. Both go when it is dropped.
#[derive(Debug)]
pub struct Guest {
    serial: Serial,
    child: Child,
    prepared: Prepared,
}

impl Guest {
    /// Returns the serial line.
    pub fn serial(&mut self) -> &mut Serial {
        &mut self.serial
    }

    /// Returns the guest's files, sockets and command line.
    pub fn files(&self) -> &Prepared {
        &self.prepared
    }

    /// Returns the QMP socket.
    pub fn qmp_path(&self) -> PathBuf {
        self.prepared.qmp_path()
    }

    /// Connects to the QMP socket, which serves one client at a time.
    pub fn qmp(&self) -> Result<Qmp, Error> {
        Qmp::connect(&self.qmp_path())
    }

    /// Returns the id of the QEMU process that was started first.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Ends that QEMU at once, as a crash would, and keeps the guest's files.
    pub fn kill(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends that QEMU as [`Guest::kill`] does, and starts another one with the same
    /// files, the same command line and `more` at its end.
    pub fn replace_qemu(&mut self, more: &[&str]) -> Result<(), Error> {
        self.kill();
        for path in [self.prepared.serial_path(), self.prepared.qmp_path()] {
            // QEMU removes its sockets only when it ends in peace.
            let _ = fs::remove_file(path);
        }
        self.serial.disconnect();
        self.child = self.prepared.start_qemu(more)?;
        Ok(())
    }

    /// Waits until that QEMU has ended by itself, and returns whether it did.
    pub fn wait_end(&mut self, within: Duration) -> bool {
        let deadline = std::time::Instant::now() + within;
        while std::time::Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a path as it goes into a command line.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
