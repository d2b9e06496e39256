//! Ids, names, sizes and indexes that every room shares.
//!
//! Values only: nothing here opens a file, reads a clock or knows a format.

mod extent;
mod id;
mod name;
mod size;

pub use extent::{Extent, ImageSize};
pub use id::{ParseIdError, RepositoryId, SnapshotId, VmId};
pub use name::{NameError, SnapshotName, VmName};
pub use size::{BLOCK_SIZE, BlockIndex, ByteCount};
