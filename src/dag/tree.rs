//! Trees of directories: looks up a path, lists a directory, makes a new root by edits (what Kubo calls MFS).
//!
//! Directories may be sharded, and by whom they were written does not matter; what is written here is profile
//! `unixfs-v1-2025` (IPIP-0499). Nothing here changes: a root names one state of a tree for ever, so what was found
//! below it is kept in memory, within bounds, and never becomes stale. Which root is in force is for others to know.

use std::sync::Arc;

use cid::Cid;
use moka::future::Cache;

use super::tree_list::{self, Names};
use super::{Blocks, DagError};
use crate::ipfs::Want;
use crate::ipld::Block;
use crate::ipld::block::DAG_PB;
use crate::ipld::directory::{Basic, DIRECTORY_BYTES_MAX, Directory};
use crate::ipld::hamt::{HamtNode, NameHash, Place, Slot};

pub use super::tree_edit::Edit;
pub use super::tree_list::Listing;
pub use crate::ipld::directory::Entry;

/// Memory for the results of look-ups, in bytes: some 20,000 of them.
const LOOKUPS_BYTES_MAX: u64 = 8 << 20;

/// Memory for decoded directory nodes, in bytes.
const NODES_BYTES_MAX: u64 = 16 << 20;

/// Memory for the names below nodes of sharded directories, in bytes.
const NAMES_BYTES_MAX: u64 = 16 << 20;

/// What a cache and its key take per entry beside the content, in bytes.
const CACHE_ENTRY_BYTES: usize = 300;

/// How many nodes are read or fetched at once by what visits many.
pub(super) const NODES_AT_ONCE: usize = 16;

/// Trees in the blocks below. Cheap to clone; clones share their caches.
#[derive(Clone)]
pub struct Tree {
    blocks: Blocks,
    /// By root and path: what is there, or that nothing is.
    lookups: Cache<(Cid, String), Option<Entry>>,
    nodes: Cache<Cid, Arc<Node>>,
    /// What lists have found, by sub-shard.
    pub(super) names: Cache<(Cid, Place), Names>,
    /// A directory in a larger block is sharded.
    pub(super) directory_bytes_max: u64,
}

/// A decoded node, and what a link to it says.
pub(super) struct Node {
    pub(super) directory: Directory,
    pub(super) entry: Entry,
}

impl Node {
    pub(super) fn new(directory: Directory, block: &Block) -> Self {
        let entry = directory.entry(block);
        Self { directory, entry }
    }
}

impl Tree {
    pub fn new(blocks: Blocks) -> Self {
        Self::with_threshold(blocks, DIRECTORY_BYTES_MAX)
    }

    pub(super) fn with_threshold(blocks: Blocks, directory_bytes_max: u64) -> Self {
        let lookup_bytes =
            |(_, path): &(Cid, String), _: &Option<Entry>| weight(path.len() + size_of::<Option<Entry>>());
        let names_bytes = |_: &(Cid, Place), names: &Names| weight(tree_list::names_bytes(names));
        let node_bytes = |_: &Cid, node: &Arc<Node>| weight(node.directory.memory_bytes());
        Self {
            blocks,
            lookups: Cache::builder().weigher(lookup_bytes).max_capacity(LOOKUPS_BYTES_MAX).build(),
            nodes: Cache::builder().weigher(node_bytes).max_capacity(NODES_BYTES_MAX).build(),
            names: Cache::builder().weigher(names_bytes).max_capacity(NAMES_BYTES_MAX).build(),
            directory_bytes_max,
        }
    }

    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Walks `path`, components separated by `/`, through directories and shards below `root`; the empty path is the
    /// root itself. `None`: there is no such entry, or a file is in the way. May be dropped midway.
    pub async fn lookup(&self, root: &Cid, path: &str) -> Result<Option<Entry>, DagError> {
        let key = (*root, path.to_owned());
        if let Some(found) = self.lookups.get(&key).await {
            return Ok(found);
        }
        let found = self.walk(root, path).await?;
        self.lookups.insert(key, found).await;
        Ok(found)
    }

    async fn walk(&self, root: &Cid, path: &str) -> Result<Option<Entry>, DagError> {
        let Some(mut node) = self.node(root, root).await? else {
            return Ok(None);
        };
        if path.is_empty() {
            return Ok(Some(node.entry));
        }
        let mut names = path.split('/');
        let last = names.next_back().unwrap_or_default();
        for name in names {
            let Some(entry) = self.find(root, &node, name).await? else {
                return Ok(None);
            };
            let Some(next) = self.node(root, &entry.cid).await? else {
                return Ok(None);
            };
            node = next;
        }
        self.find(root, &node, last).await
    }

    /// The empty directory, put into the store.
    pub async fn empty(&self) -> Result<Entry, DagError> {
        let directory = Directory::Basic(Basic::default());
        let block = directory.encode();
        let entry = directory.entry(&block);
        self.blocks.put(vec![block]).await?;
        Ok(entry)
    }

    /// The directory node `cid` of the tree below `root`; `None` if it is a file.
    pub(super) async fn node(&self, root: &Cid, cid: &Cid) -> Result<Option<Arc<Node>>, DagError> {
        if cid.codec() != DAG_PB {
            return Ok(None);
        }
        if let Some(node) = self.nodes.get(cid).await {
            self.blocks.store().note_use(cid.hash());
            return Ok(Some(node));
        }
        let block = self.blocks.fetch(Want { cid: *cid, root: *root }).await?;
        self.decode(&block).await
    }

    /// The directory node `cid` if it is a directory and here; never asks the network.
    pub(super) async fn local_node(&self, cid: &Cid) -> Result<Option<Arc<Node>>, DagError> {
        if cid.codec() != DAG_PB {
            return Ok(None);
        }
        if let Some(node) = self.nodes.get(cid).await {
            self.blocks.store().note_use(cid.hash());
            return Ok(Some(node));
        }
        match self.blocks.get(cid).await? {
            Some(block) => self.decode(&block).await,
            None => Ok(None),
        }
    }

    async fn decode(&self, block: &Block) -> Result<Option<Arc<Node>>, DagError> {
        let Some(directory) = Directory::decode(block)? else {
            return Ok(None);
        };
        let node = Arc::new(Node::new(directory, block));
        self.keep(node.clone()).await;
        Ok(Some(node))
    }

    /// Forgets what was found: blocks were taken away.
    pub fn forget_all(&self) {
        self.nodes.invalidate_all();
        self.lookups.invalidate_all();
        self.names.invalidate_all();
    }

    /// Remembers a node whose block is in the store.
    pub(super) async fn keep(&self, node: Arc<Node>) {
        self.nodes.insert(node.entry.cid, node).await;
    }

    /// The node of the sub-shard `cid`, which must have the fan-out of its parent.
    pub(super) async fn sub_shard(&self, root: &Cid, cid: &Cid, place: Place) -> Result<Arc<Node>, DagError> {
        let node = self.node(root, cid).await?;
        node.filter(|node| shard_of(node).is_some_and(|shard| shard.fanout() == place.fanout()))
            .ok_or_else(|| invalid(cid, "a shard with a child that is no shard of its fan-out"))
    }

    /// The entry of `name` in the directory whose first node is `node`.
    pub(super) async fn find(&self, root: &Cid, node: &Node, name: &str) -> Result<Option<Entry>, DagError> {
        let shard = match &node.directory {
            Directory::Basic(basic) => return Ok(basic.get(name).copied()),
            Directory::Shard(shard) => shard,
        };
        let hash = NameHash::of(name);
        let mut place = Place::root(shard.fanout());
        let mut step = step(shard, place, hash, name);
        loop {
            let (cid, position) = match step {
                Step::End(found) => return Ok(found),
                Step::Down(cid, position) => (cid, position),
            };
            place = below(&cid, place, position)?;
            let sub = self.sub_shard(root, &cid, place).await?;
            step = shard_of(&sub).map_or(Step::End(None), |shard| self::step(shard, place, hash, name));
        }
    }
}

/// Where a look-up goes on from a node of a sharded directory.
enum Step {
    End(Option<Entry>),
    Down(Cid, u16),
}

fn step(shard: &HamtNode, place: Place, hash: NameHash, name: &str) -> Step {
    let position = hash.position(place);
    match shard.get(position) {
        Some(Slot::Sub(entry)) => Step::Down(entry.cid, position),
        Some(Slot::Value(other, entry)) if other == name => Step::End(Some(*entry)),
        Some(Slot::Value(..)) | None => Step::End(None),
    }
}

pub(super) fn shard_of(node: &Node) -> Option<&HamtNode> {
    match &node.directory {
        Directory::Shard(shard) => Some(shard),
        Directory::Basic(_) => None,
    }
}

/// The place of the sub-shard `cid`.
pub(super) fn below(cid: &Cid, place: Place, position: u16) -> Result<Place, DagError> {
    place.below(position).ok_or_else(|| invalid(cid, "shards that are deeper than a name's hash has bits"))
}

pub(super) fn invalid(cid: &Cid, what: &'static str) -> DagError {
    DagError::Invalid { cid: Box::new(*cid), what }
}

fn weight(bytes: usize) -> u32 {
    u32::try_from(bytes + CACHE_ENTRY_BYTES).unwrap_or(u32::MAX)
}
