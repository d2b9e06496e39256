//! Any bytes as the hooks of a session.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tintype_repo::fuzzing::hooks(data));
