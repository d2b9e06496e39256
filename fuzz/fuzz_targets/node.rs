//! Any bytes as a node of an image map.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tintype_repo::fuzzing::node(data));
