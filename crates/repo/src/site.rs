//! From a place to a store that is fit to be used.
//!
//! ```text
//! a folder   LocalStore
//! a bucket   Shared ─► Retry ─► Throttle ─► Bucket, once it has stood the probe
//! ```

use crate::Error;
use crate::location::{Location, S3Access};
use crate::nearby::{CacheParams, Nearby};
use crate::store::{
    Bucket, Budget, LocalStore, Pulse, Retry, Shared, Store, Throttle, Verdict, probe,
};

/// A place, and what it takes to get there.
#[derive(Debug, Clone)]
pub struct Site {
    /// Where it is.
    pub location: Location,
    /// How to reach its S3 server, if it is a bucket.
    pub s3: Option<S3Access>,
    /// Where parts of the segments of a bucket are kept.
    pub cache: Option<CacheParams>,
}

impl Site {
    /// Takes the place as it is.
    pub(crate) fn open(&self) -> Result<Box<dyn Store>, Error> {
        match &self.location {
            Location::Folder(folder) => Ok(Box::new(LocalStore::open(folder))),
            Location::Bucket(_) => self.bucket(),
        }
    }

    /// Returns what keeps parts of segments on this machine. A folder needs none.
    pub(crate) fn nearby(&self) -> Option<Nearby> {
        let params = self.cache.as_ref().filter(|params| params.limit > 0)?;
        matches!(self.location, Location::Bucket(_)).then(|| Nearby::new(params.clone()))
    }

    /// Takes a place that holds nothing but the leftovers of an interrupted
    /// call of this function; a folder is made if it is not there.
    pub(crate) fn create(&self) -> Result<Box<dyn Store>, Error> {
        match &self.location {
            Location::Folder(folder) => Ok(Box::new(LocalStore::create(folder)?)),
            Location::Bucket(_) => {
                let store = self.bucket()?;
                let is_leftover = |key: &str| key.starts_with("keys/") || key.starts_with("probe/");
                match store.list("")?.iter().all(|listed| is_leftover(&listed.key)) {
                    true => Ok(store),
                    false => Err(Error::Occupied(self.location.to_path())),
                }
            }
        }
    }

    fn bucket(&self) -> Result<Box<dyn Store>, Error> {
        let (Location::Bucket(name), Some(access)) = (&self.location, &self.s3) else {
            return Err(Error::Key(format!("there is no access key for {}", self.location)));
        };
        let pulse = Pulse { beat: access.beat, patience: access.patience };
        let throttled = Throttle::new(Bucket::new(name, access)?, access.bytes_per_second);
        let objects = Retry::new(throttled, Budget::default());
        match probe(&objects)? {
            Verdict::Sound | Verdict::ReadOnly => Ok(Box::new(Shared::new(objects, pulse))),
            Verdict::Unsound(seen) => {
                Err(Error::UnsafeStore { place: self.location.to_string(), seen })
            }
        }
    }
}
