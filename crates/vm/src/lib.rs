//! One guest: QMP, pause and resume, capture, start, load.
//!
//! This room drives a stock QEMU and hands what it captures to a sink. It knows
//! no repository and no chunk, prints nothing and reads no environment.

mod abilities;
mod agent;
pub mod arguments;
mod bitmaps;
mod cancel;
mod capture;
mod error;
mod fields;
mod fill;
mod footprint;
mod freezer;
mod guest;
mod hardware;
mod images;
mod inventory;
mod isolate;
mod launch;
mod lazy;
mod load;
mod media;
mod pause;
mod process;
pub mod qmp;
mod relocate;
mod signs;
mod stored;
mod tpm;

pub use abilities::Abilities;
pub use agent::{Agent, AgentChannel};
pub use bitmaps::{Bitmap, bitmap_name};
pub use cancel::Cancel;
pub use capture::{
    Afterwards, CaptureParams, CaptureReport, CaptureSink, DiskRead, DiskSink, Earlier,
    EarlierContent, MemorySink, Moment, Reading, SinkError, Way, capture,
};
pub use error::{Error, ErrorKind, Result};
pub use fill::{FillImage, FillState, Filler, export_name, fill_arguments};
pub use footprint::Footprint;
pub use freezer::{FreezeNews, Freezer, FreezerParams};
pub use guest::Guest;
pub use hardware::Hardware;
pub use inventory::{Disk, Inventory, NetworkCard};
pub use isolate::{Isolated, isolate};
pub use launch::{LaunchParams, launch};
pub use lazy::{LazyState, RescuePipe, can_serve_missing_pages};
pub use load::load;
pub use media::without_medium;
pub use process::{CommandLine, Process, ProcessId};
pub use relocate::{
    FreePort, MovedFile, MovedPort, RelocateParams, Relocated, relocate, with_machine_type,
};
pub use signs::Signs;
pub use stored::{BackingFile, can_store, stored_name, stored_names};
pub use tpm::Tpm;
