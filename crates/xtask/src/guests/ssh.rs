//! The ssh keys of the guests: made once for each cache, so that a host that knows
//! the guest is not warned after every build, and no private key is in the sources.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::cache::{Cache, Key};
use super::debian::write;
use crate::failure::Failure;
use crate::process;

/// The Debian guest's own key and the key that lets its root in.
pub(super) struct SshKeys {
    host: Vec<u8>,
    host_public: Vec<u8>,
    client_public: Vec<u8>,
}

impl SshKeys {
    /// Finds the keys in the cache (`ssh/host` and `ssh/client`), or makes them.
    pub(super) fn ensure(cache: &Cache) -> Result<Self, Failure> {
        let folder = cache.ensure("ssh", &Key::of(&[b"ed25519"]), |target| {
            ["host", "client"].iter().try_for_each(|name| {
                let mut command = Command::new("ssh-keygen");
                command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]);
                process::run(command.arg(target.join(name)))
            })
        })?;
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(Failure::file("read", &path))
        };
        Ok(Self {
            host: read("host")?,
            host_public: read("host.pub")?,
            client_public: read("client.pub")?,
        })
    }

    /// Returns bytes that change when a key does.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.host
    }

    /// Puts the keys into a guest's tree, in place of those that its packages made.
    pub(super) fn furnish(&self, tree: &Path) -> Result<(), Failure> {
        let ssh = tree.join("etc/ssh");
        for entry in ssh.read_dir().map_err(Failure::file("read", &ssh))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
                fs::remove_file(entry.path()).map_err(Failure::file("remove", &entry.path()))?;
            }
        }
        let authorized = tree.join("root/.ssh/authorized_keys");
        write(&ssh.join("ssh_host_ed25519_key"), &self.host)?;
        write(&ssh.join("ssh_host_ed25519_key.pub"), &self.host_public)?;
        write(&authorized, &self.client_public)?;
        for (path, mode) in
            [(ssh.join("ssh_host_ed25519_key"), 0o600), (tree.join("root/.ssh"), 0o700)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(Failure::file("protect", &path))?;
        }
        Ok(())
    }
}
