//! Any bytes as the table and the trailer of a segment.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tintype_repo::fuzzing::segment(data));
