//! The Debian guest: a real system with systemd, a guest agent, ssh and sqlite on
//! a disk with a partition table. It starts with the tiny guest's kernel and
//! initramfs, because Debian's own takes half a minute under emulation, and so
//! has no kernel, no modules and no boot loader on its disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::{Cache, Key};
use super::disk::{BUILD_TIME, FileSystem, PartitionedDisk, mebibytes};
use super::{Parts, tiny};
use crate::failure::Failure;
use crate::process;
use crate::setup::Apt;

/// What is installed, with what it depends on.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "dbus",
    "qemu-guest-agent",
    "openssh-server",
    "sqlite3",
    "procps",
    "iproute2",
    "kmod",
];

/// The archive of the installed packages.
const ARCHIVE: &str = "tree.tar";

/// What makes up too much of the disk for nobody to read it.
const LEFT_OUT: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// What the kernel is told; see [`tiny`] for the message levels.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 guest=debian net.ifnames=0 \
                            systemd.show_status=no";

/// Units that cost time at boot, or write to the disk behind a test's back.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "kmod-static-nodes.service",
    "modprobe@.service",
    "serial-getty@ttyS0.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-repart.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
];

/// Units that start with the system, besides those that packages enable.
const ENABLED: &[&str] = &["host-agent.service", "host-network.service"];

/// Files of our own, over Debian's.
const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "debian\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n"),
    ("etc/machine-id", "6d0f3c5e9a1b4b0c8f1e2d3c4b5a6978\n"),
    ("etc/resolv.conf", "nameserver 10.0.2.3\n"),
    // The initramfs has mounted the only file system there is.
    ("etc/fstab", ""),
    ("etc/apt/sources.list", ""),
    ("etc/systemd/journald.conf.d/volatile.conf", "[Journal]\nStorage=volatile\n"),
    ("etc/systemd/system/host-agent.service", AGENT_UNIT),
    ("etc/systemd/system/systemd-udev-trigger.service.d/few.conf", TRIGGER_UNIT),
    ("etc/systemd/system/host-network.service", NETWORK_UNIT),
];

/// The serial line's agent. What it started lives on when it is started again.
const AGENT_UNIT: &str = "\
[Unit]
Description=Commands from the host over the serial line
After=ssh.service qemu-guest-agent.service host-network.service
[Service]
ExecStart=/usr/local/bin/agent
WorkingDirectory=/root
Environment=HOME=/root TERM=dumb
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
KillMode=process
Restart=always
RestartSec=0
[Install]
WantedBy=multi-user.target
";

/// Announces only the devices that something here waits for, or has a link to.
const TRIGGER_UNIT: &str = "\
[Service]
ExecStart=
ExecStart=-udevadm trigger --subsystem-match=block --subsystem-match=net --subsystem-match=virtio-ports
";

/// The addresses that QEMU's user network expects, without a wait for DHCP.
const NETWORK_UNIT: &str = "\
[Unit]
Description=Fixed address in QEMU's user network
ConditionPathExists=/sys/class/net/eth0
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2'
[Install]
WantedBy=multi-user.target
";

/// Builds the guest unless it is up to date.
pub(super) fn ensure(cache: &Cache, parts: &Parts<'_>) -> Result<(), Failure> {
    let packages = ensure_packages(cache, parts.apt)?;
    let key = Key::of(&[
        packages.key.as_bytes(),
        parts.key().as_bytes(),
        parts.keys.as_bytes(),
        include_bytes!("debian.rs"),
        include_bytes!("ssh.rs"),
    ]);
    cache.ensure("debian", &key, |target| build(target, parts, &packages)).map(drop)
}

/// An archive of a plain Debian system with the packages.
pub(super) struct Packages {
    key: Key,
    archive: PathBuf,
}

/// Installs the packages into an archive unless it is up to date.
pub(super) fn ensure_packages(cache: &Cache, apt: &Apt) -> Result<Packages, Failure> {
    if !rustix::process::geteuid().is_root() {
        let why = "the Debian guest's disk has files of many owners: build it as root";
        return Err(Failure::Other(why.to_owned()));
    }
    // The versions of what is asked for stand for those of what it depends on.
    let mut versions = apt.codename().to_owned();
    for package in PACKAGES {
        versions.push_str(&format!(" {package} {}", apt.candidate(package)?));
    }
    let key = Key::of(&[versions.as_bytes(), LEFT_OUT.join(" ").as_bytes()]);
    let folder = cache.ensure("debian-packages", &key, |target| install(target, apt))?;
    Ok(Packages { key, archive: folder.join(ARCHIVE) })
}

fn install(target: &Path, apt: &Apt) -> Result<(), Failure> {
    let mut command = Command::new("mmdebstrap");
    command.env("SOURCE_DATE_EPOCH", BUILD_TIME.to_string());
    command.args(["--mode=root", "--variant=minbase", "--format=tar"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    for pattern in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for option in apt.proxies()? {
        command.arg(format!("--aptopt={option}"));
    }
    let codename = apt.codename();
    command.arg(codename).arg(target.join(ARCHIVE));
    for suite in [codename.to_owned(), format!("{codename}-security")] {
        for site in apt.sites(&suite)?.iter().take(1) {
            command.arg(format!("deb {site} {suite} main"));
        }
    }
    process::run(&mut command)
}

/// Writes the guest's files into a folder.
pub(super) fn build(target: &Path, parts: &Parts<'_>, packages: &Packages) -> Result<(), Failure> {
    let write = |name: &str, content: &[u8]| write(&target.join(name), content);
    write("vmlinuz", &parts.kernel.image)?;
    write("initrd", &tiny::initramfs(parts))?;
    write("command-line", COMMAND_LINE.as_bytes())?;
    let tree = tempfile::tempdir_in(target).map_err(Failure::file("make a folder in", target))?;
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--numeric-owner", "--xattrs", "--file"]).arg(&packages.archive);
    process::run(unpack.arg("--directory").arg(tree.path()))?;
    furnish(tree.path(), parts)?;
    PartitionedDisk {
        uuid: "7d9c1b52-0b6c-4c53-9f0e-3f6c1a6f0002",
        size: mebibytes(2048),
        partition: "guest-root",
        file_system: FileSystem {
            label: "debian",
            uuid: "7d9c1b52-0b6c-4c53-9f0e-3f6c1a6f0003",
            size: mebibytes(2046),
        },
    }
    .make(tree.path(), &target.join("disk.qcow2"))
}

/// Turns a plain Debian system into the guest.
fn furnish(tree: &Path, parts: &Parts<'_>) -> Result<(), Failure> {
    for (path, content) in FILES {
        write(&tree.join(path), content.as_bytes())?;
    }
    write_program(&tree.join("usr/local/bin/agent"), tiny::AGENT)?;
    write_program(&tree.join("usr/local/bin/witness"), &parts.programs.witness)?;
    let units = tree.join("etc/systemd/system");
    for unit in MASKED {
        link(Path::new("/dev/null"), &units.join(unit))?;
    }
    for unit in ENABLED {
        let target = Path::new("/etc/systemd/system").join(unit);
        link(&target, &units.join("multi-user.target.wants").join(unit))?;
    }
    parts.keys.furnish(tree)
}

/// Writes a file and makes the folders above it.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Failure::file("make", folder))?;
    // What is there may be a link out of the tree: it is replaced, not followed.
    remove(path)?;
    fs::write(path, content).map_err(Failure::file("write", path))
}

fn write_program(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(Failure::file("make a program of", path))
}

fn link(target: &Path, path: &Path) -> Result<(), Failure> {
    remove(path)?;
    symlink(target, path).map_err(Failure::file("make", path))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::file("replace", path)(error))
        }
        _ => Ok(()),
    }
}
