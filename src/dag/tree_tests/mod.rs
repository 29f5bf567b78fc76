//! Trees against Kubo's, against themselves built another way, and against what strangers may publish.

mod edit;
mod foreign;
mod visit;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use cid::Cid;
use sha3::Shake128;
use sha3::digest::{ExtendableOutput, Update, XofReader};

use super::Blocks;
use super::tree::{Edit, Entry, Tree};
use crate::ipfs::{Ipfs, IpfsError, Want};
use crate::ipld::Block;
use crate::ipld::block::RAW;
use crate::ipld::dag_pb::Link;
use crate::ipld::directory::{DIRECTORY_BYTES_MAX, Directory};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::store::{Blockstore, Store, StoreOptions};

/// A network that has the blocks of another store, or none, and counts what is asked of it.
#[derive(Default)]
struct Far {
    store: Option<Blockstore>,
    fetched: AtomicUsize,
}

#[async_trait]
impl Ipfs for Far {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let bytes = self.store.as_ref().and_then(|store| store.get(want.cid.hash()).unwrap());
        bytes
            .map(|bytes| Block::from_store(want.cid, bytes))
            .ok_or_else(|| IpfsError::NoProvider(Box::new(want.cid)))
    }
    async fn provide(&self, _: &[Cid]) -> Result<(), IpfsError> {
        Err(IpfsError::Closed)
    }
    async fn resolve(&self, _: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        Err(IpfsError::Closed)
    }
    async fn publish(&self, _: &IpnsRecord) -> Result<(), IpfsError> {
        Err(IpfsError::Closed)
    }
}

/// A tree with a store of its own.
struct Fixture {
    tree: Tree,
    far: Arc<Far>,
    store: Store,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::behind(None, DIRECTORY_BYTES_MAX)
    }

    fn behind(store: Option<&Store>, directory_bytes_max: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let far =
            Arc::new(Far { store: store.map(|store| store.blocks().clone()), fetched: AtomicUsize::new(0) });
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let tree =
            Tree::with_threshold(Blocks::new(store.blocks().clone(), far.clone()), directory_bytes_max);
        Self { tree, far, store, _dir: dir }
    }

    fn fetched(&self) -> usize {
        self.far.fetched.swap(0, Ordering::Relaxed)
    }

    /// A root with these entries, set at once.
    async fn build(&self, edits: &[Edit]) -> Entry {
        let empty = self.tree.empty().await.unwrap();
        self.tree.edit(&empty.cid, edits).await.unwrap()
    }

    async fn put(&self, block: Block) -> Cid {
        let cid = *block.cid();
        self.tree.blocks().put(vec![block]).await.unwrap();
        cid
    }

    async fn names(&self, root: &Cid) -> Vec<String> {
        self.tree.list(root, "", None, usize::MAX).await.unwrap().unwrap().names
    }

    /// All directory nodes of a tree.
    async fn nodes(&self, root: &Cid) -> HashSet<Cid> {
        self.nodes_beyond(&HashSet::new(), root).await
    }

    /// The directory nodes of a tree, but for those that are known and what is below them.
    async fn nodes_beyond(&self, known: &HashSet<Cid>, root: &Cid) -> HashSet<Cid> {
        let mut waiting = vec![*root];
        let mut found = HashSet::new();
        while let Some(cid) = waiting.pop() {
            if known.contains(&cid) {
                continue;
            }
            let Some(node) = self.tree.local_node(&cid).await.unwrap() else { continue };
            found.insert(cid);
            match &node.directory {
                Directory::Basic(basic) => waiting.extend(basic.entries().iter().map(|(_, entry)| entry.cid)),
                Directory::Shard(shard) => {
                    waiting.extend(shard.slots().iter().map(|(_, slot)| slot.entry().cid));
                }
            }
        }
        found
    }
}

fn raw(name: &str, size: usize) -> Entry {
    let mut bytes = vec![0; size];
    Shake128::default().chain(format!("dir/{name}")).finalize_xof().read(&mut bytes);
    Entry { cid: *Block::encode(RAW, bytes.into()).cid(), tsize: size as u64 }
}

fn set(path: &str, size: usize) -> Edit {
    Edit { path: path.to_owned(), to: Some(raw(path, size)) }
}

fn remove(path: &str) -> Edit {
    Edit { path: path.to_owned(), to: None }
}

fn link(name: &str, cid: Cid) -> Link {
    Link { name: name.to_owned(), cid, tsize: 1 }
}

fn many(range: std::ops::Range<usize>) -> Vec<Edit> {
    range.map(|i| set(&format!("file-{i:05}"), 5)).collect()
}
