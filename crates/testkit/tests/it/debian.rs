//! The Debian guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use tintype_testkit::{Format, Guest, GuestKind};

use crate::is_built;

const WITHIN: Duration = Duration::from_secs(60);

#[test]
fn it_boots_with_its_services() {
    if !is_built(GuestKind::Debian) {
        return;
    }
    let start = Instant::now();
    let mut guest = Guest::of(GuestKind::Debian).network().boot().unwrap();
    eprintln!("debian: ready after {:.1?}", start.elapsed());
    let serial = guest.serial();
    assert_eq!(serial.must_run("sqlite3 :memory: 'select 6*7'", WITHIN), "42\n");
    assert_eq!(serial.must_run("systemctl --failed --quiet | wc -l", WITHIN), "0\n");
    assert_eq!(serial.must_run("echo $HOME; pwd", WITHIN), "/root\n/root\n");
    let agent = guest.files().agent_path().unwrap();
    let mut stream = UnixStream::connect(agent).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream.write_all(b"{\"execute\": \"guest-ping\"}\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "{\"return\": {}}");
    let ssh =
        Command::new("ssh").args(guest.files().ssh_arguments().unwrap()).arg("id -u").output();
    let ssh = ssh.unwrap();
    assert_eq!(String::from_utf8_lossy(&ssh.stdout), "0\n", "{ssh:?}");
}

#[test]
fn its_line_survives_the_loss_of_usr() {
    if !is_built(GuestKind::Debian) {
        return;
    }
    let mut guest = Guest::of(GuestKind::Debian).boot().unwrap();
    let serial = guest.serial();
    assert_eq!(serial.must_run("rm -rf /usr", WITHIN), "");
    assert_eq!(serial.run("ls", WITHIN).unwrap().status, 127);
}

#[test]
fn it_starts_where_it_was_saved() {
    if !is_built(GuestKind::Debian) {
        return;
    }
    let guest = || Guest::of(GuestKind::Debian).network().uefi(Format::Qcow2);
    drop(guest().start().unwrap());
    let start = Instant::now();
    let mut guest = guest().start().unwrap();
    eprintln!("debian: started in {:.1?}", start.elapsed());
    assert_eq!(guest.serial().must_run("systemctl is-active ssh", WITHIN), "active\n");
}
