//! The keys that a repository's master key gives, and the ids made with them.
//!
//! Every kind of id has a key of its own, so that bytes of one kind can never
//! pass for another. This file reads and writes no key slots.

use std::fmt;

use tintype_types::{BLOCK_SIZE, RepositoryId};
use zeroize::Zeroize;

use crate::blocks::BlockHash;
use crate::frame::MAX_BLOCKS;
use crate::pointer::{BLOCK_ID_LEN, BlockId, FrameId, NodeId, SegmentName};
use crate::seal::Sealer;

/// The keys of an open repository.
pub(crate) struct Keys {
    block: BlockHash,
    frame: [u8; 32],
    node: [u8; 32],
    record: [u8; 32],
    /// Under which content is sealed; `None` if nothing is hidden.
    seal: Option<[u8; 32]>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Derives all keys from the 256-bit master key.
    pub(crate) fn derive(master: &[u8; 32], sealed: bool) -> Self {
        let key = |context| blake3::derive_key(context, master);
        Self {
            block: BlockHash::new(&key("tintype 1 block sums"), key("tintype 1 block id")),
            frame: key("tintype 1 frame id"),
            node: key("tintype 1 node id"),
            record: key("tintype 1 record tag"),
            seal: sealed.then(|| key("tintype 1 seal")),
        }
    }

    /// Returns the id of a block.
    pub(crate) fn block_id(&self, block: &[u8; BLOCK_SIZE]) -> BlockId {
        BlockId(shorten(&self.block.of(block)))
    }

    /// Returns the ids of the blocks that bytes consist of.
    pub(crate) fn ids_of(&self, bytes: &[u8]) -> Vec<BlockId> {
        bytes.as_chunks().0.iter().map(|block| self.block_id(block)).collect()
    }

    /// Returns the id of a frame that holds these blocks in this order.
    pub(crate) fn frame_id(&self, blocks: &[BlockId]) -> FrameId {
        let mut hasher = blake3::Hasher::new_keyed(&self.frame);
        // Many short pieces cost more than the hash of them all.
        for blocks in blocks.chunks(MAX_BLOCKS) {
            let mut ids = [0; MAX_BLOCKS * BLOCK_ID_LEN];
            for (id, block) in ids.as_chunks_mut::<BLOCK_ID_LEN>().0.iter_mut().zip(blocks) {
                *id = block.0;
            }
            hasher.update(&ids[..blocks.len() * BLOCK_ID_LEN]);
        }
        FrameId(shorten(hasher.finalize().as_bytes()))
    }

    /// Returns the id of a node or blob chunk; its first byte says which.
    pub(crate) fn node_id(&self, kind: u8, bytes: &[u8]) -> NodeId {
        let mut hasher = blake3::Hasher::new_keyed(&self.node);
        hasher.update(&[kind]).update(bytes);
        NodeId(*hasher.finalize().as_bytes())
    }

    /// Returns the tag that authenticates a record under its object key.
    pub(crate) fn record_tag(&self, repository: RepositoryId, key: &str, bytes: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.record);
        hasher.update(repository.as_bytes());
        hasher.update(&u64::try_from(key.len()).expect("a key is short").to_le_bytes());
        hasher.update(key.as_bytes()).update(bytes);
        *hasher.finalize().as_bytes()
    }
}

impl Keys {
    /// Whether the repository hides its content.
    pub(crate) fn hides(&self) -> bool {
        self.seal.is_some()
    }

    /// Returns what seals the frames of a segment; `None` if nothing is hidden.
    pub(crate) fn segment_sealer(&self, name: SegmentName) -> Option<Sealer> {
        let mut bound = b"segment".to_vec();
        name.encode(&mut bound);
        self.sealer(&bound)
    }

    /// Returns what seals the record of a session; `None` if nothing is hidden.
    pub(crate) fn record_sealer(&self, key: &str) -> Option<Sealer> {
        self.sealer(&[b"record", key.as_bytes()].concat())
    }

    fn sealer(&self, bound: &[u8]) -> Option<Sealer> {
        let key = self.seal.as_ref()?;
        Some(Sealer::new(blake3::keyed_hash(key, bound).as_bytes()))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        for key in [&mut self.frame, &mut self.node, &mut self.record] {
            key.zeroize();
        }
        self.seal.zeroize();
    }
}

/// Returns what proves, without revealing it, that a master key belongs to a
/// repository with this id that does or does not hide its content.
pub(crate) fn commitment(master: &[u8; 32], repository: RepositoryId, hides: bool) -> [u8; 32] {
    let key = blake3::derive_key("tintype 1 master key commitment", master);
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(repository.as_bytes()).update(&[u8::from(hides)]);
    *hasher.finalize().as_bytes()
}

fn shorten<const N: usize>(hash: &[u8; 32]) -> [u8; N] {
    *hash.first_chunk().expect("a hash has 32 bytes, and no id has more")
}
