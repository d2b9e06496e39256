//! A read buffer for a parser: filled at its end, consumed at its start.
//!
//! It moves the few bytes of an incomplete item to the front instead of the
//! pages. It does no I/O: the caller reads into [`Window::spare`].

use crate::MAX_STEP;

/// A buffer between a reader and a [`crate::Parser`].
///
/// ```
/// # use tintype_stream::{Limits, Parser, Step, Window};
/// # fn read(_: &mut [u8]) -> usize { 0 }
/// # fn capture() -> Result<(), tintype_stream::Error> {
/// let mut parser = Parser::new(Limits::default());
/// let mut window = Window::new(1 << 20);
/// loop {
///     let count = read(window.spare());
///     if count == 0 {
///         break;
///     }
///     window.filled(count);
///     loop {
///         let consumed = match parser.next(window.bytes())? {
///             Step::Event { consumed, event } => {
///                 let _ = event;
///                 consumed
///             }
///             Step::NeedMore { consumed, .. } => {
///                 window.consume(consumed);
///                 break;
///             }
///         };
///         window.consume(consumed);
///     }
/// }
/// let state = parser.finish()?;
/// # let _ = state; Ok(()) }
/// ```
#[derive(Debug)]
pub struct Window {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Window {
    /// Makes a buffer of `capacity` bytes, and of no less than [`MAX_STEP`].
    pub fn new(capacity: usize) -> Self {
        Self { buffer: vec![0; capacity.max(MAX_STEP)].into(), start: 0, end: 0 }
    }

    /// Returns the bytes that were filled and not consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Returns the place to read into; never empty when a parser asked for more.
    pub fn spare(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.buffer[self.end..]
    }

    /// Says that `count` bytes were read into [`Self::spare`]; more than there
    /// was room for counts as all of it.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// Drops `count` bytes from the front, or all if there are fewer.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }
}
