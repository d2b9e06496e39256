//! Proves that the same parts give the same guests: builds each twice, in a row and
//! in different folders, and compares every byte. Fetching packages and installing
//! them into the Debian archive is not repeated.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::cache::Cache;
use super::{Parts, debian, tiny};
use crate::failure::Failure;

/// Builds both guests twice, outside the places where tests look for them.
pub(super) fn check(cache: &Cache, parts: &Parts<'_>) -> Result<(), Failure> {
    check_one("tiny", cache, |target| tiny::build(target, parts))?;
    let packages = debian::ensure_packages(cache, parts.apt)?;
    check_one("debian", cache, |target| debian::build(target, parts, &packages))
}

fn check_one(
    name: &str,
    cache: &Cache,
    build: impl Fn(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (first, second) = (cache.scratch()?, cache.scratch()?);
    build(first.path())?;
    build(second.path())?;
    let (first, second) = (hashes(first.path())?, hashes(second.path())?);
    for (file, hash) in &first {
        println!("{hash} {name}/{file}");
    }
    if first == second {
        return Ok(());
    }
    let differ = |file: &&String| first.get(*file) != second.get(*file);
    let files: Vec<&String> = first.keys().filter(differ).collect();
    Err(Failure::Other(format!("two builds of {name} differ in {files:?}")))
}

fn hashes(folder: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let entries = folder.read_dir().map_err(Failure::file("read", folder))?;
    entries
        .flatten()
        .map(|entry| {
            let path = entry.path();
            let bytes = fs::read(&path).map_err(Failure::file("read", &path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((name, blake3::hash(&bytes).to_string()))
        })
        .collect()
}
