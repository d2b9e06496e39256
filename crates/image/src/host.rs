//! The QEMU that has images open.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tintype_types::ByteCount;

use crate::error::Error;
use crate::graph;
use crate::image::{Image, Socket};
use crate::process::Process;
use crate::qmp::{Failure, Qmp};
use crate::spec::{Access, HostConfig, ImageSpec};

/// QEMU without a machine, with nothing but a monitor.
const ARGUMENTS: [&str; 9] = [
    "-machine",
    "none",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-S",
    "-qmp",
    "stdio",
];

/// What the block layer has no need of, in case an image is made to break it.
const SANDBOX: [&str; 2] =
    ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"];

/// A QEMU process that has images open for us.
///
/// Dropping it kills the process, which loses what was not flushed:
/// [`ImageHost::close`] is the way to end writing.
pub struct ImageHost {
    images: Vec<Image>,
    monitor: Monitor,
    /// Makes the names of exports that replace others differ.
    exports: u32,
}

/// A QEMU process that can open images, and has none open yet.
pub struct IdleHost {
    monitor: Monitor,
}

impl IdleHost {
    /// Starts QEMU.
    pub fn start(config: &HostConfig) -> Result<Self, Error> {
        Ok(Self { monitor: Monitor::start(config)? })
    }

    /// Opens all images, or none.
    pub fn open(self, images: &[ImageSpec]) -> Result<ImageHost, Error> {
        let mut host = ImageHost { images: Vec::new(), monitor: self.monitor, exports: 0 };
        for (number, spec) in images.iter().enumerate() {
            graph::open(&mut host.monitor, spec, &node(number))?;
        }
        graph::refuse_others(&mut host.monitor, images)?;
        let address = json!({ "type": "unix", "data": { "path": Socket::NAME } });
        host.monitor.call("nbd-server-start", &json!({ "addr": address }))?;
        let directory = host.monitor.process.directory();
        let socket = Socket::new(directory, host.monitor.timeout).map_err(|source| {
            Error::Connection { command: "nbd-server-start".to_owned(), source }
        })?;
        let socket = Arc::new(socket);
        for (number, spec) in images.iter().enumerate() {
            let export = host.export(number, spec)?;
            host.images.push(Image::connect(spec.clone(), Arc::clone(&socket), export)?);
        }
        Ok(host)
    }
}

impl ImageHost {
    /// Starts QEMU and opens all images, or none.
    pub fn open(config: &HostConfig, images: &[ImageSpec]) -> Result<Self, Error> {
        IdleHost::start(config)?.open(images)
    }

    /// Returns the images, in the order in which they were given.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Returns an image by its place in what was given.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn image(&self, number: usize) -> &Image {
        &self.images[number]
    }

    /// Gives an image another size. What is beyond a smaller size is lost; what a
    /// larger size adds reads as zeros. The size is kept if QEMU refuses.
    ///
    /// # Panics
    ///
    /// If there are not so many images.
    pub fn resize(&mut self, number: usize, size: ByteCount) -> Result<(), Error> {
        let image = &self.images[number];
        image.flush()?;
        let (spec, socket) = (image.spec().clone(), image.socket());
        let old = image.export().to_owned();
        // An export forbids resizing, and keeps the size that it began with.
        self.monitor.call("block-export-del", &json!({ "id": old, "mode": "hard" }))?;
        self.wait_for_export_to_go(&old)?;
        let arguments = json!({ "node-name": node(number), "size": size.get() });
        let resized = self.monitor.call("block_resize", &arguments);
        let export = self.export(number, &spec)?;
        self.images[number] = Image::connect(spec, socket, export)?;
        resized.map(|_| ())
    }

    /// Removes the dirty bitmaps that are in an image and whose names start so.
    ///
    /// # Panics
    ///
    /// If there are not so many images, or this one is open for reading alone.
    pub fn remove_bitmaps(&mut self, number: usize, start: &str) -> Result<(), Error> {
        assert_eq!(self.images[number].spec().access, Access::ReadWrite, "to be changed");
        let node = node(number);
        let nodes = self.monitor.call("query-named-block-nodes", &json!({ "flat": true }))?;
        let own = nodes.as_array().and_then(|nodes| nodes.iter().find(|n| n["node-name"] == node));
        let bitmaps = own.and_then(|own| own["dirty-bitmaps"].as_array()).into_iter().flatten();
        let names = bitmaps.filter_map(|bitmap| bitmap["name"].as_str());
        for name in names.filter(|name| name.starts_with(start)) {
            let this = json!({ "node": node, "name": name });
            self.monitor.call("block-dirty-bitmap-remove", &this)?;
        }
        Ok(())
    }

    /// Waits until a deleted export has no more users.
    fn wait_for_export_to_go(&mut self, id: &str) -> Result<(), Error> {
        let command = "query-block-exports";
        let deadline = Instant::now() + self.monitor.timeout;
        loop {
            let exports = self.monitor.call(command, &json!({}))?;
            if !exports.as_array().is_some_and(|all| all.iter().any(|export| export["id"] == id)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::TimedOut { command: command.to_owned() });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes all writes durable, closes the images and ends QEMU.
    pub fn close(mut self) -> Result<(), Error> {
        let writable = |image: &&Image| image.spec().access == Access::ReadWrite;
        let flushed = self.images.iter().filter(writable).try_for_each(Image::flush);
        self.images.clear();
        flushed.and(self.monitor.quit())
    }

    fn export(&mut self, number: usize, spec: &ImageSpec) -> Result<String, Error> {
        let name = format!("export-{}", self.exports);
        self.exports += 1;
        let arguments = json!({
            "type": "nbd",
            "id": name,
            "name": name,
            "node-name": node(number),
            "writable": spec.access == Access::ReadWrite,
        });
        match self.monitor.try_call("block-export-add", &arguments)? {
            Ok(_) => Ok(name),
            Err(message) if graph::is_lock(&message) => {
                Err(Error::InUse { path: spec.path.clone(), message })
            }
            Err(message) => {
                let (path, format) = (spec.path.clone(), spec.format.to_string());
                Err(Error::Open { path, format, message })
            }
        }
    }
}

fn node(number: usize) -> String {
    format!("image-{number}")
}

/// A QEMU process and its monitor.
pub(crate) struct Monitor {
    process: Process,
    qmp: Qmp,
    qemu: PathBuf,
    timeout: Duration,
}

impl Monitor {
    /// Starts QEMU in a sandbox; without one if this QEMU was built without.
    pub(crate) fn start(config: &HostConfig) -> Result<Self, Error> {
        let sandboxed = [&ARGUMENTS[..], &SANDBOX].concat();
        match Self::start_with(config, &sandboxed) {
            Err(Error::Died { message, .. }) if message.contains("sandbox") => {
                tracing::info!(%message, "QEMU has no sandbox");
                Self::start_with(config, &ARGUMENTS)
            }
            outcome => outcome,
        }
    }

    fn start_with(config: &HostConfig, arguments: &[&str]) -> Result<Self, Error> {
        let HostConfig { qemu, runtime_directory, timeout } = config.clone();
        let started = Process::start(&qemu, arguments, &runtime_directory);
        let (process, stream) =
            started.map_err(|source| Error::Start { qemu: qemu.clone(), source })?;
        let mut monitor = Self { process, qmp: Qmp::new(stream, timeout), qemu, timeout };
        monitor.qmp.greet().map_err(|failure| monitor.error("its start", failure))?;
        Ok(monitor)
    }

    /// Calls a command that should work.
    pub(crate) fn call(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        self.try_call(command, arguments)?
            .map_err(|message| Error::Refused { command: command.to_owned(), message })
    }

    /// Calls a command; the inner result is QEMU's answer.
    pub(crate) fn try_call(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Result<Result<Value, String>, Error> {
        match self.qmp.call(command, arguments) {
            Ok(value) => Ok(Ok(value)),
            Err(Failure::Refused(message)) => Ok(Err(message)),
            Err(failure) => Err(self.error(command, failure)),
        }
    }

    /// Ends QEMU and waits until its images are closed.
    pub(crate) fn quit(mut self) -> Result<(), Error> {
        let command = "quit";
        self.call(command, &json!({}))?;
        self.qmp.wait_closed().map_err(|failure| self.error(command, failure))?;
        match self.process.wait(self.timeout) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.died(command)),
            Err(source) => Err(Error::Connection { command: command.to_owned(), source }),
        }
    }

    fn died(&self, command: &str) -> Error {
        let message = self.process.message();
        Error::Died { qemu: self.qemu.clone(), command: command.to_owned(), message }
    }

    fn error(&self, command: &str, failure: Failure) -> Error {
        let name = command.to_owned();
        match failure {
            Failure::Closed => self.died(command),
            Failure::TimedOut => Error::TimedOut { command: name },
            Failure::Refused(message) => Error::Refused { command: name, message },
            Failure::Nonsense(reason) => Error::Nonsense { command: name, reason },
            Failure::Io(source) => Error::Connection { command: name, source },
        }
    }
}
