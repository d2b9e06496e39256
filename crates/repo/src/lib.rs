//! The repository: snapshots as deduplicated, verified images and blobs.
//!
//! ```text
//! Repository ─ begin ─► Session ─ image ─► ImageWriter ─ finish ─► ImageRoot ─┐
//!     │                    └───── blob ──────────────────────────► BlobId ────┤
//!     │                    └───── commit ◄──────────────────────── draft ◄────┘
//!     └─ open_image ─► ImageReader
//! ```
//!
//! Everything read is verified before it is returned, and damage is an error
//! that names its place. A snapshot needs no other snapshot. The format is in
//! `docs/format.md`, who may do what at the same time in `docs/locking.md`.
//!
//! This crate never sees a VM, prints nothing and reads no environment.

mod attempt;
mod blob;
mod blocks;
mod cache;
mod carry;
mod commit;
mod compact;
mod copy;
#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod crash_tests;
mod diff;
mod differing;
mod donor;
mod epoch;
mod error;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gc;
mod gone;
mod graft;
mod heal;
mod history;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod hostile_tests;
mod image;
mod index;
mod intact;
mod join;
mod journal;
mod keys;
mod label;
mod lanes;
mod listing;
mod location;
mod loss;
mod map;
mod mark;
#[cfg(test)]
mod mend_tests;
mod nearby;
mod node;
mod pages;
mod parallel;
mod parents;
mod pointer;
mod quarantine;
mod reach;
mod reader;
mod recall;
mod recompress;
mod record;
mod regrow;
mod repair;
mod repository;
mod retable;
mod rewrite;
mod run;
mod seal;
mod segment;
mod sequence;
mod session;
mod shares;
mod signed;
mod sink;
mod site;
mod slot;
mod slots;
mod store;
mod supervisor;
mod survey;
mod trash;
mod tree;
mod vault;
mod verify;
mod weave;
mod whole;
mod wire;
mod wrapping;
mod writer;

pub use compact::{CompactionReport, Skipped};
pub use copy::{Copier, CopyError, CopyParams, CopyPlan, CopyReport};
pub use error::{Damage, Error, Kind};
pub use gc::GcReport;
pub use gone::{Deleted, Due};
pub use graft::{Mended, Mismatch};
pub use journal::Logged;
pub use label::{Label, Labels};
pub use listing::Listing;
pub use location::{BucketName, Location, S3Access};
pub use loss::Loss;
pub use nearby::CacheParams;
pub use reader::{DataExtents, ImageReader};
pub use recompress::RecompressionParams;
pub use record::{BlobId, NamedImage, Opaque, Origin, Part, SnapshotDraft, SnapshotRecord};
pub use repair::RepairReport;
pub use repository::{GcParams, InitParams, Pin, Repository, Usage};
pub use sequence::{Piece, Sequence};
pub use session::{ImageParams, Session, SessionParams, SessionStats, Unwritten};
pub use shares::{SetShare, Shares, SnapshotShare, VmShare};
pub use site::Site;
pub use slots::{Encryption, KeySlot};
pub use supervisor::Supervisor;
pub use survey::CompactionParams;
pub use trash::TrashShares;
pub use tree::ImageRoot;
pub use verify::{VerifyLevel, VerifyReport};
pub use writer::ImageWriter;
