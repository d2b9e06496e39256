//! Real guests for tests, benchmarks and the demo: builds their QEMU command
//! lines, starts them, talks to them over the serial line and tidies up.
//!
//! Also real S3 servers, and real file systems that lose their power. It knows
//! nothing of snapshots, and takes part in no shipped program. The guests
//! themselves are built by `cargo xtask guests`.
//!
//! ```no_run
//! use std::time::Duration;
//! use tintype_testkit::{Guest, GuestKind};
//!
//! let mut guest = Guest::of(GuestKind::Tiny).memory_mib(128).boot()?;
//! let answer = guest.serial().run("uname -s", Duration::from_secs(5))?;
//! assert_eq!((answer.status, answer.output.as_str()), (0, "Linux\n"));
//! # Ok::<(), tintype_testkit::Error>(())
//! ```

mod builder;
mod disk;
mod error;
mod golden;
mod guest;
mod image;
mod inspector;
mod power;
mod qemu;
mod qmp;
mod s3;
mod serial;
mod witness;

pub use builder::GuestBuilder;
pub use disk::{Content, Disk, Format};
pub use error::Error;
pub use guest::{Guest, Prepared};
pub use image::{GuestKind, guests_folder, oracle_folder, workspace_folder};
pub use inspector::image_inspector_folder;
pub use power::{FileSystem, History, Kept, LoggedDisk, Mounted};
pub use qemu::{Qemu, Release};
pub use qmp::Qmp;
pub use s3::{S3Flaw, S3Server, s3_server_folder};
pub use serial::{Answer, Serial};
pub use witness::{Testimony, Verdict};
