//! Authenticated encryption: AES-256-GCM, with keys that make it impossible to
//! use a nonce twice.
//!
//! Every segment has a key of its own, derived from its random name; in it a
//! frame's number is the nonce. Every record has a random nonce under the key
//! of its session, and every key slot one under the key that wraps it.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::wire::Malformed;

/// Bytes that sealing adds.
pub(crate) const TAG_LEN: usize = 16;
/// Bytes of a random nonce.
pub(crate) const NONCE_LEN: usize = 12;

/// Seals and opens under one key.
pub(crate) struct Sealer(LessSafeKey);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Seals `bytes[from..]` in place and appends the tag. The caller sees to
    /// it that the nonce is used once.
    pub(crate) fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        bound: &[u8],
        bytes: &mut Vec<u8>,
        from: usize,
    ) {
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound),
                &mut bytes[from..],
            )
            .expect("AES-GCM takes more than a segment");
        bytes.extend_from_slice(tag.as_ref());
    }

    /// Opens in place what `seal` made for the same nonce and bound bytes.
    pub(crate) fn open<'b>(
        &self,
        nonce: [u8; NONCE_LEN],
        bound: &[u8],
        sealed: &'b mut [u8],
    ) -> Result<&'b [u8], Malformed> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        match self.0.open_in_place(nonce, Aad::from(bound), sealed) {
            Ok(opened) => Ok(opened),
            Err(_) => Err(Malformed("its seal is broken, or of another key")),
        }
    }

    /// Seals under a random nonce, which is put in front.
    pub(crate) fn seal_random(&self, bound: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).expect("the kernel always has random bytes");
        let mut out = nonce.to_vec();
        out.extend_from_slice(bytes);
        self.seal(nonce, bound, &mut out, NONCE_LEN);
        out
    }

    /// Opens what `seal_random` made for the same bound bytes.
    pub(crate) fn open_random(&self, bound: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Malformed> {
        let (nonce, sealed) = sealed.split_first_chunk().ok_or(Malformed("it ends early"))?;
        self.open(*nonce, bound, &mut sealed.to_vec()).map(<[u8]>::to_vec)
    }
}

/// Returns the nonce of a frame in its segment.
pub(crate) fn frame_nonce(number: u16) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..2].copy_from_slice(&number.to_le_bytes());
    nonce
}
