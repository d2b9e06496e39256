//! A guest for one test: its QEMU command line, its files in a temporary folder,
//! and its process.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::disk::copy;
use crate::image::guests_folder;
use crate::{Disk, Error, Format, GuestKind, Qemu, Qmp, Serial};

/// How long a guest may take to boot. Emulated, on a busy machine: generous.
const BOOT: Duration = Duration::from_secs(180);

/// The read-only half of the UEFI firmware, and the template of its variables (package `ovmf`).
const FIRMWARE: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// What a guest is to be like; starts from [`Guest::of`].
#[derive(Debug, Clone)]
pub struct GuestBuilder {
    pub(crate) kind: GuestKind,
    qemu: Option<Qemu>,
    machine: String,
    memory_mib: u32,
    cpus: u32,
    pub(crate) disks: Vec<Disk>,
    pub(crate) variables: Option<Format>,
    /// The variables to start with, instead of the firmware's.
    pub(crate) saved_variables: Option<PathBuf>,
    agent: bool,
    network: bool,
    extra: Vec<String>,
}

impl GuestBuilder {
    /// Runs the guest on that QEMU instead of the system's.
    #[must_use]
    pub fn qemu(mut self, qemu: Qemu) -> Self {
        self.qemu = Some(qemu);
        self
    }

    /// Sets the value of `-machine`; `q35` unless set.
    #[must_use]
    pub fn machine(mut self, machine: &str) -> Self {
        machine.clone_into(&mut self.machine);
        self
    }

    /// Sets how much memory the guest has, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Sets how many processors the guest has; one unless set.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Replaces the disks: they become `vda`, `vdb` and so on, in this order, and
    /// their nodes in QEMU have these names as well. Unless set, the guest has its
    /// own disk in qcow2.
    #[must_use]
    pub fn disks(mut self, disks: impl IntoIterator<Item = Disk>) -> Self {
        self.disks = disks.into_iter().collect();
        self
    }

    /// Gives the guest UEFI firmware with variables in a file of that format.
    /// The kernel is still loaded directly.
    #[must_use]
    pub fn uefi(mut self, variables: Format) -> Self {
        self.variables = Some(variables);
        self
    }

    /// Says whether there is a channel for the guest agent; by default the Debian
    /// guest has one.
    #[must_use]
    pub fn agent(mut self, agent: bool) -> Self {
        self.agent = agent;
        self
    }

    /// Gives the guest a network card, and the host a port that leads to its port 22.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// Adds arguments to the end of the command line.
    #[must_use]
    pub fn extra<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.extra.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Makes the guest's files and its command line, and starts nothing.
    pub fn prepare(self) -> Result<Prepared, Error> {
        let folder = tempfile::Builder::new()
            .prefix("guest-")
            .tempdir()
            .map_err(Error::file("make a folder in", &std::env::temp_dir()))?;
        let qemu = self.chosen_qemu()?;
        let mut prepared = Prepared {
            folder,
            qemu,
            arguments: Vec::new(),
            disks: Vec::new(),
            ssh_port: None,
            has_agent: self.agent,
        };
        self.add_base(&mut prepared)?;
        self.add_disks(&mut prepared)?;
        self.add_channels(&mut prepared)?;
        prepared.arguments.extend(self.extra);
        Ok(prepared)
    }

    /// Prepares the guest, starts QEMU and waits until the guest takes commands.
    pub fn boot(self) -> Result<Guest, Error> {
        let mut guest = self.prepare()?.spawn()?;
        guest.serial.wait_ready(BOOT)?;
        Ok(guest)
    }

    pub(crate) fn chosen_qemu(&self) -> Result<Qemu, Error> {
        self.qemu.clone().map_or_else(Qemu::system, Ok)
    }

    fn add_base(&self, prepared: &mut Prepared) -> Result<(), Error> {
        let image = self.kind.image()?;
        let base = ["-no-user-config", "-nodefaults", "-display", "none", "-accel", "tcg"];
        prepared.add(base);
        prepared.add(["-machine", &self.machine, "-m", &self.memory_mib.to_string()]);
        prepared.add(["-smp", &self.cpus.to_string()]);
        prepared.add(["-kernel", &text(&image.kernel), "-initrd", &text(&image.initrd)]);
        prepared.add(["-append", &image.command_line]);
        self.variables.map_or(Ok(()), |format| self.add_firmware(format, prepared))
    }

    fn add_firmware(&self, format: Format, prepared: &mut Prepared) -> Result<(), Error> {
        let variables = prepared.file(&format!("variables.{}", format.name()));
        if let Some(saved) = &self.saved_variables {
            copy(saved, &variables)?;
        } else {
            let tool = prepared.qemu.image_tool().args(["convert", "-f", "raw", "-O"]);
            tool.arg(format.name()).arg(FIRMWARE[1]).arg(&variables).run()?;
        }
        let code = FIRMWARE[0];
        prepared.add([
            "-drive",
            &format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"),
            "-drive",
            &format!("if=pflash,unit=1,format={},file={}", format.name(), text(&variables)),
        ]);
        Ok(())
    }

    fn add_disks(&self, prepared: &mut Prepared) -> Result<(), Error> {
        let image = self.kind.image()?;
        for (disk, letter) in self.disks.iter().zip('a'..='z') {
            let (name, format) = (format!("vd{letter}"), disk.format.name());
            let path = prepared.file(&format!("{name}.{format}"));
            let path = disk.create(&path, &image, &prepared.qemu)?;
            let file = text(&path);
            prepared.add([
                "-blockdev",
                &format!(
                    "driver={format},node-name={name},discard=unmap,file.driver=file,\
                     file.filename={file}"
                ),
                "-device",
                &format!("virtio-blk-pci,drive={name},id={name}-device"),
            ]);
            prepared.disks.push(path);
        }
        Ok(())
    }

    fn add_channels(&self, prepared: &mut Prepared) -> Result<(), Error> {
        let socket = |path: &Path| format!("path={},server=on,wait=off", text(path));
        let serial = socket(&prepared.serial_path());
        prepared.add(["-chardev", &format!("socket,id=serial,{serial}"), "-serial"]);
        prepared.add(["chardev:serial"]);
        if self.agent {
            let agent = socket(&prepared.file("agent"));
            prepared.add(["-device", "virtio-serial-pci", "-chardev"]);
            prepared.add([&format!("socket,id=agent,{agent}"), "-device"]);
            prepared.add(["virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
        }
        if self.network {
            let port = free_port()?;
            prepared.ssh_port = Some(port);
            let forward = format!("user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:22");
            prepared.add(["-netdev", &forward, "-device"]);
            prepared.add(["virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:12:34:56"]);
        }
        Ok(())
    }
}

/// A guest whose files are made and that does not run. The files go when it is
/// dropped, and so does every QEMU that was started with them, by whomever.
#[derive(Debug)]
pub struct Prepared {
    folder: TempDir,
    qemu: Qemu,
    arguments: Vec<String>,
    disks: Vec<PathBuf>,
    ssh_port: Option<u16>,
    has_agent: bool,
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

    fn file(&self, name: &str) -> PathBuf {
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
    /// Starts the description of a guest of that kind.
    pub fn of(kind: GuestKind) -> GuestBuilder {
        GuestBuilder {
            kind,
            qemu: None,
            machine: "q35".to_owned(),
            memory_mib: kind.memory_mib(),
            cpus: 1,
            disks: vec![Disk::system(Format::Qcow2)],
            variables: None,
            saved_variables: None,
            agent: kind == GuestKind::Debian,
            network: false,
            extra: Vec::new(),
        }
    }

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

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind("127.0.0.1:0");
    let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(Error::file("find a free port on", Path::new("127.0.0.1")))
}
