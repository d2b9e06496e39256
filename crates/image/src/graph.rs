//! Opens an image with its backing chain as nodes of QEMU's block graph.
//!
//! QEMU would open backing files by itself, and probe those whose format the
//! header does not tell: a guest that can write a raw base could make it look like
//! anything. So every layer is opened without its backing file first, its header
//! is asked, and the chain is then built from the bottom with explicit formats.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Error;
use crate::host::Monitor;
use crate::spec::{Access, Cache, Format, ImageSpec, LayerSpec};

/// The longest chain of backing files.
const MAX_LAYERS: usize = 256;

/// One file of a chain.
struct Layer {
    path: PathBuf,
    format: Format,
    access: Access,
    cache: Cache,
    /// What exchanges the first bytes of the file.
    head: Option<PathBuf>,
}

/// Opens an image as the node `name`.
pub(crate) fn open(monitor: &mut Monitor, spec: &ImageSpec, name: &str) -> Result<(), Error> {
    if let Some(layers) = &spec.given {
        return open_given(monitor, spec, layers, name);
    }
    let mut layer = Layer {
        path: absolute(&spec.path)?,
        format: spec.format.clone(),
        access: spec.access,
        cache: spec.cache,
        head: None,
    };
    let mut above = Vec::new();
    loop {
        add(monitor, &layer, name, None)?;
        let Some(backing) = backing_of(monitor, &layer, name)? else { break };
        remove(monitor, name)?;
        above.push(std::mem::replace(&mut layer, backing));
        if above.len() >= MAX_LAYERS {
            let backing = layer.path.display().to_string();
            let reason = "the chain of backing files is too long, or a circle";
            return Err(Error::Backing { path: spec.path.clone(), backing, reason });
        }
    }
    if above.is_empty() {
        return Ok(());
    }
    // The bottom is open under the name that the top is to have.
    remove(monitor, name)?;
    let mut below = format!("{name}-{}", above.len());
    add(monitor, &layer, &below, None)?;
    for (depth, layer) in above.iter().enumerate().rev() {
        let own = if depth == 0 { name.to_owned() } else { format!("{name}-{depth}") };
        add(monitor, layer, &own, Some(&below))?;
        below = own;
    }
    Ok(())
}

/// Opens files that were inspected, each over the next, and no others.
fn open_given(
    monitor: &mut Monitor,
    spec: &ImageSpec,
    layers: &[LayerSpec],
    name: &str,
) -> Result<(), Error> {
    let mut below: Option<String> = None;
    for (depth, given) in layers.iter().enumerate().rev() {
        let layer = Layer {
            path: absolute(&given.path)?,
            format: given.format.clone(),
            access: if depth == 0 { spec.access } else { Access::ReadOnly },
            cache: spec.cache,
            head: given.head.clone(),
        };
        let own = if depth == 0 { name.to_owned() } else { format!("{name}-{depth}") };
        add(monitor, &layer, &own, below.as_deref())?;
        below = Some(own);
    }
    Ok(())
}

/// Refuses to go on if QEMU has opened a file that was not inspected: one of those may
/// have been changed meanwhile, so that it names another.
pub(crate) fn refuse_others(monitor: &mut Monitor, images: &[ImageSpec]) -> Result<(), Error> {
    let Some(given) = images.iter().map(|spec| spec.given.as_ref()).collect::<Option<Vec<_>>>()
    else {
        return Ok(());
    };
    let mut known = Vec::new();
    for layer in given.into_iter().flatten() {
        known.push(absolute(&layer.path)?);
        known.extend(layer.head.as_deref().map(absolute).transpose()?);
    }
    let command = "query-named-block-nodes";
    let nodes = monitor.call(command, &json!({ "flat": true }))?;
    for node in nodes.as_array().into_iter().flatten() {
        let is_known = match node["drv"].as_str().unwrap_or_default() {
            "file" | "host_device" => {
                node["file"].as_str().is_some_and(|file| known.iter().any(|path| path == file))
            }
            driver => driver == "blkdebug" || driver.parse::<Format>().is_ok(),
        };
        if !is_known {
            let path = images.first().map_or_else(PathBuf::new, |spec| spec.path.clone());
            let backing = node["file"].as_str().unwrap_or("?").chars().take(256).collect();
            let reason = "the image was changed since it was inspected";
            return Err(Error::Backing { path, backing, reason });
        }
    }
    Ok(())
}

/// Adds a layer as a node.
fn add(
    monitor: &mut Monitor,
    layer: &Layer,
    name: &str,
    backing: Option<&str>,
) -> Result<(), Error> {
    let mut node = json!({
        "driver": layer.format.as_str(),
        "node-name": name,
        "read-only": layer.access == Access::ReadOnly,
        "discard": "unmap",
        "cache": { "direct": layer.cache == Cache::Direct },
        "file": file(layer)?,
    });
    if layer.format.has_backing() {
        node["backing"] = json!(backing);
    }
    monitor.try_call("blockdev-add", &node)?.map(|_| ()).map_err(|message| layer.error(message))
}

/// Describes the file below a layer's format.
fn file(layer: &Layer) -> Result<Value, Error> {
    let bad = |reason| Error::Path { path: layer.path.clone(), reason };
    let kind = std::fs::metadata(&layer.path).map(|metadata| metadata.file_type());
    let driver = match kind {
        Ok(kind) if kind.is_block_device() => "host_device",
        Ok(kind) if kind.is_file() => "file",
        Ok(_) => return Err(bad("it is neither a regular file nor a block device")),
        Err(_) => return Err(bad("it does not exist or cannot be looked at")),
    };
    let path = layer.path.to_str().ok_or_else(|| bad("its path is not UTF-8"))?;
    let file = json!({
        "driver": driver,
        "filename": path,
        "read-only": layer.access == Access::ReadOnly,
        "locking": "auto",
        "discard": "unmap",
        "cache": { "direct": layer.cache == Cache::Direct },
    });
    if let Some(head) = &layer.head {
        let head = head.to_str().ok_or_else(|| bad("its path is not UTF-8"))?;
        return Ok(json!({
            "driver": "qcow2",
            "read-only": true,
            "file": { "driver": "file", "filename": head, "read-only": true },
            "backing": { "driver": "raw", "read-only": true, "file": file },
        }));
    }
    if layer.format.is_raw() {
        // Formats with metadata exclude other writers, but a raw image does not
        // (`raw_child_perm` in block/raw-format.c passes on what the NBD export
        // shares, which is all): QEMU would read along while a VM writes.
        return Ok(json!({
            "driver": "blkdebug",
            "read-only": layer.access == Access::ReadOnly,
            "unshare-child-perms": ["write", "resize"],
            "image": file,
        }));
    }
    Ok(file)
}

/// Asks the open layer's header for its backing file.
fn backing_of(monitor: &mut Monitor, layer: &Layer, name: &str) -> Result<Option<Layer>, Error> {
    if !layer.format.has_backing() {
        return Ok(None);
    }
    let command = "query-named-block-nodes";
    let nodes = monitor.call(command, &json!({ "flat": true }))?;
    let node = nodes
        .as_array()
        .and_then(|nodes| nodes.iter().find(|node| node["node-name"] == name))
        .ok_or_else(|| Error::Nonsense {
            command: command.to_owned(),
            reason: "a node that was just added is missing",
        })?;
    let image = &node["image"];
    let Some(named) = image["backing-filename"].as_str() else { return Ok(None) };
    let bad = |reason| Error::Backing {
        path: layer.path.clone(),
        backing: named.chars().take(256).collect(),
        reason,
    };
    let full = image["full-backing-filename"].as_str().unwrap_or(named);
    let full = full.strip_prefix("file:").unwrap_or(full);
    if !full.starts_with('/') {
        return Err(bad("it is not a file of this machine"));
    }
    let format = image["backing-filename-format"]
        .as_str()
        .ok_or_else(|| bad("the header does not tell its format, and formats are never probed"))?;
    let format = format
        .parse()
        .map_err(|source| Error::BackingFormat { path: layer.path.clone(), source })?;
    Ok(Some(Layer {
        path: PathBuf::from(full),
        format,
        access: Access::ReadOnly,
        cache: layer.cache,
        head: None,
    }))
}

fn remove(monitor: &mut Monitor, name: &str) -> Result<(), Error> {
    monitor.call("blockdev-del", &json!({ "node-name": name })).map(|_| ())
}

impl Layer {
    fn error(&self, message: String) -> Error {
        if is_lock(&message) {
            return Error::InUse { path: self.path.clone(), message };
        }
        Error::Open { path: self.path.clone(), format: self.format.to_string(), message }
    }
}

/// Returns whether QEMU's message is about a lock that it did not get
/// (`raw_apply_lock_bytes` and `raw_check_lock_bytes` in block/file-posix.c).
pub(crate) fn is_lock(message: &str) -> bool {
    message.contains("Failed to get") && message.contains("lock")
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let reason = "its path cannot be made absolute";
    std::path::absolute(path).map_err(|_| Error::Path { path: path.to_owned(), reason })
}
