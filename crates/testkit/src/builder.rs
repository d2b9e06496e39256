//! What a test's guest is to be like, and the QEMU command line that makes it so.
//! Makes the guest's files; starts nothing but through [`Prepared::spawn`].

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::copy;
use crate::guest::text;
use crate::{Disk, Error, Format, Guest, GuestKind, Prepared, Qemu};

/// How long a guest may take to boot. Emulated, on a busy machine: generous.
const BOOT: Duration = Duration::from_secs(180);

/// The read-only half of the UEFI firmware, and the template of its variables (package `ovmf`).
const FIRMWARE: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

impl Guest {
    /// Starts the description of a guest of that kind.
    pub fn of(kind: GuestKind) -> GuestBuilder {
        GuestBuilder {
            kind,
            qemu: None,
            machine: "q35".to_owned(),
            accelerator: "tcg".to_owned(),
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
}

/// What a guest is to be like; starts from [`Guest::of`].
#[derive(Debug, Clone)]
pub struct GuestBuilder {
    pub(crate) kind: GuestKind,
    qemu: Option<Qemu>,
    machine: String,
    accelerator: String,
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

    /// Sets the value of `-accel`; `tcg` unless set, which works everywhere.
    #[must_use]
    pub fn accelerator(mut self, accelerator: &str) -> Self {
        accelerator.clone_into(&mut self.accelerator);
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
        guest.serial().wait_ready(BOOT)?;
        Ok(guest)
    }

    pub(crate) fn chosen_qemu(&self) -> Result<Qemu, Error> {
        self.qemu.clone().map_or_else(Qemu::system, Ok)
    }

    fn add_base(&self, prepared: &mut Prepared) -> Result<(), Error> {
        let image = self.kind.image()?;
        prepared.add(["-no-user-config", "-nodefaults", "-display", "none"]);
        prepared.add(["-accel", &self.accelerator]);
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

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind("127.0.0.1:0");
    let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(Error::file("find a free port on", Path::new("127.0.0.1")))
}
