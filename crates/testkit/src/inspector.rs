//! The inspector of images that our own is compared with: the one of `oslo.utils`, in
//! a folder of its own.

use std::path::PathBuf;

use crate::image::workspace_folder;

/// Returns the folder of a Python that has `oslo.utils`; `cargo xtask setup` makes it.
pub fn image_inspector_folder() -> PathBuf {
    workspace_folder().join("target/image-inspector")
}
