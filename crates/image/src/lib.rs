//! Reads and writes disk images through the block layer of the VM's own QEMU.
//!
//! Formats are not reimplemented here. A QEMU without a machine opens the images
//! and exports them over NBD on a private socket, so what is read and written has
//! the same features, the same bugs and the same locks as in the VM; an image
//! that a running VM has open is refused. A format is never probed: whoever opens
//! an image says what it is, and a backing file without a format is refused.
//!
//! The QEMU process ends with the [`ImageHost`], and with our process however
//! that ends.

mod create;
mod error;
mod graph;
mod head;
mod host;
mod image;
mod process;
mod qmp;
mod spec;

pub use create::CreateParams;
pub use error::{Error, ErrorKind};
pub use host::{IdleHost, ImageHost};
pub use image::Image;
pub use spec::{Access, Cache, Format, HostConfig, ImageSpec, LayerSpec, UnknownFormat};
pub use tintype_nbd::codec::StatusFlags;
pub use tintype_nbd::{Content, PullParams, Status, WritePipeline};
