//! Holding bytes to the digest they are asked for by, and remembering which ones were.

use std::future::Future;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use moka::sync::Cache;
use tokio::task::JoinHandle;

use super::MirrorError;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::{DigestIndex, IndexEntry, StoreError, off_thread};

/// Bytes gathered before they are hashed on a blocking thread.
const HASH_BATCH_BYTES: usize = 1 << 20;
/// Proofs kept in memory, in front of the index.
const PROOFS_CACHED_MAX: u64 = 16_384;

/// Which blobs were once held to their digest, and where they lie. Cheap to clone.
#[derive(Clone)]
pub(super) struct Proven {
    index: DigestIndex,
    cache: Cache<Digest, IndexEntry>,
}

impl Proven {
    pub(super) fn new(index: DigestIndex) -> Self {
        Self { index, cache: Cache::new(PROOFS_CACHED_MAX) }
    }

    /// What needs no look into the index.
    pub(super) fn at_hand(&self, digest: &Digest) -> Option<IndexEntry> {
        self.cache.get(digest)
    }

    /// Remembers a blob that its CID proves, for as long as there is room: it needs no row.
    pub(super) fn note(&self, digest: Digest, entry: IndexEntry) {
        self.cache.insert(digest, entry);
    }

    pub(super) async fn get(&self, digest: &Digest) -> Result<Option<IndexEntry>, StoreError> {
        if let Some(entry) = self.at_hand(digest) {
            return Ok(Some(entry));
        }
        let (index, digest) = (self.index.clone(), *digest);
        let entry = off_thread(move || index.get(&digest)).await?;
        if let Some(entry) = entry {
            self.cache.insert(digest, entry);
        }
        Ok(entry)
    }

    pub(super) async fn put(&self, digest: Digest, entry: IndexEntry) -> Result<(), StoreError> {
        self.cache.insert(digest, entry);
        let index = self.index.clone();
        off_thread(move || index.put(&digest, &entry)).await
    }
}

/// Hashes a stream on blocking threads, a batch at a time. Every future may be dropped midway: what was fed stays fed.
pub(super) struct StreamHasher {
    state: State,
    pending: Vec<Bytes>,
    pending_bytes: usize,
}

enum State {
    Idle(Hasher),
    Busy(JoinHandle<Hasher>),
    Lost,
}

impl StreamHasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self { state: State::Idle(Hasher::new(algorithm)), pending: Vec::new(), pending_bytes: 0 }
    }

    /// Takes bytes in; [`StreamHasher::settle`] must follow, so that no more than a batch waits.
    pub(super) fn feed(&mut self, bytes: Bytes) {
        self.pending_bytes += bytes.len();
        self.pending.push(bytes);
    }

    /// Starts on what waits if it makes a batch; waits for the batch before it.
    pub(super) async fn settle(&mut self) -> Result<(), MirrorError> {
        if self.pending_bytes < HASH_BATCH_BYTES {
            return Ok(());
        }
        self.advance().await
    }

    async fn advance(&mut self) -> Result<(), MirrorError> {
        self.rest().await?;
        if let State::Idle(mut hasher) = std::mem::replace(&mut self.state, State::Lost) {
            let batch = std::mem::take(&mut self.pending);
            self.pending_bytes = 0;
            self.state = State::Busy(tokio::task::spawn_blocking(move || {
                batch.iter().for_each(|bytes| hasher.update(bytes));
                hasher
            }));
        }
        Ok(())
    }

    /// Waits for the batch that is being hashed.
    async fn rest(&mut self) -> Result<(), MirrorError> {
        if let State::Busy(batch) = &mut self.state {
            self.state = State::Idle(batch.await.map_err(|_| MirrorError::Closed)?);
        }
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<Digest, MirrorError> {
        self.advance().await?;
        self.rest().await?;
        match self.state {
            State::Idle(hasher) => Ok(hasher.finish()),
            State::Busy(_) | State::Lost => Err(MirrorError::Closed),
        }
    }
}

/// Passes bytes on, one chunk behind, and the last chunk only if the whole has `digest`; then awaits `on_match`.
pub(super) fn held_to_digest(
    bytes: BoxStream<'static, Result<Bytes, MirrorError>>,
    digest: Digest,
    on_match: impl Future<Output = Result<(), StoreError>> + Send + 'static,
) -> BoxStream<'static, Result<Bytes, MirrorError>> {
    let held = Held { bytes, hasher: StreamHasher::new(digest.algorithm()), last: None };
    stream::try_unfold(Some((held, on_match)), move |state| async move {
        let Some((mut held, on_match)) = state else { return Ok(None) };
        while let Some(chunk) = held.bytes.try_next().await? {
            held.hasher.feed(chunk.clone());
            held.hasher.settle().await?;
            if let Some(before) = held.last.replace(chunk) {
                return Ok(Some((before, Some((held, on_match)))));
            }
        }
        let actual = held.hasher.finish().await?;
        if actual != digest {
            return Err(MirrorError::Forged { expected: digest, actual });
        }
        on_match.await?;
        Ok(held.last.map(|last| (last, None)))
    })
    .boxed()
}

struct Held {
    bytes: BoxStream<'static, Result<Bytes, MirrorError>>,
    hasher: StreamHasher,
    last: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn chunks() -> Vec<Bytes> {
        (0..5_u8).map(|n| Bytes::from(vec![n; 700_000])).collect()
    }

    async fn drain(digest: Digest) -> (Vec<Bytes>, Option<MirrorError>, bool) {
        let matched = Arc::new(AtomicBool::new(false));
        let source = stream::iter(chunks().into_iter().map(Ok)).boxed();
        let mark = matched.clone();
        let mut held = held_to_digest(source, digest, async move {
            mark.store(true, Ordering::SeqCst);
            Ok(())
        });
        let (mut passed, mut failure) = (Vec::new(), None);
        while let Some(next) = held.next().await {
            match next {
                Ok(chunk) => passed.push(chunk),
                Err(error) => failure = Some(error),
            }
        }
        (passed, failure, matched.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn matching_bytes_pass_whole() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let (passed, failure, matched) = drain(Digest::of(algorithm, &chunks().concat())).await;
            assert_eq!(passed, chunks());
            assert!(failure.is_none());
            assert!(matched);
        }
    }

    #[tokio::test]
    async fn wrong_bytes_lose_their_last_chunk() {
        let (passed, failure, matched) = drain(Digest::sha256(b"something else")).await;
        assert_eq!(passed, chunks()[..4]);
        assert!(matches!(failure, Some(MirrorError::Forged { .. })));
        assert!(!matched);
    }
}
