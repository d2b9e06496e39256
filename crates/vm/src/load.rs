//! Loads a saved memory and device state into a QEMU that was started with
//! `-S -incoming defer`.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fd::AsFd;
use serde_json::json;

use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::inventory::PREFIX;

/// How long QEMU may take after the last byte.
const FINISH_LIMIT: Duration = Duration::from_secs(60);

/// Feeds a stream to a waiting QEMU. `feed` writes all of it. When this returns
/// the guest stands still in the saved state.
pub fn load<E>(
    guest: &mut Guest,
    cancel: &Cancel,
    feed: impl FnOnce(&mut dyn Write) -> std::result::Result<(), E>,
) -> std::result::Result<(), E>
where
    E: From<Error>,
{
    let stream = open(guest).map_err(E::from)?;
    let mut stream = Cancellable { stream, cancel };
    let fed = feed(&mut stream);
    // QEMU loads until the stream ends.
    drop(stream);
    let finished = finish(guest);
    match (fed, finished) {
        // QEMU's own reason explains a write that failed.
        (Err(_), Err(error @ Error::Migration { .. })) if !cancel.is_cancelled() => {
            Err(error.into())
        }
        (Err(error), _) => Err(error),
        (Ok(()), finished) => finished.map_err(E::from),
    }
}

fn open(guest: &mut Guest) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::system("make a pair of sockets"))?;
    let name = format!("{PREFIX}load");
    guest.qmp.pass_descriptor(&name, theirs.as_fd())?;
    guest.qmp.execute("migrate-incoming", json!({"uri": format!("fd:{name}")}))?;
    Ok(ours)
}

fn finish(guest: &mut Guest) -> Result<()> {
    let deadline = Instant::now() + FINISH_LIMIT;
    loop {
        let migration = match guest.qmp.execute("query-migrate", json!({})) {
            // A QEMU that cannot load exits.
            Err(Error::Gone { .. }) => {
                let description = "it ended; its log says why".to_owned();
                return Err(Error::Migration { what: "load the memory", description });
            }
            other => other?,
        };
        match migration["status"].as_str().unwrap_or("none") {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let description =
                    migration["error-desc"].as_str().unwrap_or("it does not say why").to_owned();
                return Err(Error::Migration { what: "load the memory", description });
            }
            _ if Instant::now() > deadline => {
                return Err(Error::Timeout {
                    what: "load its memory".into(),
                    waited: FINISH_LIMIT,
                });
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A stream whose writes end when the caller cancels.
struct Cancellable<'c> {
    stream: UnixStream,
    cancel: &'c Cancel,
}

impl Write for Cancellable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
