//! Writes to peers: two tasks for each, one for what we want and one for what it wants, each with a stream of its own,
//! so that a block on its way never delays a want.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join, pending, select};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::swarm::Stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::exchange::{Inner, Link, now, protocols, version};
use super::ledger::{Outcome, Task};
use super::message::{Outgoing, Presence, Version, WantType};
use crate::node::streams::OpenError;
use crate::store::{Blockstore, off_thread};

/// Wantlist entries in one message.
const ENTRIES_PER_MESSAGE: usize = 512;
/// Wants of a peer that are looked up for one message.
const TASKS_PER_BATCH: usize = 128;
/// Up to this size a block is sent instead of HAVE.
const INSTEAD_OF_HAVE_BYTES_MAX: usize = 1024;
/// Attempts to open a stream before a peer is taken for one that does not speak the protocol.
const OPEN_ATTEMPTS: u32 = 3;
const OPEN_PAUSE: Duration = Duration::from_secs(1);

struct Outbound {
    stream: Stream,
    version: Version,
}

/// Sends what we want, and what we want no more, as it changes.
pub(super) async fn wants(inner: Arc<Inner>, link: Arc<Link>, stop: CancellationToken) {
    let run = async {
        while let Some(mut outbound) = open(&inner, &link).await {
            let opened = now();
            if let Err(error) = send_wants(&inner, &link, &mut outbound).await {
                tracing::debug!(peer.id = %link.peer, %error, "bitswap stream for wants broke");
            }
            let unsaid = inner.change(Some(&link.peer), |state, _| state.sessions.repost(&link.peer));
            if !unsaid {
                // Some reset what is idle for some seconds; it is opened again when there is something to say.
                link.wants.notified().await;
            } else if now().saturating_duration_since(opened) < OPEN_PAUSE {
                tokio::time::sleep(OPEN_PAUSE).await; // A peer that resets at once is not to keep us busy.
            }
        }
        // It may still want something of us.
        inner.change(Some(&link.peer), |state, now| state.sessions.disconnected(&link.peer, now));
    };
    stop.run_until_cancelled(link.gone.run_until_cancelled(run)).await;
}

async fn send_wants(inner: &Arc<Inner>, link: &Link, outbound: &mut Outbound) -> io::Result<()> {
    loop {
        let (full, entries) = inner.change(Some(&link.peer), |state, _| {
            state.sessions.take_entries(&link.peer, ENTRIES_PER_MESSAGE)
        });
        if entries.is_empty() {
            // A reset is noticed at once, not when the next want is lost on it.
            match select(pin!(link.wants.notified()), pin!(outbound.broken())).await {
                Either::Left(_) => {
                    // Who was woken together with the one that wants this has yet to say what it wants.
                    tokio::task::yield_now().await;
                    continue;
                }
                Either::Right((error, _)) => return Err(error),
            }
        }
        let message = Outgoing { full, entries, ..Outgoing::default() };
        outbound.write(message.encode(outbound.version), inner.limits.stall_timeout).await?;
    }
}

/// Answers the peer's wants, as long as there are any.
pub(super) async fn serve(inner: Arc<Inner>, link: Arc<Link>, stop: CancellationToken) {
    let run = async {
        let mut unsent = VecDeque::new();
        loop {
            if unsent.is_empty() {
                link.serve.notified().await;
            }
            let again = !unsent.is_empty();
            let sent = match open(&inner, &link).await {
                Some(mut outbound) => send_answers(&inner, &link, &mut outbound, &mut unsent).await,
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            // Streams that were idle for long are reset by some; a second failure is the peer's.
            if let Err(error) = sent
                && (again || unsent.is_empty())
            {
                tracing::debug!(peer.id = %link.peer, %error, "cannot answer a peer's wants");
                unsent.clear();
                inner.change(Some(&link.peer), |state, _| state.ledgers.forget(&link.peer));
            }
        }
    };
    stop.run_until_cancelled(link.gone.run_until_cancelled(run)).await;
}

/// Loads a message while the one before it is written. Ends well when the peer resets the idle stream; what could not
/// be written stays in `unsent`.
async fn send_answers(
    inner: &Arc<Inner>,
    link: &Link,
    outbound: &mut Outbound,
    unsent: &mut VecDeque<Batch>,
) -> io::Result<()> {
    loop {
        let Some(Batch { message, .. }) = unsent.front() else {
            match load(inner, link, Patience::Waits).await? {
                Some(batch) => unsent.push_back(batch),
                None => match select(pin!(link.serve.notified()), pin!(outbound.broken())).await {
                    Either::Left(_) => (),
                    Either::Right(_) => return Ok(()),
                },
            }
            continue;
        };
        let blocks_bytes: usize = message.blocks.iter().map(|(_, bytes)| bytes.len()).sum();
        let parts = message.encode(outbound.version);
        let write = async {
            let _writing = Writing::new(link);
            outbound.write(parts, inner.limits.stall_timeout).await
        };
        let next = async {
            match unsent.len() {
                1 => load(inner, link, Patience::TakesWhatIsFree).await,
                _ => Ok(None),
            }
        };
        let (written, next) = join(write, next).await;
        let blocks = message.blocks.len() as u64;
        unsent.extend(next?);
        written?;
        unsent.pop_front();
        inner.counters.blocks_sent.fetch_add(blocks, Ordering::Relaxed);
        inner.counters.bytes_sent.fetch_add(blocks_bytes as u64, Ordering::Relaxed);
    }
}

/// A message and its share of the memory for answers.
struct Batch {
    message: Outgoing,
    _permit: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Waits,
    TakesWhatIsFree,
}

/// The next answers to the peer; `None` when nothing is wanted.
async fn load(inner: &Arc<Inner>, link: &Link, patience: Patience) -> io::Result<Option<Batch>> {
    let peer = link.peer;
    while inner.change(None, |state, _| state.ledgers.owes(&peer)) {
        let permit = match patience {
            Patience::Waits => inner.batches.clone().acquire_owned().await.map_err(io::Error::other)?,
            Patience::TakesWhatIsFree => match inner.batches.clone().try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => return Ok(None),
            },
        };
        let tasks = inner.change(None, |state, _| state.ledgers.take(&peer, TASKS_PER_BATCH));
        let (store, batch_bytes) = (inner.store.clone(), inner.limits.batch_bytes);
        let answers = off_thread(move || Ok(look_up(&store, tasks, batch_bytes))).await;
        let Answers { message, outcomes } = answers.map_err(io::Error::other)?;
        inner.change(Some(&peer), |state, _| {
            for (task, outcome) in &outcomes {
                state.ledgers.finish(&peer, task, *outcome);
            }
        });
        if !message.presences.is_empty() || !message.blocks.is_empty() {
            return Ok(Some(Batch { message, _permit: permit }));
        }
    }
    Ok(None)
}

struct Answers {
    message: Outgoing,
    outcomes: Vec<(Task, Outcome)>,
}

/// Looks up wants until the blocks reach `batch_bytes`. Blocking.
fn look_up(store: &Blockstore, tasks: Vec<Task>, batch_bytes: usize) -> Answers {
    let mut message = Outgoing::default();
    let mut outcomes = Vec::with_capacity(tasks.len());
    let mut loaded_bytes = 0;
    for task in tasks {
        if loaded_bytes >= batch_bytes {
            outcomes.push((task, Outcome::NotReached));
            continue;
        }
        let outcome = match answer(store, &task) {
            Answer::Block(bytes) => {
                loaded_bytes += bytes.len();
                message.blocks.push((task.cid, bytes));
                Outcome::Served
            }
            Answer::Have => {
                message.presences.push(Presence::Have(task.cid));
                Outcome::Served
            }
            Answer::Missing => {
                if task.send_dont_have {
                    message.presences.push(Presence::DontHave(task.cid));
                }
                Outcome::Missing
            }
        };
        outcomes.push((task, outcome));
    }
    Answers { message, outcomes }
}

enum Answer {
    Block(Bytes),
    Have,
    Missing,
}

fn answer(store: &Blockstore, task: &Task) -> Answer {
    let key = task.cid.hash();
    let found = match task.want_type {
        WantType::Block => store.get(key).map(|found| found.map(Answer::Block)),
        WantType::Have => store.size_bytes(key).and_then(|found| match found {
            Some(size_bytes) if size_bytes as usize <= INSTEAD_OF_HAVE_BYTES_MAX => {
                store.get(key).map(|found| found.map(Answer::Block))
            }
            found => Ok(found.map(|_| Answer::Have)),
        }),
    };
    match found {
        Ok(found) => found.unwrap_or(Answer::Missing),
        Err(error) => {
            tracing::warn!(block.cid = %task.cid, %error, "cannot read a block that a peer wants");
            Answer::Missing
        }
    }
}

/// A stream to the peer; `None` if it does not speak the protocol, or not with us.
async fn open(inner: &Arc<Inner>, link: &Arc<Link>) -> Option<Outbound> {
    for attempt in 1..=OPEN_ATTEMPTS {
        match inner.control.open(link.peer, protocols()).await {
            Ok((protocol, mut stream)) => {
                // The connection is kept by what is wanted, not by a stream that waits for it.
                stream.ignore_for_keep_alive();
                return Some(Outbound { stream, version: version(&protocol) });
            }
            Err(OpenError::NotConnected(_)) => {
                inner.unlink(&link.peer, Some(link));
                return None;
            }
            Err(OpenError::Unsupported(_)) => return None,
            Err(error) => {
                tracing::debug!(peer.id = %link.peer, %error, "no bitswap stream yet");
                tokio::time::sleep(attempt * OPEN_PAUSE).await;
            }
        }
    }
    None
}

impl Outbound {
    /// Ends when the peer resets the stream. It may close its side, and what it says there is of no interest.
    async fn broken(&mut self) -> io::Error {
        let mut ignored = [0; 64];
        loop {
            match self.stream.read(&mut ignored).await {
                Ok(0) => pending().await,
                Ok(_) => (),
                Err(error) => return error,
            }
        }
    }

    async fn write(&mut self, parts: Vec<Bytes>, stall_timeout: Duration) -> io::Result<()> {
        for part in parts {
            let mut rest = part.as_ref();
            while !rest.is_empty() {
                let written = tokio::time::timeout(stall_timeout, self.stream.write(rest)).await??;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                rest = &rest[written..];
            }
        }
        tokio::time::timeout(stall_timeout, self.stream.flush()).await?
    }
}

/// Counts as work on the link, so that its connection is kept.
struct Writing<'a>(&'a Link);

impl<'a> Writing<'a> {
    fn new(link: &'a Link) -> Self {
        link.writing.fetch_add(1, Ordering::Relaxed);
        Self(link)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::Relaxed);
    }
}
