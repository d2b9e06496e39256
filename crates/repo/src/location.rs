//! Where a repository is, and what it takes to get there.

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::Error;

/// How the address of a bucket begins.
const SCHEME: &str = "s3://";

/// The place of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder.
    Folder(PathBuf),
    /// A bucket of an S3 server, or a part of one.
    Bucket(BucketName),
}

/// `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketName {
    pub(crate) bucket: String,
    /// Without slashes around it; may be empty.
    pub(crate) prefix: String,
}

impl Location {
    /// Reads a folder's path, or `s3://BUCKET/PREFIX`.
    pub fn parse(place: &Path) -> Result<Self, Error> {
        let Some(text) = place.to_str().filter(|text| text.contains("://")) else {
            return Ok(Self::Folder(place.to_owned()));
        };
        let refused = |why: &str| Err(Error::Invalid(format!("{text} {why}")));
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return refused("is neither a folder nor s3://BUCKET/PREFIX");
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let in_bucket = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-".contains(&c);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(in_bucket) {
            return refused("names no bucket: 3 to 63 of a-z, 0-9, `.`, `-`");
        }
        let in_prefix = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        let is_part = |part: &str| !["", ".", ".."].contains(&part) && part.bytes().all(in_prefix);
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return refused("has a prefix with other characters than a-z, A-Z, 0-9, `.`, `_`, `-`");
        }
        Ok(Self::Bucket(BucketName { bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }

    /// Returns what `parse` reads.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.clone(),
            Self::Bucket(name) => PathBuf::from(name.to_string()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "{SCHEME}{}{slash}{}", self.bucket, self.prefix)
    }
}

/// How to reach an S3 server.
#[derive(Clone)]
#[non_exhaustive]
pub struct S3Access {
    /// The access key's id.
    pub key_id: String,
    /// The secret access key.
    pub secret: Zeroizing<String>,
    /// The token of a key that is for a short time only.
    pub session_token: Option<Zeroizing<String>>,
    /// The region of the bucket.
    pub region: String,
    /// The server, `https://HOST` or `http://HOST:PORT`; that of AWS if `None`.
    pub endpoint: Option<String>,
    /// The bytes that may go each way in a second; no limit if `None`.
    pub bytes_per_second: Option<NonZeroU64>,
    /// From one heartbeat of a session to the next.
    pub beat: Duration,
    /// How long a session may be silent before others end it.
    pub patience: Duration,
}

impl S3Access {
    /// Uses a key with everything else as it usually is.
    pub fn new(key_id: &str, secret: &str) -> Self {
        Self {
            key_id: key_id.to_owned(),
            secret: Zeroizing::new(secret.to_owned()),
            session_token: None,
            region: "us-east-1".to_owned(),
            endpoint: None,
            bytes_per_second: None,
            beat: Duration::from_secs(10),
            patience: Duration::from_secs(180),
        }
    }
}

impl fmt::Debug for S3Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Access")
            .field("key_id", &self.key_id)
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let location = Location::parse(Path::new(text)).unwrap();
            let expected = match expected {
                None => Location::Folder(PathBuf::from(text)),
                Some((bucket, prefix)) => Location::Bucket(BucketName {
                    bucket: bucket.to_owned(),
                    prefix: prefix.to_owned(),
                }),
            };
            assert_eq!(location, expected, "{text}");
            assert_eq!(Location::parse(&location.to_path()).unwrap(), location);
        };
        check("/a/b", None);
        check("s3/bucket", None);
        check("s3://bucket", Some(("bucket", "")));
        check("s3://bucket/", Some(("bucket", "")));
        check("s3://my.bucket-1/a/B_2", Some(("my.bucket-1", "a/B_2")));
    }

    #[test]
    fn what_names_no_place_is_refused() {
        for text in [
            "http://host/bucket",
            "s3://",
            "s3:///prefix",
            "s3://Bucket/a",
            "s3://bucket//a",
            "s3://bucket/a/../b",
            "s3://bucket/a b",
        ] {
            let error = Location::parse(Path::new(text)).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Invalid, "{text}");
        }
    }
}
