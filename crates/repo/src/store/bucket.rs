//! Objects in a bucket of an S3 server, under a prefix.
//!
//! Needs of S3: single puts with `If-None-Match: *`, gets of ranges, listings,
//! deletions. Nothing is tried twice here; that is the work of `Retry`, and so
//! is finding out what became of a put whose answer was lost.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, RetryConfig,
};
use tokio::runtime::Runtime;

use super::{Listed, Objects, Put, is_key};
use crate::Error;
use crate::location::{BucketName, S3Access};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request may take: a segment at 300 KiB a second.
const REQUEST: Duration = Duration::from_secs(60);
/// More objects than a repository has: 64 TiB of segments.
const MAX_LISTED: usize = 4 << 20;

/// Objects under a prefix of a bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    client: AmazonS3,
    /// Drives the requests; each caller waits for its own.
    runtime: Runtime,
    name: BucketName,
    prefix: Path,
}

impl Bucket {
    /// Prepares requests; none is sent yet.
    pub(crate) fn new(name: &BucketName, access: &S3Access) -> Result<Self, Error> {
        let refused = |error: object_store::Error| Error::Invalid(format!("{name}: {error}"));
        // Another part of the process may have chosen one: any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = builder(name, access).build().map_err(refused)?;
        let prefix = Path::parse(&name.prefix).map_err(|error| refused(error.into()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("repo-s3")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::io("start threads for", &PathBuf::from(name.to_string()), error)
            })?;
        Ok(Self { client, runtime, name: name.clone(), prefix })
    }

    fn path(&self, key: &str) -> Path {
        debug_assert!(is_key(key), "{key}");
        key.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), Path::join)
    }

    fn error(&self, operation: &'static str, key: &str, error: object_store::Error) -> Error {
        let source = match class_of(&error) {
            ErrorKind::NotFound => io::Error::new(ErrorKind::NotFound, "there is no such bucket"),
            class => io::Error::new(class, error),
        };
        Error::Io { operation, path: PathBuf::from(format!("{}/{key}", self.name)), source }
    }

    /// Like `error`, for an object that may not exist.
    fn object_error(
        &self,
        operation: &'static str,
        key: &str,
        error: object_store::Error,
    ) -> Error {
        match error {
            object_store::Error::NotFound { .. } => Error::NotFound(key.to_owned()),
            error => self.error(operation, key, error),
        }
    }

    /// Reads an answer of at most `max` bytes, and one byte more if there is.
    async fn body(answer: GetResult, max: u64) -> object_store::Result<Vec<u8>> {
        let mut stream = answer.into_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.try_next().await? {
            bytes.extend_from_slice(&chunk);
            if u64::try_from(bytes.len()).is_ok_and(|len| len > max) {
                break;
            }
        }
        Ok(bytes)
    }

    /// Checks that what was put is what is there.
    fn read_back(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let other = |what: &str| Error::Io {
            operation: "put",
            path: PathBuf::from(format!("{}/{key}", self.name)),
            source: io::Error::new(ErrorKind::InvalidData, what.to_owned()),
        };
        match self.get(key, u64::try_from(bytes.len()).expect("a usize fits in 64 bits")) {
            Ok(read) if read == bytes => Ok(()),
            Ok(_) | Err(Error::Damaged(_)) => Err(other("the store gives back other bytes")),
            Err(Error::NotFound(_)) => Err(other("the store has accepted it and does not have it")),
            Err(error) => Err(error),
        }
    }

    /// Says that a range ends behind the object, or what else is the matter.
    fn range_error(&self, key: &str, end: u64, error: object_store::Error) -> Error {
        match self.size(key) {
            Ok(Some(size)) if size < end => Error::damaged(key, None, "it ends early"),
            _ => self.object_error("get", key, error),
        }
    }
}

fn builder(name: &BucketName, access: &S3Access) -> AmazonS3Builder {
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT)
        .with_timeout(REQUEST)
        .with_allow_http(access.endpoint.as_ref().is_some_and(|url| url.starts_with("http://")));
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&name.bucket)
        .with_access_key_id(&access.key_id)
        .with_secret_access_key(access.secret.as_str())
        .with_region(&access.region)
        .with_client_options(client)
        .with_retry(retry)
        .with_disable_bulk_delete(true);
    if let Some(token) = &access.session_token {
        builder = builder.with_token(token.as_str());
    }
    match &access.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    }
}

impl Objects for Bucket {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        let path = self.path(key);
        let payload = PutPayload::from(bytes.to_vec());
        let put = self.client.put_opts(&path, payload, PutOptions::from(PutMode::Create));
        match self.runtime.block_on(put) {
            Ok(_) => self.read_back(key, bytes).map(|()| Put::Created),
            Err(error) if is_taken(&error) => Ok(Put::Existed),
            Err(error) => Err(self.error("put", key, error)),
        }
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        let path = self.path(key);
        let read = async { Self::body(self.client.get(&path).await?, max).await };
        let bytes =
            self.runtime.block_on(read).map_err(|error| self.object_error("get", key, error))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > max) {
            return Err(Error::damaged(key, None, "it is larger than such an object can be"));
        }
        Ok(bytes)
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let path = self.path(key);
        let max = u64::try_from(len).expect("a usize fits in 64 bits");
        let end = offset.saturating_add(max);
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(offset..end)));
        let read = async { Self::body(self.client.get_opts(&path, options).await?, max).await };
        let bytes =
            self.runtime.block_on(read).map_err(|error| self.range_error(key, end, error))?;
        if bytes.len() == len { Ok(bytes) } else { Err(Error::damaged(key, None, "it ends early")) }
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.runtime.block_on(self.client.head(&self.path(key))) {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("inspect", key, error)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        // The library lists whole folders.
        let folder = self.path(super::local::folder_of(prefix));
        let under = if self.prefix.is_root() { String::new() } else { format!("{}/", self.prefix) };
        let mut found = Vec::new();
        let list = async {
            let mut stream = self.client.list(Some(&folder));
            while let Some(object) = stream.try_next().await? {
                let key = object.location.as_ref().strip_prefix(&under);
                if let Some(key) = key.filter(|key| key.starts_with(prefix) && is_key(key)) {
                    found.push(Listed { key: key.to_owned(), size: object.size });
                }
                if found.len() > MAX_LISTED {
                    break;
                }
            }
            Ok(())
        };
        self.runtime.block_on(list).map_err(|error| self.error("list", prefix, error))?;
        if found.len() > MAX_LISTED {
            return Err(Error::damaged(prefix, None, "there are more objects than can be"));
        }
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(key);
        let put = self.client.put(&path, PutPayload::from(bytes.to_vec()));
        self.runtime.block_on(put).map_err(|error| self.error("replace", key, error))?;
        self.read_back(key, bytes)
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        match self.runtime.block_on(self.client.delete(&self.path(key))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("delete", key, error)),
        }
    }
}

/// Whether a put was refused for its condition. S3 also answers 409 when two
/// requests meet, and then nothing is known of the object.
fn is_taken(error: &object_store::Error) -> bool {
    use object_store::Error::{AlreadyExists, NotModified, Precondition};
    let AlreadyExists { source, .. } = error else { return false };
    matches!(source.downcast_ref(), Some(Precondition { .. } | NotModified { .. }))
}

/// Sorts errors into those that another attempt may end and those that it
/// will not. The library has the status of an answer in its text only.
fn class_of(error: &object_store::Error) -> ErrorKind {
    use object_store::Error::{
        AlreadyExists, Generic, NotFound, PermissionDenied, Unauthenticated,
    };
    match error {
        NotFound { .. } => ErrorKind::NotFound,
        PermissionDenied { .. } | Unauthenticated { .. } => ErrorKind::PermissionDenied,
        AlreadyExists { .. } => ErrorKind::ResourceBusy,
        Generic { source, .. } => {
            let text = source.to_string();
            let status = text.split_once("status code: ").map(|(_, rest)| rest.get(..3));
            match status.flatten() {
                Some("408" | "429") => ErrorKind::ResourceBusy,
                Some("507") => ErrorKind::StorageFull,
                Some(status) if status.starts_with('4') => ErrorKind::InvalidInput,
                Some(_) => ErrorKind::ResourceBusy,
                // No answer, or half of one.
                None => ErrorKind::ConnectionAborted,
            }
        }
        _ => ErrorKind::Other,
    }
}
