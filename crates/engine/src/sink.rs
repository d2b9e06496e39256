//! Brings what a capture delivers into a repository session: each block of
//! memory and each disk becomes an image, compared with the parent's by place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tintype_repo::{ImageParams, ImageRoot, ImageWriter, NamedImage, Session, Unwritten};
use tintype_stream::RamBlock;
use tintype_types::{ByteCount, Extent};
use tintype_vm::{CaptureSink, Disk, DiskSink, MemorySink, Moment, SinkError};

use crate::details::{MemoryBlock, SavedDisk, Snapshot};
use crate::observer::{Observer, Progress, Step};

/// The images of one capture.
pub(crate) struct SessionSink<'s> {
    session: &'s Session,
    parent: Option<&'s Snapshot>,
    observer: &'s Arc<dyn Observer>,
    collected: Shared,
}

/// What has come so far.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) images: Vec<NamedImage>,
    pub(crate) memory: Vec<MemoryBlock>,
    pub(crate) disks: Vec<SavedDisk>,
}

/// The sinks outlive the calls that make them, so they share this.
#[derive(Clone)]
struct Shared {
    collected: Arc<Mutex<Collected>>,
    /// Bytes that have come, zeros included.
    done: Arc<AtomicU64>,
    observer: Arc<dyn Observer>,
}

impl Shared {
    /// Counts bytes, and tells how many there are now and then.
    fn count(&self, bytes: u64) {
        const STRIDE: u64 = 16 << 20;
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let now = before + bytes;
        if before / STRIDE != now / STRIDE {
            let done = ByteCount(now);
            self.observer.progress(Progress { activity: "capturing", done, total: None });
        }
    }

    fn collect(&self, change: impl FnOnce(&mut Collected)) {
        change(&mut self.collected.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn add(&self, name: String, root: ImageRoot) {
        self.collect(|collected| collected.images.push(NamedImage { name, root }));
    }
}

impl<'s> SessionSink<'s> {
    pub(crate) fn new(
        session: &'s Session,
        parent: Option<&'s Snapshot>,
        observer: &'s Arc<dyn Observer>,
    ) -> Self {
        let collected = Shared {
            collected: Arc::default(),
            done: Arc::default(),
            observer: Arc::clone(observer),
        };
        Self { session, parent, observer, collected }
    }

    /// Returns all images that are complete.
    pub(crate) fn into_collected(self) -> Collected {
        let mut all = Collected::default();
        self.collected.collect(|collected| std::mem::swap(collected, &mut all));
        all
    }

    /// Begins an image that resembles the parent's of the same name.
    pub(crate) fn begin(&self, name: &str, size: ByteCount) -> Result<ImageWriter, SinkError> {
        let parent = self.parent.and_then(|parent| parent.image(name)).cloned();
        Ok(self.session.image(ImageParams { size, parent, unwritten: Unwritten::Zero })?)
    }

    /// Adds a complete image.
    pub(crate) fn add(&self, name: String, root: ImageRoot) {
        self.collected.add(name, root);
    }
}

impl CaptureSink for SessionSink<'_> {
    fn moment(&self, moment: Moment) {
        match moment {
            Moment::BeforePause => self.session.enter_burst(),
            Moment::Paused => self.observer.step(Step::TakeInstant),
            Moment::AfterPause => {
                self.session.leave_burst();
                self.observer.step(Step::TakeResumed);
            }
            Moment::DisksRead => self.observer.step(Step::TakeDisksRead),
            Moment::MemoryRead => self.observer.step(Step::TakeMemoryRead),
        }
    }

    fn memory(&self, blocks: &[RamBlock]) -> Result<Box<dyn MemorySink>, SinkError> {
        let writers = blocks
            .iter()
            .map(|block| {
                let name = format!("memory/{}", block.name);
                let writer = self.begin(&name, block.length)?;
                Ok((MemoryBlock { name: block.name.clone(), image: name }, writer))
            })
            .collect::<Result<_, SinkError>>()?;
        Ok(Box::new(MemoryImages { collected: self.collected.clone(), writers }))
    }

    fn disk(&self, disk: &Disk) -> Result<Box<dyn DiskSink>, SinkError> {
        let image = format!("disk/{}", disk.name);
        let writer = self.begin(&image, disk.size)?;
        Ok(Box::new(DiskImage {
            collected: self.collected.clone(),
            saved: SavedDisk { disk: disk.clone(), image },
            writer,
        }))
    }
}

struct MemoryImages {
    collected: Shared,
    writers: Vec<(MemoryBlock, ImageWriter)>,
}

impl MemoryImages {
    fn writer(&mut self, block: usize) -> Result<&mut ImageWriter, SinkError> {
        match self.writers.get_mut(block) {
            Some((_, writer)) => Ok(writer),
            None => Err(format!("there is no block {block} of memory").into()),
        }
    }
}

impl MemorySink for MemoryImages {
    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.collected.count(bytes.len() as u64);
        Ok(self.writer(block)?.write(offset, bytes)?)
    }

    fn zero_page(&mut self, block: usize, offset: u64) -> Result<(), SinkError> {
        let extent = Extent { offset, len: tintype_types::BLOCK_SIZE as u64 };
        self.collected.count(extent.len);
        Ok(self.writer(block)?.write_zeroes(extent)?)
    }

    fn finish(self: Box<Self>) -> Result<(), SinkError> {
        for (block, writer) in self.writers {
            let root = writer.finish()?;
            self.collected.add(block.image.clone(), root);
            self.collected.collect(|collected| collected.memory.push(block));
        }
        Ok(())
    }
}

struct DiskImage {
    collected: Shared,
    saved: SavedDisk,
    writer: ImageWriter,
}

impl DiskSink for DiskImage {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.collected.count(bytes.len() as u64);
        Ok(self.writer.write(offset, bytes)?)
    }

    fn write_zeroes(&mut self, extent: Extent) -> Result<(), SinkError> {
        self.collected.count(extent.len);
        Ok(self.writer.write_zeroes(extent)?)
    }

    fn finish(self: Box<Self>) -> Result<(), SinkError> {
        let Self { collected, saved, writer } = *self;
        collected.add(saved.image.clone(), writer.finish()?);
        collected.collect(|collected| collected.disks.push(saved));
        Ok(())
    }
}
