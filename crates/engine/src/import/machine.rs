//! The VM that images belong to, where somebody says how its QEMU is started: asked
//! of that QEMU, which stands still with all of its hardware, isolated, on empty
//! disks in the place of the images.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tintype_types::VmId;
use tintype_vm::{
    CommandLine, Inventory, LaunchParams, MovedFile, RelocateParams, arguments, isolate, launch,
    relocate,
};

use super::plan::Plan;
use crate::Engine;
use crate::error::{Error, Result};
use crate::vms::find_program;

/// A VM, and how its QEMU is started.
#[derive(Debug)]
pub(super) struct Machine {
    /// Without a monitor of ours.
    pub(super) line: CommandLine,
    /// What is in it; its disks are the images, in their order.
    pub(super) inventory: Inventory,
}

impl Engine {
    /// Finds out what VM a command line makes of the images, and makes their disks
    /// the VM's.
    pub(super) fn machine(
        &self,
        words: &[String],
        directory: &Path,
        images: &[PathBuf],
        plan: &mut Plan,
    ) -> Result<Machine> {
        let Some((program, given)) = words.split_first() else {
            return Err(Error::invalid("there is no QEMU command line")
                .hint("type it after `--`: --qemu -- qemu-system-x86_64 …"));
        };
        let line = CommandLine {
            program: find_program(program, directory)?,
            arguments: arguments::without_start_options(given),
            directory: directory.to_owned(),
            environment: self.config.environment.clone(),
        };
        let folder = self.home.short_lived_folder()?;
        let tried = try_out(&line, images, plan, folder.path()).map_err(|error| {
            Error::refused(format!("the images are not those of a VM that {program} makes"))
                .because(error)
                .hint("QEMU says what it misses; every disk that it can write to has to be among the images, and no other")
        });
        let inventory = own_disks(tried?, images, plan, folder.path())?;
        Ok(Machine { line, inventory })
    }
}

/// Starts the QEMU, and returns what it has.
fn try_out(
    line: &CommandLine,
    images: &[PathBuf],
    plan: &Plan,
    folder: &Path,
) -> Result<Inventory> {
    let points = plan.moments.last().map_or(&[][..], |moment| &moment.points);
    let mut absolute = Vec::new();
    let mut real = Vec::new();
    for (number, (image, point)) in images.iter().zip(points).enumerate() {
        let to = stand_in(folder, number);
        let file = File::create_new(&to).map_err(Error::io("make", &to))?;
        file.set_len(point.size.get()).map_err(Error::io("make", &to))?;
        let moved = |from| MovedFile { from, to: to.clone(), format: Some("raw".to_owned()) };
        absolute.push(moved(std::path::absolute(image).map_err(Error::io("find", image))?));
        real.push(moved(fs::canonicalize(image).map_err(Error::io("find", image))?));
    }
    let alone = isolate(&line.arguments, false)?;
    let alone = CommandLine { arguments: alone.arguments, ..line.clone() };
    let seed = *VmId::random().as_bytes();
    let moved = |files: &[MovedFile]| {
        relocate(&alone, &RelocateParams { files, folder, seed, free_port: None })
    };
    let relocated = moved(&absolute).or_else(|_| moved(&real))?;
    let socket = folder.join("qmp");
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let command_line = CommandLine { arguments: relocated.arguments, ..alone };
    let params = LaunchParams {
        command_line: &command_line,
        extra: &["-S", "-qmp", &monitor],
        socket: &socket,
        log: &folder.join("log"),
    };
    let mut guest = launch(&params)?;
    let inventory = guest.inventory();
    guest.quit()?;
    Ok(inventory?)
}

/// Puts the images back in the place of the empty disks.
fn own_disks(
    mut inventory: Inventory,
    images: &[PathBuf],
    plan: &mut Plan,
    folder: &Path,
) -> Result<Inventory> {
    let refused = |why: String| {
        Error::refused("the disks of the VM are not the images")
            .because(why)
            .hint("name each disk that the VM can write to, in any order")
    };
    let stand_ins: Vec<PathBuf> =
        (0..images.len()).map(|number| stand_in(folder, number)).collect();
    let is_image =
        |file: &Option<PathBuf>| stand_ins.iter().position(|place| file.as_ref() == Some(place));
    if let Some(other) = inventory.writable_disks().find(|disk| is_image(&disk.file).is_none()) {
        return Err(refused(format!("the disk `{}` is not among them", other.name)));
    }
    let newest = plan.moments.last().map(|moment| moment.disks()).unwrap_or_default();
    let mut found = vec![None; images.len()];
    for disk in &mut inventory.disks {
        let Some(number) = is_image(&disk.file) else { continue };
        let image = &newest[number];
        (disk.file, disk.size) = (image.file.clone(), image.size);
        disk.format.clone_from(&image.format);
        found[number] = Some(disk.clone());
    }
    for (number, disk) in found.iter().enumerate() {
        let disk = disk
            .as_ref()
            .ok_or_else(|| refused(format!("the VM does not use {}", images[number].display())))?;
        for moment in &mut plan.moments {
            moment.points[number].become_disk(disk);
        }
    }
    Ok(inventory)
}

fn stand_in(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("image-{number}"))
}
