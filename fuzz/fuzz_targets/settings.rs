//! Any bytes as the settings and the key slots of a repository.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tintype_repo::fuzzing::settings(data));
