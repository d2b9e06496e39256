//! Any bytes as the names of objects and places.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tintype_repo::fuzzing::names(data));
