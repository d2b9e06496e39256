//! The repository: snapshots as deduplicated, verified images and blobs. It never sees a VM.
