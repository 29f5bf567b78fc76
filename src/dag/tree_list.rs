//! What visits many nodes of a tree: listing a directory, and fetching what a new root adds to an old one.

use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

use cid::Cid;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::DagError;
use super::tree::{Entry, NODES_AT_ONCE, Node, Tree, below, invalid, shard_of};
use crate::ipld::block::DAG_PB;
use crate::ipld::directory::Directory;
use crate::ipld::hamt::{HamtNode, NameHash, Place, Slot};

/// The most nodes of one sharded directory that are visited to list it: enough for a million names, where Kubo's
/// shards have some 70,000.
const LIST_NODES_MAX: usize = 131_072;

/// A page of names, sorted bytewise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub names: Vec<String>,
    /// Whether more follow the last one.
    pub more: bool,
}

impl Tree {
    /// The names in the directory at `path` that sort behind `after`, at most `limit`; `None`: there is no such directory.
    /// Names that no path can have (empty, `.`, `..`, with `/`) are left out, and so are those that the hash of a
    /// sharded directory does not lead to. Takes memory for `limit` names, and visits all shards of the directory, so
    /// its cost is that of the directory. May be dropped midway.
    pub async fn list(
        &self,
        root: &Cid,
        path: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<Listing>, DagError> {
        let Some(entry) = self.lookup(root, path).await? else {
            return Ok(None);
        };
        let Some(node) = self.node(root, &entry.cid).await? else {
            return Ok(None);
        };
        let mut page = Page { smallest: BinaryHeap::new(), after, limit, more: false };
        match &node.directory {
            // Already sorted: what follows a full page is not looked at.
            Directory::Basic(basic) => {
                let names = basic.entries_after(after).iter().map(|(name, _)| name);
                names
                    .filter(|name| is_listed(name))
                    .take(limit.saturating_add(1))
                    .for_each(|name| page.offer(name));
            }
            Directory::Shard(shard) => self.list_shards(root, &node, shard, &mut page).await?,
        }
        Ok(Some(page.finish()))
    }

    async fn list_shards(
        &self,
        root: &Cid,
        top: &Node,
        shard: &HamtNode,
        page: &mut Page<'_>,
    ) -> Result<(), DagError> {
        // A stack, so that what waits is bounded by the depth and not by the width of the directory.
        let mut waiting = page.visit(shard, Place::root(shard.fanout()))?;
        let mut reading = FuturesUnordered::new();
        let mut visited = 1;
        loop {
            while reading.len() < NODES_AT_ONCE
                && let Some((cid, place)) = waiting.pop()
            {
                visited += 1;
                if visited > LIST_NODES_MAX {
                    return Err(invalid(&top.entry.cid, "a directory with more shards than are read"));
                }
                reading.push(
                    async move { Ok::<_, DagError>((self.sub_shard(root, &cid, place).await?, place)) },
                );
            }
            let Some(read) = reading.next().await else {
                return Ok(());
            };
            let (node, place) = read?;
            if let Some(shard) = shard_of(&node) {
                waiting.extend(page.visit(shard, place)?);
            }
        }
    }

    /// Fetches the directory nodes below `new` that are not below `old`, and the root nodes of files that are not raw,
    /// since only the node says what it is; not what the files consist of. What is below `old` is taken to be here.
    /// `Ok(true)`: all are here; `Ok(false)`: `nodes_max` were visited, and there are more. A node below `new` that is
    /// no valid UnixFS counts as a file, lest one spoiled entry keep all others away. May be dropped midway: what was
    /// fetched stays.
    pub async fn fetch_directories(
        &self,
        old: Option<&Cid>,
        new: &Cid,
        nodes_max: usize,
    ) -> Result<bool, DagError> {
        if old == Some(new) {
            return Ok(true);
        }
        if nodes_max == 0 {
            return Ok(false);
        }
        // What waits is bounded too: each of it will be visited, and no more than `nodes_max` are.
        let mut waiting = vec![Visit { cid: *new, old_directory: old.copied(), old_node: old.copied() }];
        let mut seen = HashSet::from([*new]);
        let mut all = true;
        let mut fetching = FuturesUnordered::new();
        loop {
            while fetching.len() < NODES_AT_ONCE
                && let Some(visit) = waiting.pop()
            {
                fetching.push(self.visit(new, visit));
            }
            let Some(next) = fetching.next().await else {
                return Ok(all);
            };
            for visit in next? {
                if seen.contains(&visit.cid) {
                    continue;
                }
                if seen.len() >= nodes_max {
                    all = false;
                    break;
                }
                seen.insert(visit.cid);
                waiting.push(visit);
            }
        }
    }

    /// Fetches a node; returns what to visit below it.
    async fn visit(&self, root: &Cid, visit: Visit) -> Result<Vec<Visit>, DagError> {
        let node = match self.node(root, &visit.cid).await {
            Ok(Some(node)) => node,
            Ok(None) => return Ok(Vec::new()),
            Err(DagError::Format(_)) if visit.cid != *root => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let old_node = self.old_node(visit.old_node.as_ref()).await;
        let old_directory = self.old_node(visit.old_directory.as_ref()).await;
        let mut next = Vec::new();
        match &node.directory {
            Directory::Basic(basic) => {
                for (name, entry) in basic.entries() {
                    next.extend(self.compare(old_directory.as_deref(), name, entry).await);
                }
            }
            Directory::Shard(shard) => {
                let same_fanout = |other: &&HamtNode| other.fanout() == shard.fanout();
                let old_shard = old_node.as_deref().and_then(shard_of).filter(same_fanout);
                for (position, slot) in shard.slots() {
                    let old_slot = old_shard.and_then(|old| old.get(*position));
                    match slot {
                        _ if old_slot == Some(slot) => (),
                        Slot::Value(name, entry) => {
                            next.extend(self.compare(old_directory.as_deref(), name, entry).await);
                        }
                        Slot::Sub(entry) => next.extend(visit.sub_shard(entry, old_slot)),
                    }
                }
            }
        }
        Ok(next)
    }

    /// What to visit below an entry, given the directory that the old tree has in its place.
    async fn compare(&self, old: Option<&Node>, name: &str, entry: &Entry) -> Option<Visit> {
        if entry.cid.codec() != DAG_PB {
            return None;
        }
        let before = match old {
            Some(old) => self.find_here(old, name).await,
            None => None,
        };
        let before = before.map(|before| before.cid);
        (before != Some(entry.cid)).then_some(Visit {
            cid: entry.cid,
            old_directory: before,
            old_node: before,
        })
    }

    /// A node of the old tree. It only spares visits, so one that is not here or not readable is as good as none.
    async fn old_node(&self, cid: Option<&Cid>) -> Option<Arc<Node>> {
        self.local_node(cid?).await.ok().flatten()
    }

    /// [`Tree::find`] among what is here.
    async fn find_here(&self, node: &Node, name: &str) -> Option<Entry> {
        let shard = match &node.directory {
            Directory::Basic(basic) => return basic.get(name).copied(),
            Directory::Shard(shard) => shard,
        };
        let hash = NameHash::of(name);
        let mut place = Place::root(shard.fanout());
        let mut slot = shard.get(hash.position(place)).cloned();
        while let Some(Slot::Sub(entry)) = slot {
            place = place.below(hash.position(place))?;
            let sub = self.old_node(Some(&entry.cid)).await?;
            let shard = shard_of(&sub).filter(|shard| shard.fanout() == place.fanout())?;
            slot = shard.get(hash.position(place)).cloned();
        }
        match slot {
            Some(Slot::Value(other, entry)) if other == name => Some(entry),
            _ => None,
        }
    }
}

/// A node of the new tree to be fetched, and what the old tree has in its place.
#[derive(Clone, Copy)]
struct Visit {
    cid: Cid,
    /// The directory that the node is, or is a part of, in the old tree: its first node.
    old_directory: Option<Cid>,
    /// The same node in the old tree.
    old_node: Option<Cid>,
}

impl Visit {
    /// The visit of a sub-shard, unless the old one is the same.
    fn sub_shard(&self, entry: &Entry, old: Option<&Slot>) -> Option<Self> {
        let old_node = match old {
            Some(Slot::Sub(old)) => Some(old.cid),
            Some(Slot::Value(..)) | None => None,
        };
        (old_node != Some(entry.cid)).then_some(Self {
            cid: entry.cid,
            old_directory: self.old_directory,
            old_node,
        })
    }
}

/// The smallest names behind a given one.
struct Page<'a> {
    /// The largest on top, at most `limit`.
    smallest: BinaryHeap<String>,
    after: Option<&'a str>,
    limit: usize,
    more: bool,
}

impl Page<'_> {
    fn offer(&mut self, name: &str) {
        if self.after.is_some_and(|after| name <= after) {
            return;
        }
        if self.smallest.len() < self.limit {
            self.smallest.push(name.to_owned());
            return;
        }
        self.more = true;
        if let Some(mut largest) = self.smallest.peek_mut()
            && name < largest.as_str()
        {
            *largest = name.to_owned();
        }
    }

    /// Offers the names in a node that lie where their hashes say; returns its sub-shards.
    fn visit(&mut self, shard: &HamtNode, place: Place) -> Result<Vec<(Cid, Place)>, DagError> {
        let mut subs = Vec::new();
        for (position, slot) in shard.slots() {
            match slot {
                Slot::Sub(entry) => subs.push((entry.cid, below(&entry.cid, place, *position)?)),
                Slot::Value(name, _) => {
                    if is_listed(name) && place.holds(NameHash::of(name), *position) {
                        self.offer(name);
                    }
                }
            }
        }
        Ok(subs)
    }

    fn finish(self) -> Listing {
        Listing { names: self.smallest.into_sorted_vec(), more: self.more }
    }
}

/// Whether a path can have such a component.
pub(super) fn is_listed(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/')
}
