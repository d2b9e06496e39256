//! QEMU's migration stream as a pure codec: bytes in, events out, and back.
//!
//! A [`Parser`] takes a saved VM apart while it arrives: pages of memory are
//! handed out as slices of the caller's buffer, everything else is kept byte for
//! byte in a [`DeviceState`]. A [`RestoreWriter`] puts both together again into
//! a stream that QEMU loads; a [`PostcopyWriter`] does so for a guest that already
//! runs and asks for its pages by a [`ReturnMessage`].
//!
//! Only the RAM section is understood. Nothing here does I/O, knows a socket or
//! looks into a device. The stream comes from a process that a hostile guest
//! may have taken over, so whatever the bytes are, the answer is at worst an
//! [`Error`] and the memory used is bounded by [`Limits`].
//!
//! The format is the one of QEMU 10.0 (`migration/savevm.c`, `migration/ram.c`).

mod command;
mod configuration;
mod coverage;
mod cursor;
mod description;
mod device_state;
mod error;
mod event;
mod limits;
mod page_writer;
mod parser;
mod postcopy;
mod ram;
mod return_path;
mod section;
mod skeleton;
mod window;
mod wire;
mod writer;

pub use command::{Command, DiscardRange};
pub use coverage::Coverage;
pub use description::{Description, DeviceDescription};
pub use device_state::DeviceState;
pub use error::{Error, ErrorKind};
pub use event::{Event, RamPhase, Step};
pub use limits::{Limits, MAX_STEP};
pub use parser::Parser;
pub use postcopy::PostcopyWriter;
pub use ram::{Page, RamBlock, RamBlockId};
pub use return_path::{ReturnMessage, ReturnPathParser};
pub use section::Section;
pub use window::Window;
pub use writer::RestoreWriter;
