//! Images whose first bytes are read as others, without being written to.

use std::path::Path;

use tintype_types::ByteCount;

use crate::create::CreateParams;
use crate::error::Error;
use crate::host::ImageHost;
use crate::spec::{Access, Format, HostConfig, ImageSpec, LayerSpec};

impl ImageHost {
    /// Makes a file `over` that lies over an image and exchanges its first bytes for
    /// `head`; the image itself stays as it is. With a header whose tables are those of
    /// an internal snapshot, QEMU reads that snapshot, and the state of its VM behind
    /// it, which it offers over no other way than by loading it into a VM.
    pub fn exchange_head(
        config: &HostConfig,
        image: &Path,
        head: &[u8],
        over: &Path,
    ) -> Result<(), Error> {
        let metadata = std::fs::metadata(image)
            .map_err(|source| Error::Create { path: over.to_owned(), source })?;
        let size = ByteCount(metadata.len().next_multiple_of(512));
        let format = Format::qcow2();
        let create =
            CreateParams { path: over.to_owned(), format, size, mode: 0o600, backing: None };
        Self::create(config, &create)?;
        let layer = |path: &Path, format| LayerSpec { path: path.to_owned(), format, head: None };
        let layers = vec![layer(over, Format::qcow2()), layer(image, Format::raw())];
        let spec = ImageSpec { access: Access::ReadWrite, ..ImageSpec::chain(layers) };
        let host = Self::open(config, &[spec])?;
        host.image(0).write_at(0, head)?;
        host.close()
    }
}
