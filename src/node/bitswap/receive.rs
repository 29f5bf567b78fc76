//! Reads what peers send: each inbound stream is a task, its messages are decoded there and hashed on other threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::AsyncReadExt;
use libp2p::swarm::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::exchange::{Inner, Link};
use super::message::{MESSAGE_BYTES_MAX, Message, MessageError, Presence, UnverifiedBlock};
use crate::node::streams::Incoming;

/// Memory is taken as bytes come, this many at a time, whatever length a message claims.
const READ_BYTES: usize = 64 * 1024;
/// Blocks of a message that have no more bytes in all are hashed at once: some 40 µs, about what another thread takes to
/// begin.
const HASHED_HERE_BYTES_MAX: usize = 64 * 1024;
/// The longest length prefix of a message that may be read.
const LENGTH_BYTES_MAX: usize = 4;

/// While others wait for memory to receive in, a message is given up that does not bring so many bytes …
const CROWDED_BYTES_MIN: usize = 16 * 1024;
/// … each time that this has passed; and if it brings none, so is its peer.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(2);
/// What a peer that was left may still send in one message: wants, no blocks.
const LEFT_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Why a stream is given up.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the peer took too long to send a message")]
    Timeout,
    #[error("the peer held memory that others waited for")]
    Hoarding,
    #[error("a peer that was left sent a message of {0} bytes")]
    Left(usize),
    #[error("the exchange is closed")]
    Closed,
}

/// Gives each inbound stream a task.
pub(super) async fn accept(
    inner: Arc<Inner>,
    mut incoming: mpsc::Receiver<Incoming>,
    stop: CancellationToken,
) {
    while let Some(Some(Incoming { peer, stream, .. })) = stop.run_until_cancelled(incoming.recv()).await {
        let link = inner.link(peer);
        let Ok(permit) = link.streams.clone().try_acquire_owned() else {
            tracing::debug!(peer.id = %peer, "reset a bitswap stream: too many are open");
            continue;
        };
        // The peer will want something: the stream for answers is opened meanwhile.
        link.serve.notify_one();
        let inner = inner.clone();
        inner.clone().tasks.spawn_short("bitswap-read", |stop| async move {
            let _permit = permit;
            let read = link.gone.run_until_cancelled(read(&inner, &link, stream));
            if let Some(Some(Err(error))) = stop.run_until_cancelled(read).await {
                tracing::debug!(peer.id = %link.peer, %error, "bitswap stream ended");
                if matches!(error, ReadError::Message(_) | ReadError::Hoarding) {
                    inner.change(Some(&link.peer), |state, now| state.sessions.misbehaved(link.peer, now));
                }
            }
        });
    }
}

/// Reads messages until the peer closes the stream.
async fn read(inner: &Arc<Inner>, link: &Arc<Link>, mut stream: Stream) -> Result<(), ReadError> {
    stream.ignore_for_keep_alive();
    while let Some(size_bytes) = read_length(inner, &mut stream).await? {
        if size_bytes > LEFT_MESSAGE_BYTES_MAX && inner.has_left(&link.peer) {
            return Err(ReadError::Left(size_bytes));
        }
        let permits = [
            reserve(&link.receiving, size_bytes).await?,
            // After that of the peer, so that a peer that waits for itself holds nothing that others need.
            reserve(&inner.receiving, size_bytes).await?,
        ];
        let body = read_body(inner, link, &mut stream, size_bytes);
        let body = tokio::time::timeout(inner.limits.message_timeout, body)
            .await
            .map_err(|_| ReadError::Timeout)??;
        take(inner, link, Message::decode(body)?, permits).await?;
    }
    Ok(())
}

/// The length of the next message, in bytes; `None` at the end of the stream.
async fn read_length(inner: &Inner, stream: &mut Stream) -> Result<Option<usize>, ReadError> {
    let mut prefix = [0; LENGTH_BYTES_MAX];
    for read_bytes in 0..LENGTH_BYTES_MAX {
        let byte = &mut prefix[read_bytes..=read_bytes];
        if read_bytes == 0 {
            // Between messages a peer may be silent as long as it likes.
            if stream.read(byte).await? == 0 {
                return Ok(None);
            }
        } else {
            let read = stream.read_exact(byte);
            tokio::time::timeout(inner.limits.stall_timeout, read)
                .await
                .map_err(|_| ReadError::Timeout)??;
        }
        if prefix[read_bytes] & 0x80 == 0 {
            let size_bytes = unsigned_varint::decode::usize(&prefix[..=read_bytes])
                .map(|(size_bytes, _)| size_bytes)
                .map_err(|_| MessageError::Malformed)?;
            return if size_bytes <= MESSAGE_BYTES_MAX {
                Ok(Some(size_bytes))
            } else {
                Err(MessageError::TooLarge(size_bytes as u64).into())
            };
        }
    }
    Err(MessageError::TooLarge(1 << (7 * LENGTH_BYTES_MAX)).into())
}

async fn reserve(semaphore: &Arc<Semaphore>, size_bytes: usize) -> Result<OwnedSemaphorePermit, ReadError> {
    let kibibytes = u32::try_from(size_bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    semaphore.clone().acquire_many_owned(kibibytes).await.map_err(|_| ReadError::Closed)
}

async fn read_body(
    inner: &Inner,
    link: &Link,
    stream: &mut Stream,
    size_bytes: usize,
) -> Result<Bytes, ReadError> {
    let mut body = inner.buffers.take(size_bytes);
    let (mut pace, mut idle) = (Pace::new(), Duration::ZERO);
    while body.filled() < size_bytes {
        let read = stream.read(body.space(size_bytes, READ_BYTES));
        let Ok(read) = tokio::time::timeout_at(pace.until, read).await else {
            idle = if pace.read_bytes == 0 { idle + CROWDED_TIMEOUT } else { Duration::ZERO };
            if pace.read_bytes < CROWDED_BYTES_MIN && inner.is_crowded() {
                return Err(if pace.read_bytes == 0 { ReadError::Hoarding } else { ReadError::Timeout });
            }
            if idle >= inner.limits.stall_timeout {
                return Err(ReadError::Timeout);
            }
            pace = Pace::new();
            continue;
        };
        let read_bytes = read?;
        if read_bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        pace.read_bytes += read_bytes;
        body.advance(read_bytes);
        link.heard(inner);
    }
    Ok(body.freeze())
}

/// What came of a message in one [`CROWDED_TIMEOUT`].
struct Pace {
    until: Instant,
    read_bytes: usize,
}

impl Pace {
    fn new() -> Self {
        Self { until: Instant::now() + CROWDED_TIMEOUT, read_bytes: 0 }
    }
}

/// Acts on a message. Blocks that are more than a few bytes are hashed on another thread while the next message is read;
/// the permits, which bound the bytes that wait for that, go along.
async fn take(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    message: Message,
    permits: [OwnedSemaphorePermit; 2],
) -> Result<(), ReadError> {
    let peer = link.peer;
    let Message { full, entries, presences, blocks } = message;
    link.heard(inner);
    let expected = inner.change(Some(&peer), |state, now| {
        state.sessions.heard(&peer, now);
        state.ledgers.receive(peer, full, entries);
        for presence in presences {
            match presence {
                Presence::Have(cid) => state.sessions.have(peer, cid.hash(), now),
                Presence::DontHave(cid) => state.sessions.dont_have(peer, cid.hash(), now),
            }
        }
        if state.ledgers.owes(&peer) {
            link.serve.notify_one();
        }
        state.sessions.expects_from(&peer)
    });
    if blocks.is_empty() {
        return Ok(());
    }
    if !expected {
        let wasted = blocks.iter().map(|block| block.size_bytes() as u64).sum();
        inner.counters.bytes_wasted.fetch_add(wasted, Ordering::Relaxed);
        return Ok(());
    }
    if blocks.iter().map(UnverifiedBlock::size_bytes).sum::<usize>() <= HASHED_HERE_BYTES_MAX {
        inner.deliver(&peer, blocks.into_iter().map(UnverifiedBlock::identify).collect());
        return Ok(());
    }
    let turn = inner.hashing.clone().acquire_owned().await.map_err(|_| ReadError::Closed)?;
    let inner = inner.clone();
    tokio::task::spawn_blocking(move || {
        let blocks = blocks.into_iter().map(UnverifiedBlock::identify).collect();
        inner.deliver(&peer, blocks);
        drop((turn, permits));
    });
    Ok(())
}
