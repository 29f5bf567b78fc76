//! Trees against Kubo's, against themselves built another way, and against what strangers may publish.

mod edit;
mod foreign;
mod merge;
mod visit;

use std::collections::HashSet;
use std::sync::Arc;

use cid::Cid;
use sha3::Shake128;
use sha3::digest::{ExtendableOutput, Update, XofReader};

use super::Blocks;
use super::testing::Far;
use super::tree::{Edit, Entry, Tree};
use crate::ipld::Block;
use crate::ipld::block::RAW;
use crate::ipld::dag_pb::Link;
use crate::ipld::directory::{DIRECTORY_BYTES_MAX, Directory};
use crate::store::{Store, StoreOptions};

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
        let far = Far::with(store.map(Store::blocks));
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let tree =
            Tree::with_threshold(Blocks::new(store.blocks().clone(), far.clone()), directory_bytes_max);
        Self { tree, far, store, _dir: dir }
    }

    fn fetched(&self) -> usize {
        self.far.fetched()
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
