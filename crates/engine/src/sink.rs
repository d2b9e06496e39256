//! Brings what a capture delivers into a repository session: each block of
//! memory and each disk becomes an image, compared with the parent's by place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tintype_repo::{
    ImageParams, ImageReader, ImageRoot, ImageWriter, NamedImage, Session, Unwritten,
};
use tintype_stream::RamBlock;
use tintype_types::{ByteCount, Extent};
use tintype_vm::{
    CaptureSink, Disk, DiskRead, DiskSink, EarlierContent, MemorySink, Moment, SinkError,
};

use crate::details::{MemoryBlock, SavedDisk, Snapshot, disk_image};
use crate::hooks::Hooks;
use crate::observer::{Observer, Progress, Step};
use crate::tracking::{Earlier, Earliers};
use crate::working_set::WrittenLast;

/// The images of one capture.
pub(crate) struct SessionSink<'s> {
    session: &'s Session,
    parent: Option<&'s Snapshot>,
    earliers: Mutex<Earliers>,
    observer: &'s Arc<dyn Observer>,
    collected: Shared,
    hooks: Arc<Hooks>,
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
        Self {
            session,
            parent,
            earliers: Mutex::default(),
            observer,
            collected,
            hooks: Arc::default(),
        }
    }

    /// Lets the images of disks go on from earlier ones.
    pub(crate) fn going_on_from(mut self, earliers: Earliers) -> Self {
        self.earliers = Mutex::new(earliers);
        self
    }

    /// Lets the user's programs run as soon as the instant has passed.
    pub(crate) fn with_hooks(self, hooks: &Arc<Hooks>) -> Self {
        Self { hooks: Arc::clone(hooks), ..self }
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

    /// Begins the image of a disk: one that goes on from an earlier image, if all that
    /// this needs is still there.
    fn begin_disk(
        &self,
        disk: &Disk,
    ) -> Result<(ImageWriter, Result<tintype_vm::Earlier, String>), SinkError> {
        let mut earliers = self.earliers.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier =
            earliers.remove(&disk.name).unwrap_or_else(|| Err("QEMU did not run".to_owned()));
        let why = match earlier {
            Err(why) => why,
            Ok(Earlier { root, reader, bitmap }) => {
                let parent = Some(root);
                let size = disk.size;
                match self.session.image(ImageParams { size, parent, unwritten: Unwritten::Parent })
                {
                    Ok(writer) => {
                        let content = Box::new(EarlierImage(reader));
                        return Ok((writer, Ok(tintype_vm::Earlier { bitmap, content })));
                    }
                    Err(tintype_repo::Error::NotFound(_)) => {
                        "the snapshot before is not whole any more".to_owned()
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        Ok((self.begin(&disk_image(disk), disk.size)?, Err(why)))
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
            Moment::Frozen => self.observer.step(Step::TakeFrozen),
            Moment::Paused => self.observer.step(Step::TakeInstant),
            Moment::AfterPause => {
                self.session.leave_burst();
                self.observer.step(Step::TakeResumed);
                self.hooks.start_post();
            }
            Moment::Thawed => self.observer.step(Step::TakeThawed),
            Moment::DisksRead => self.observer.step(Step::TakeDisksRead),
            Moment::MemoryRead => self.observer.step(Step::TakeMemoryRead),
        }
    }

    fn memory(&self, blocks: &[RamBlock]) -> Result<Box<dyn MemorySink>, SinkError> {
        let blocks = blocks
            .iter()
            .map(|block| {
                let name = format!("memory/{}", block.name);
                let writer = self.begin(&name, block.length)?;
                let block = block.name.clone();
                Ok(BlockImage { block, name, writer, written_last: WrittenLast::default() })
            })
            .collect::<Result<_, SinkError>>()?;
        let collected = self.collected.clone();
        Ok(Box::new(MemoryImages { collected, blocks, is_last_pass: false }))
    }

    fn disk(&self, disk: &Disk) -> Result<Box<dyn DiskSink>, SinkError> {
        let (writer, earlier) = self.begin_disk(disk)?;
        Ok(Box::new(DiskImage {
            collected: self.collected.clone(),
            saved: SavedDisk { disk: disk.clone(), image: disk_image(disk), read: None },
            writer,
            earlier: Some(earlier),
        }))
    }
}

struct MemoryImages {
    collected: Shared,
    blocks: Vec<BlockImage>,
    is_last_pass: bool,
}

/// The image of a block of memory.
struct BlockImage {
    block: String,
    name: String,
    writer: ImageWriter,
    written_last: WrittenLast,
}

impl MemoryImages {
    /// Returns what writes a page of a block.
    fn writer(&mut self, block: usize, offset: u64) -> Result<&mut ImageWriter, SinkError> {
        let Some(block) = self.blocks.get_mut(block) else {
            return Err(format!("there is no block {block} of memory").into());
        };
        if self.is_last_pass {
            block.written_last.note(offset);
        }
        Ok(&mut block.writer)
    }
}

impl MemorySink for MemoryImages {
    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.collected.count(bytes.len() as u64);
        Ok(self.writer(block, offset)?.write(offset, bytes)?)
    }

    fn zero_page(&mut self, block: usize, offset: u64) -> Result<(), SinkError> {
        let extent = Extent { offset, len: tintype_types::BLOCK_SIZE as u64 };
        self.collected.count(extent.len);
        Ok(self.writer(block, offset)?.write_zeroes(extent)?)
    }

    fn last_pass(&mut self) {
        self.is_last_pass = true;
    }

    fn finish(self: Box<Self>) -> Result<(), SinkError> {
        for block in self.blocks {
            let BlockImage { block: name, name: image, writer, written_last } = block;
            self.collected.add(image.clone(), writer.finish()?);
            let block = MemoryBlock { name, image, written_last: written_last.units() };
            self.collected.collect(|collected| collected.memory.push(block));
        }
        Ok(())
    }
}

struct DiskImage {
    collected: Shared,
    saved: SavedDisk,
    writer: ImageWriter,
    /// Until it is handed out.
    earlier: Option<Result<tintype_vm::Earlier, String>>,
}

/// The image that a disk's next one goes on from.
struct EarlierImage(ImageReader);

impl EarlierContent for EarlierImage {
    fn has(&self, offset: u64, bytes: &[u8]) -> Result<bool, SinkError> {
        let mut had = vec![0; bytes.len()];
        self.0.read_at(offset, &mut had)?;
        Ok(had == bytes)
    }
}

impl DiskSink for DiskImage {
    fn earlier(&mut self) -> Result<tintype_vm::Earlier, String> {
        self.earlier.take().unwrap_or_else(|| Err("it was handed out already".to_owned()))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.collected.count(bytes.len() as u64);
        Ok(self.writer.write(offset, bytes)?)
    }

    fn write_zeroes(&mut self, extent: Extent) -> Result<(), SinkError> {
        self.collected.count(extent.len);
        Ok(self.writer.write_zeroes(extent)?)
    }

    fn finish(self: Box<Self>, read: DiskRead) -> Result<(), SinkError> {
        let Self { collected, mut saved, writer, .. } = *self;
        saved.read = Some(read);
        collected.add(saved.image.clone(), writer.finish()?);
        collected.collect(|collected| collected.disks.push(saved));
        Ok(())
    }
}
