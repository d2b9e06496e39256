//! One guest: QMP, pause and resume, capture, start. It never sees a chunk.
