//! `Blocks`: the blockstore, else one shared fetch per CID; verified and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::DagError;
use super::keep::{Keep, Keeps};
use crate::ipfs::{Ipfs, Nowhere, Want};
use crate::ipld::{Block, Cid, Multihash};
use crate::store::{Batched, Blockstore, off_thread};

/// Blocks up to this size are kept in memory too: nodes of directories and files, links, manifests.
const CACHED_BLOCK_BYTES_MAX: usize = 64 * 1024;
/// All of them together.
const CACHE_BYTES_MAX: u64 = 16 << 20;
/// Fetches under way at once; further ones wait.
const FETCHES_MAX: usize = 1024;

type Fetch = BoxFuture<'static, Result<Block, Arc<DagError>>>;

/// Where DAGs come from and go to. Cheap to clone.
#[derive(Clone)]
pub struct Blocks(Arc<Inner>);

struct Inner {
    store: Blockstore,
    /// The same for who waits.
    batched: Batched,
    ipfs: Arc<dyn Ipfs>,
    cache: Cache<Multihash, Bytes>,
    /// What is being fetched; a fetch that nobody waits for any more is gone.
    fetches: Mutex<HashMap<Cid, WeakShared<Fetch>>>,
    slots: Semaphore,
    keeps: Keeps,
}

impl Blocks {
    pub fn new(store: Blockstore, ipfs: Arc<dyn Ipfs>) -> Self {
        let weigh = |_: &Multihash, bytes: &Bytes| u32::try_from(bytes.len() + 128).unwrap_or(u32::MAX);
        let cache = Cache::builder().max_capacity(CACHE_BYTES_MAX).weigher(weigh).build();
        let slots = Semaphore::new(FETCHES_MAX);
        Self(Arc::new(Inner {
            batched: Batched::new(&store),
            store,
            ipfs,
            cache,
            fetches: Mutex::default(),
            slots,
            keeps: Keeps::default(),
        }))
    }

    /// The same store without the network: what is not here is not found.
    pub fn offline(&self) -> Self {
        Self::new(self.0.store.clone(), Arc::new(Nowhere))
    }

    /// Something to keep blocks by that no root names.
    pub fn keep(&self) -> Keep {
        self.0.keeps.make()
    }

    /// What is kept so.
    pub fn kept(&self) -> Vec<Cid> {
        self.0.keeps.cids()
    }

    /// Forgets a block that was taken away.
    pub fn forget(&self, key: &Multihash) {
        self.0.cache.invalidate(key);
    }

    /// A block that is here already; never asks the network. Identity CIDs are always here.
    pub async fn get(&self, cid: &Cid) -> Result<Option<Block>, DagError> {
        self.0.get(cid).await
    }

    /// The block from here, else from the network; then it is kept. However many ask, one fetch is made, which ends when
    /// the last of them has gone. The want of whoever asked first decides whom to ask.
    pub async fn fetch(&self, want: Want) -> Result<Block, DagError> {
        if let Some(block) = self.0.at_hand(&want.cid) {
            return Ok(block);
        }
        Ok(self.share(want).await?)
    }

    fn share(&self, want: Want) -> Shared<Fetch> {
        let mut fetches = self.0.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetch) = fetches.get(&want.cid).and_then(WeakShared::upgrade) {
            return fetch;
        }
        if fetches.len() >= 2 * FETCHES_MAX {
            fetches.retain(|_, fetch| fetch.upgrade().is_some());
        }
        let inner = self.0.clone();
        let fetch = async move { inner.fetch(want).await.map_err(Arc::new) }.boxed().shared();
        if let Some(weak) = fetch.downgrade() {
            fetches.insert(want.cid, weak);
        }
        fetch
    }

    /// How many wait for the fetch of a block.
    #[cfg(test)]
    pub(super) fn waiting(&self, cid: &Cid) -> usize {
        let fetches = self.0.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        let fetch = fetches.get(cid).and_then(WeakShared::upgrade);
        fetch.and_then(|fetch| fetch.strong_count()).map_or(0, |handles| handles - 1)
    }

    /// Writes blocks; durable after [`Blocks::flush`].
    pub async fn put(&self, blocks: Vec<Block>) -> Result<(), DagError> {
        self.0.put(blocks).await
    }

    /// Returns when everything put before is on disk.
    pub async fn flush(&self) -> Result<(), DagError> {
        let store = self.0.store.clone();
        Ok(off_thread(move || store.flush()).await?)
    }

    /// The store below, for writers that hash and put on a thread of their own.
    pub fn store(&self) -> &Blockstore {
        &self.0.store
    }
}

impl Inner {
    /// What needs no look into the store.
    fn at_hand(&self, cid: &Cid) -> Option<Block> {
        if let Some(block) = Block::inline(cid) {
            return Some(block);
        }
        let bytes = self.cache.get(cid.hash())?;
        self.store.note_use(cid.hash());
        Some(Block::from_store(*cid, bytes))
    }

    async fn get(&self, cid: &Cid) -> Result<Option<Block>, DagError> {
        if let Some(block) = self.at_hand(cid) {
            return Ok(Some(block));
        }
        let Some(bytes) = self.batched.get(cid.hash()).await? else { return Ok(None) };
        self.remember(cid.hash(), &bytes);
        Ok(Some(Block::from_store(*cid, bytes)))
    }

    fn remember(&self, key: &Multihash, bytes: &Bytes) {
        if bytes.len() <= CACHED_BLOCK_BYTES_MAX {
            // A copy of its own: a slice would keep the message alive that it came in.
            self.cache.insert(*key, Bytes::copy_from_slice(bytes));
        }
    }

    async fn fetch(&self, want: Want) -> Result<Block, DagError> {
        if let Some(block) = self.get(&want.cid).await? {
            return Ok(block);
        }
        let _slot = match self.slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                let closed = |_| DagError::Cancelled("the daemon is shutting down");
                let slot = self.slots.acquire().await.map_err(closed)?;
                // It may have come while this one waited.
                if let Some(block) = self.get(&want.cid).await? {
                    return Ok(block);
                }
                slot
            }
        };
        let block = self.ipfs.fetch(want).await?;
        self.put(vec![block.clone()]).await?;
        Ok(block)
    }

    async fn put(&self, blocks: Vec<Block>) -> Result<(), DagError> {
        if blocks.is_empty() {
            return Ok(());
        }
        for block in &blocks {
            self.remember(block.cid().hash(), block.bytes());
        }
        Ok(self.batched.put(blocks).await?)
    }
}
