//! Any bytes as the record of a snapshot.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tintype_repo::fuzzing::record(data));
