//! Reads a blob while it is being filled.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio::time::timeout;

use super::super::MirrorError;
use super::fill::{Fill, Stage};
use super::supply::Supply;

/// How long a range that lies ahead of the write position waits for it before it is fetched by itself.
const AHEAD_WAIT: Duration = Duration::from_secs(5);
/// A range that begins no further ahead than this waits for as long as the fill goes on.
const AHEAD_BYTES_MIN: u64 = 8 << 20;
/// The most that is read at a time.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Gets nothing that came from peers before it was held to the digest, unless that takes too long.
    Client,
    /// Holds it to the digest itself.
    Peer,
}

struct Reader {
    fill: Arc<Fill>,
    supply: Supply,
    whom: For,
    /// Set with the first byte.
    generation: Option<u32>,
    position: u64,
    end: u64,
    /// Bytes of its own, for what lies far ahead.
    apart: Option<BoxStream<'static, Result<Bytes, MirrorError>>>,
}

/// Streams `range` of what is being filled, as it comes. The last byte of the blob is withheld until its digest matched;
/// if it does not, or the fill fails, the stream ends with an error.
pub(super) fn follow(
    fill: Arc<Fill>,
    supply: Supply,
    range: Range<u64>,
    whom: For,
) -> BoxStream<'static, Result<Bytes, MirrorError>> {
    let reader =
        Reader { fill, supply, whom, generation: None, position: range.start, end: range.end, apart: None };
    stream::try_unfold(reader, |mut reader| async move {
        let next = reader.next().await?;
        Ok::<_, MirrorError>(next.map(|bytes| (bytes, reader)))
    })
    .boxed()
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, MirrorError> {
        if self.position >= self.end {
            return Ok(None);
        }
        if let Some(apart) = &mut self.apart {
            let Some(mut bytes) = apart.try_next().await? else {
                let (digest, known) = (self.fill.digest, self.end);
                return Err(MirrorError::Short { digest, known, received: self.position });
            };
            let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
            bytes.truncate(left);
            self.position += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        let waits_for = self.fill.reached(self.position);
        let state = match timeout(AHEAD_WAIT, waits_for).await {
            Ok(state) => state,
            Err(_) if self.is_far_ahead() => {
                self.apart =
                    Some(open_apart(&self.fill, self.supply.clone(), self.position, self.end).await?);
                return Box::pin(self.next()).await;
            }
            Err(_) => self.fill.reached(self.position).await,
        };
        let state = if self.whom == For::Client && self.generation.is_none() {
            self.fill.cleared().await;
            let state = self.fill.reached(self.position).await;
            // Who has no byte of it yet can go elsewhere.
            if let Stage::Failed(error) = state.stage {
                return Err(MirrorError::Fill(error));
            }
            state
        } else {
            state
        };
        if *self.generation.get_or_insert(state.generation) != state.generation {
            // What this reader has was wrong, and is gone.
            return Err(MirrorError::Closed);
        }
        let readable = state.readable_bytes();
        if readable <= self.position {
            return Err(match state.stage {
                Stage::Failed(error) => MirrorError::Fill(error),
                Stage::Absent | Stage::Running | Stage::Verified | Stage::Committed => MirrorError::Closed,
            });
        }
        let bytes_max = readable.min(self.end) - self.position;
        let bytes = self.fill.read_at(self.position, bytes_max.min(READ_BYTES_MAX)).await?;
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    fn is_far_ahead(&self) -> bool {
        self.position > self.fill.state().received_bytes + AHEAD_BYTES_MIN
    }
}

async fn open_apart(
    fill: &Fill,
    supply: Supply,
    from: u64,
    to: u64,
) -> Result<BoxStream<'static, Result<Bytes, MirrorError>>, MirrorError> {
    let digest = supply.digest;
    match supply.part(from, Some(to)).await? {
        Some(opened) if opened.at == from => {
            let pulled_bytes = fill.pulled_bytes(&opened.from);
            let count = move |bytes: &Bytes| {
                pulled_bytes.inc_by(bytes.len() as u64);
            };
            Ok(opened.bytes.inspect_ok(count).boxed())
        }
        Some(opened) => Err(MirrorError::Short { digest, known: from, received: opened.at }),
        None => Err(MirrorError::Closed),
    }
}
