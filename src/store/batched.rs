//! The blockstore for async callers that each ask for one block, many at a time: what waits is done together, on one
//! blocking thread. To hand a job to another thread and its answer back takes several times what a look-up in the index or
//! the write of a small block does.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::{Blockstore, StoreError};
use crate::ipld::{Block, Multihash};

/// Blocks that are put at once with others have no more bytes in all; larger ones are written beside each other.
const SMALL_BYTES_MAX: usize = 64 * 1024;

/// Cheap to clone; clones share the batches.
#[derive(Clone)]
pub struct Batched {
    gets: Batcher<Get>,
    puts: Batcher<Put>,
}

struct Get {
    key: Multihash,
    reply: oneshot::Sender<Result<Option<Bytes>, StoreError>>,
}

struct Put {
    blocks: Vec<Block>,
    reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Batched {
    pub fn new(store: &Blockstore) -> Self {
        Self {
            gets: Batcher::new(store, Get::look_up, Get::read),
            puts: Batcher::new(store, Put::write_small, Put::write),
        }
    }

    /// As [`Blockstore::get`] does. May be dropped midway.
    pub async fn get(&self, key: &Multihash) -> Result<Option<Bytes>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.gets.push(Get { key: *key, reply });
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// As [`Blockstore::put`] does. Once begun it is finished, also if the future is dropped.
    pub async fn put(&self, blocks: Vec<Block>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.puts.push(Put { blocks, reply });
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Get {
    /// Answers for what is not here; what is remains to be read, each block on a thread of its own.
    fn look_up(store: &Blockstore, gets: Vec<Self>) -> Vec<Self> {
        let mut here = Vec::new();
        let mut absent = Vec::with_capacity(gets.len());
        for get in gets.into_iter().filter(|get| !get.reply.is_closed()) {
            match store.size_bytes(&get.key) {
                Ok(Some(_)) => here.push(get),
                Ok(None) => absent.push((get, Ok(None))),
                Err(error) => absent.push((get, Err(error))),
            }
        }
        // All at once: who is woken finds the others awake, and their wants go out together.
        for (get, answer) in absent {
            let _gone = get.reply.send(answer);
        }
        here
    }

    fn read(store: &Blockstore, get: Self) {
        let _gone = get.reply.send(store.get(&get.key));
    }
}

impl Put {
    /// Writes what is small; the rest remains to be written.
    fn write_small(store: &Blockstore, puts: Vec<Self>) -> Vec<Self> {
        let is_small =
            |put: &Self| put.blocks.iter().map(|block| block.bytes().len()).sum::<usize>() <= SMALL_BYTES_MAX;
        let (small, large): (Vec<Self>, Vec<Self>) = puts.into_iter().partition(is_small);
        let written = store.put_all(small.iter().flat_map(|put| &put.blocks).map(parts));
        for put in small {
            match &written {
                Ok(()) => _ = put.reply.send(Ok(())),
                // Whose block it was is not known: each of them tries for itself.
                Err(_) => Self::write(store, put),
            }
        }
        large
    }

    fn write(store: &Blockstore, put: Self) {
        let written = store.put_all(put.blocks.iter().map(parts));
        let _gone = put.reply.send(written);
    }
}

fn parts(block: &Block) -> (&Multihash, &[Bytes]) {
    (block.cid().hash(), std::slice::from_ref(block.bytes()))
}

/// Jobs, and one thread at a time that does all that wait.
struct Batcher<J>(Arc<Jobs<J>>);

struct Jobs<J> {
    store: Blockstore,
    /// Does what is quickly done, and returns the rest …
    together: fn(&Blockstore, Vec<J>) -> Vec<J>,
    /// … of which each is done beside the others.
    alone: fn(&Blockstore, J),
    waiting: Mutex<Waiting<J>>,
}

struct Waiting<J> {
    jobs: Vec<J>,
    /// There is a [`Turn`].
    taken: bool,
}

impl<J> Clone for Batcher<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<J: Send + 'static> Batcher<J> {
    fn new(
        store: &Blockstore,
        together: fn(&Blockstore, Vec<J>) -> Vec<J>,
        alone: fn(&Blockstore, J),
    ) -> Self {
        let waiting = Mutex::new(Waiting { jobs: Vec::new(), taken: false });
        Self(Arc::new(Jobs { store: store.clone(), together, alone, waiting }))
    }

    fn push(&self, job: J) {
        let is_taken = {
            let mut waiting = self.0.lock();
            waiting.jobs.push(job);
            mem::replace(&mut waiting.taken, true)
        };
        if !is_taken {
            Turn::begin(self.clone());
        }
    }
}

impl<J> Jobs<J> {
    /// A panic leaves a list with or without its last job.
    fn lock(&self) -> MutexGuard<'_, Waiting<J>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that does the jobs.
struct Turn<J: Send + 'static> {
    batcher: Batcher<J>,
    ended: bool,
}

impl<J: Send + 'static> Turn<J> {
    fn begin(batcher: Batcher<J>) {
        let turn = Self { batcher, ended: false };
        spawn_blocking(move || turn.work());
    }

    fn work(self) {
        let jobs = self.batcher.0.clone();
        loop {
            let batch = mem::take(&mut jobs.lock().jobs);
            if batch.is_empty() {
                return self.end();
            }
            let mut rest = (jobs.together)(&jobs.store, batch);
            let Some(last) = rest.pop() else { continue };
            for job in rest {
                let jobs = jobs.clone();
                spawn_blocking(move || (jobs.alone)(&jobs.store, job));
            }
            // What came meanwhile does not wait for the last one.
            self.end();
            return (jobs.alone)(&jobs.store, last);
        }
    }

    /// Gives what waits to another thread.
    fn end(mut self) {
        self.ended = true;
        let is_more = {
            let mut waiting = self.batcher.0.lock();
            waiting.taken = !waiting.jobs.is_empty();
            waiting.taken
        };
        if is_more {
            Self::begin(self.batcher.clone());
        }
    }
}

impl<J: Send + 'static> Drop for Turn<J> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It panicked, or the runtime has ended: whose jobs go is told so.
        let jobs = {
            let mut waiting = self.batcher.0.lock();
            waiting.taken = false;
            mem::take(&mut waiting.jobs)
        };
        drop(jobs);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::ipld::block::RAW;
    use crate::store::{Store, StoreOptions};

    struct Fixture {
        store: Store,
        batched: Batched,
        folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
            Self { batched: Batched::new(store.blocks()), store, folder }
        }
    }

    fn block(name: usize, size_bytes: usize) -> Block {
        let mut bytes = vec![0; size_bytes];
        bytes[..8].copy_from_slice(&name.to_le_bytes());
        Block::encode(RAW, bytes.into())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_at_once_each_gets_its_own_answer() {
        let f = Fixture::new();
        let sizes_bytes = [100, 4096, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1, 1 << 20];
        let blocks: Vec<Block> = (0..50).map(|name| block(name, sizes_bytes[name % 5])).collect();
        let put = blocks.iter().filter(|block| block.bytes()[0] % 3 != 0);
        let put = put.chain(&blocks[1..3]).map(|block| f.batched.put(vec![block.clone()]));
        futures::future::try_join_all(put).await.unwrap();

        let gets = blocks.iter().map(|block| f.batched.get(block.cid().hash()));
        let got = futures::future::try_join_all(gets).await.unwrap();
        for (block, got) in blocks.iter().zip(got) {
            let expected = (block.bytes()[0] % 3 != 0).then(|| block.bytes().clone());
            assert_eq!(got, expected);
        }
        assert_eq!(f.store.blocks().stats().blocks, 33);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_that_fails_is_told_to_all_whose_blocks_it_was() {
        let f = Fixture::new();
        std::fs::remove_dir_all(f.folder.path().join("packs")).unwrap();
        let put = (0..20).map(|name| f.batched.put(vec![block(name, 1000)]));
        for outcome in futures::future::join_all(put).await {
            assert!(matches!(outcome, Err(StoreError::Io { .. })), "{outcome:?}");
        }
    }

    enum Job {
        Short(oneshot::Sender<()>),
        /// Takes until something comes.
        Long(mpsc::Receiver<()>, oneshot::Sender<()>),
        Panics(oneshot::Sender<()>),
    }

    impl Job {
        fn together(_: &Blockstore, jobs: Vec<Self>) -> Vec<Self> {
            let mut rest = Vec::new();
            for job in jobs {
                match job {
                    Self::Short(reply) => reply.send(()).unwrap(),
                    Self::Long(..) => rest.push(job),
                    Self::Panics(reply) => panic!("{reply:?} ends with this thread"),
                }
            }
            rest
        }

        fn alone(_: &Blockstore, job: Self) {
            if let Self::Long(until, reply) = job {
                until.recv().unwrap();
                reply.send(()).unwrap();
            }
        }
    }

    fn short(batcher: &Batcher<Job>) -> oneshot::Receiver<()> {
        let (reply, answer) = oneshot::channel();
        batcher.push(Job::Short(reply));
        answer
    }

    #[tokio::test]
    async fn what_takes_long_holds_up_nobody() {
        let f = Fixture::new();
        let batcher = Batcher::new(f.store.blocks(), Job::together, Job::alone);
        let mut long = Vec::new();
        for _ in 0..3 {
            let (end, until) = mpsc::channel();
            let (reply, answer) = oneshot::channel();
            batcher.push(Job::Long(until, reply));
            short(&batcher).await.unwrap();
            long.push((end, answer));
        }
        for (end, answer) in long {
            end.send(()).unwrap();
            answer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_ends_those_who_wait_and_nobody_after_them() {
        let f = Fixture::new();
        let batcher = Batcher::new(f.store.blocks(), Job::together, Job::alone);
        for _ in 0..3 {
            let (reply, answer) = oneshot::channel();
            batcher.push(Job::Panics(reply));
            assert!(answer.await.is_err());
            // Who comes while the thread still unwinds is told, too, that it has ended.
            while short(&batcher).await.is_err() {}
        }
    }
}
