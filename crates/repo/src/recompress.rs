//! Recompression: what was compressed fast, when a guest waited for it, is
//! compressed again at leisure, and moved as a compaction moves it.
//!
//! ```text
//! survey ─► segments not tried yet ─► a sample of each ─► those that get smaller
//!        ─► steps of a compaction that encodes anew what it moves
//! ```
//!
//! The segments where it goes say so in their headers, so nothing is tried twice.
//! A segment whose sample gets hardly smaller stays where it is; the sample is the
//! same each time, so it stays the next time too.

use std::sync::{Mutex, PoisonError};

use tintype_types::ByteCount;

use crate::Error;
use crate::compact::{Taken, take_out};
use crate::epoch::Segments;
use crate::frame::{Codec, Encoder, FrameKind, STRONG_LEVEL};
use crate::parallel;
use crate::pointer::SegmentName;
use crate::supervisor::Supervisor;
use crate::survey::{Live, Plan, Survey};
use crate::vault::Vault;

/// Frames of a segment that are tried before all of them are.
const SAMPLE: usize = 4;
/// Segments that are looked at together, for each thread.
const BATCH: usize = 4;

/// When segments are compressed again.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RecompressionParams {
    /// Only segments that get smaller by that share, as far as a sample tells.
    pub least_percent: u64,
    /// Only if a step gains so much; `None` whatever it costs.
    pub least_gain: Option<ByteCount>,
    /// How much is moved at a time: an interruption loses no more.
    pub step: ByteCount,
}

impl Default for RecompressionParams {
    fn default() -> Self {
        Self { least_percent: 3, least_gain: Some(ByteCount(1 << 20)), step: ByteCount(1 << 30) }
    }
}

/// Encodes frames anew, in several threads.
#[derive(Default)]
pub(crate) struct Recoder {
    idle: Mutex<Vec<Encoder>>,
}

impl Recoder {
    /// Returns a frame as it is best stored.
    pub(crate) fn shorter(&self, taken: Taken) -> (Codec, Vec<u8>) {
        // What zstd could not shorten fast it hardly ever does.
        if taken.codec == Codec::Raw {
            return taken.coded();
        }
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut encoder = idle().pop().unwrap_or_else(Encoder::strong);
        let short = encoder.shorten(&taken.raw, taken.coded.len()).map(<[u8]>::to_vec);
        idle().push(encoder);
        short.map_or_else(|| taken.coded(), |short| (Codec::Zstd, short))
    }
}

/// What is known of a segment that was looked at.
enum Promise {
    /// It is to stay as it is.
    Nothing,
    /// It gets smaller by so many bytes.
    Shrinks(u64),
}

/// Chooses what is compressed again.
pub(crate) struct Recompressor<'r> {
    vault: &'r Vault,
    params: &'r RecompressionParams,
    supervisor: &'r dyn Supervisor,
    recoder: Recoder,
    /// Segments that were looked at and stay.
    stay: Mutex<Segments>,
}

impl<'r> Recompressor<'r> {
    pub(crate) fn new(
        vault: &'r Vault,
        params: &'r RecompressionParams,
        supervisor: &'r dyn Supervisor,
    ) -> Self {
        let (recoder, stay) = (Recoder::default(), Mutex::default());
        Self { vault, params, supervisor, recoder, stay }
    }

    pub(crate) fn recoder(&self) -> &Recoder {
        &self.recoder
    }

    /// Chooses segments to compress again in one step; none if that does not pay.
    pub(crate) fn plan(
        &self,
        survey: &Survey,
        (room, avoid): (u64, &Segments),
    ) -> Result<Option<Plan>, Error> {
        let mut stay = self.stay.lock().unwrap_or_else(PoisonError::into_inner);
        let mut candidates = survey.with_content(avoid);
        candidates.retain(|name| !stay.contains(name));
        let threads = parallel::cores();
        let (mut chosen, mut content, mut all) = (Vec::new(), 0_u64, 0_u64);
        candidates.iter().for_each(|name| all += survey.live[name].content_bytes);
        'full: for names in candidates.chunks(BATCH * threads) {
            self.supervisor.check()?;
            let look = |name: &SegmentName| self.look(*name, &survey.live[name]);
            for (name, promise) in names.iter().zip(parallel::map(names, threads, look)) {
                let bytes = survey.live[name].content_bytes;
                let Promise::Shrinks(by) = promise? else {
                    stay.insert(*name);
                    all -= bytes;
                    continue;
                };
                content = content.saturating_add(bytes);
                if content > room && !chosen.is_empty() {
                    break 'full;
                }
                chosen.push((*name, by));
            }
        }
        while !chosen.is_empty() {
            self.supervisor.check()?;
            let victims = chosen.iter().map(|(name, _)| *name).collect();
            let shrinks = chosen.iter().map(|(_, by)| by).sum();
            let limits = (shrinks, self.params.least_gain);
            if let Some(plan) = survey.worth(self.vault, victims, limits)? {
                return Ok(Some(Plan { all_bytes: all, ..plan }));
            }
            chosen.truncate(chosen.len() / 2);
        }
        Ok(None)
    }

    /// Says whether a segment is worth it.
    fn look(&self, name: SegmentName, live: &Live) -> Result<Promise, Error> {
        match self.vault.level(name) {
            Ok(level) if level >= STRONG_LEVEL => Ok(Promise::Nothing),
            Ok(_) => self.sample(name, live),
            Err(error) => Err(error),
        }
        .or_else(|error| match error {
            // Who copies it finds that out too, and says it.
            Error::Damaged(_) | Error::NotFound(_) => Ok(Promise::Shrinks(0)),
            error => Err(error),
        })
    }

    fn sample(&self, name: SegmentName, live: &Live) -> Result<Promise, Error> {
        let table = self.vault.read_table(name)?;
        let frames = (0..=u16::MAX).zip(table.entries()).filter(|(number, entry)| {
            entry.kind != FrameKind::Node && entry.codec == Codec::Zstd && live.has(*number)
        });
        let frames: Vec<_> = frames.collect();
        let (mut was, mut is) = (0, 0);
        for (number, entry) in frames.iter().step_by(frames.len().div_ceil(SAMPLE).max(1)) {
            self.supervisor.check()?;
            let range = entry.range();
            let frame = self.vault.range(name, range.start, range.len())?;
            let taken = take_out(self.vault, name, &table, (*number, entry), &frame)?;
            was += taken.coded.len();
            is += self.recoder.shorter(taken).1.len();
        }
        let packed: u64 = frames.iter().map(|(_, entry)| u64::from(entry.stored)).sum();
        let saved = u64::try_from(was - is).unwrap_or(0);
        let by = packed * saved / u64::try_from(was).unwrap_or(1).max(1);
        Ok(match by * 100 >= live.content_bytes * self.params.least_percent {
            true => Promise::Shrinks(by),
            false => Promise::Nothing,
        })
    }
}
