//! What visits many nodes of a tree: listing a directory, and fetching what a new root adds to an old one.

use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cid::Cid;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::DagError;
use super::tree::{Entry, NODES_AT_ONCE, Node, Tree, below, invalid, shard_of};
use crate::ipfs::Want;
use crate::ipld::block::DAG_PB;
use crate::ipld::directory::Directory;
use crate::ipld::hamt::{HamtNode, NameHash, Place, Slot};

/// The most nodes of one sharded directory that are visited to list it: enough for a million names, where Kubo's
/// shards have some 70,000.
const LIST_NODES_MAX: usize = 131_072;

/// What the nodes that are fetched of a tree may have on average, in bytes; most have a few hundred.
const FETCHED_NODE_BYTES_MEAN_MAX: usize = 8 * 1024;
/// Some of them are large in any tree.
const FETCHED_BYTES_MIN: usize = 8 << 20;

/// What may be remembered of the names below one node, in bytes.
const NAMES_BELOW_BYTES_MAX: usize = 1 << 20;

/// What a name takes beside its characters, in bytes.
const NAME_BYTES: usize = 32;

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
    /// sharded directory does not lead to. Takes memory for some `limit` names. All shards of the directory are visited the
    /// first time; of one that was listed before, only those below the nodes that have changed. May be dropped midway.
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
        let mut page = Page::new(after, limit);
        match &node.directory {
            // Already sorted: what follows a full page is not looked at.
            Directory::Basic(basic) => {
                let names = basic.entries_after(after).iter().map(|(name, _)| name);
                for name in names.filter(|name| is_listed(name)).take(limit.saturating_add(1)) {
                    page.offer(name);
                }
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
        let place = Place::root(shard.fanout());
        for name in names_in(shard, place) {
            page.offer(name);
        }
        let (after, limit, visited) = (page.after, page.limit, AtomicUsize::new(1));
        let mut waiting = subs_of(shard, place)?;
        let mut reading = FuturesUnordered::new();
        loop {
            while reading.len() < NODES_AT_ONCE
                && let Some(sub) = waiting.pop()
            {
                reading.push(self.names_below(root, &top.entry.cid, sub, Page::new(after, limit), &visited));
            }
            match reading.next().await.transpose()? {
                Some(Below::All(names)) => page.offer_sorted(&names),
                Some(Below::Smallest(smallest)) => page.offer_page(smallest),
                None => return Ok(()),
            }
        }
    }

    /// The names in a sub-shard of the directory `top` and below it. They depend on nothing but its CID and place, so an
    /// edit leaves what is remembered of all sub-shards but the one it is in.
    async fn names_below<'a>(
        &self,
        root: &Cid,
        top: &Cid,
        sub: (Cid, Place),
        page: Page<'a>,
        visited: &AtomicUsize,
    ) -> Result<Below<'a>, DagError> {
        if let Some(names) = self.names.get(&sub).await {
            return Ok(Below::All(names));
        }
        let mut gathered = Gathered { names: Vec::new(), bytes: 0, page };
        // A stack, so that what waits is bounded by the depth and not by the width of the directory.
        let mut waiting = vec![sub];
        while let Some((cid, place)) = waiting.pop() {
            if visited.fetch_add(1, Ordering::Relaxed) >= LIST_NODES_MAX {
                return Err(invalid(top, "a directory with more shards than are read"));
            }
            let node = self.sub_shard(root, &cid, place).await?;
            if let Some(shard) = shard_of(&node) {
                names_in(shard, place).for_each(|name| gathered.push(name));
                waiting.extend(subs_of(shard, place)?);
            }
        }
        let below = gathered.finish();
        if let Below::All(names) = &below {
            self.names.insert(sub, names.clone()).await;
        }
        Ok(below)
    }

    /// Fetches the directory nodes below `new` that are not below `old`, and the root nodes of files that are not raw,
    /// since only the node says what it is; not what the files consist of. What is below `old` is taken to be here.
    /// `Ok(true)`: all are here; `Ok(false)`: `nodes_max` were visited, or they had more than 8 KiB each on average, and
    /// there are more. A node below `new` that is
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
        let mut left_bytes = nodes_max.saturating_mul(FETCHED_NODE_BYTES_MEAN_MAX).max(FETCHED_BYTES_MIN);
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
            let (size_bytes, next) = next?;
            let Some(left) = left_bytes.checked_sub(size_bytes) else { return Ok(false) };
            left_bytes = left;
            for visit in next {
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

    /// Fetches a node; returns its size in bytes, and what to visit below it.
    async fn visit(&self, root: &Cid, visit: Visit) -> Result<(usize, Vec<Visit>), DagError> {
        if visit.cid.codec() != DAG_PB {
            return Ok((0, Vec::new()));
        }
        let block = self.blocks().fetch(Want { cid: visit.cid, root: *root }).await?;
        let size_bytes = block.bytes().len();
        let node = match self.node(root, &visit.cid).await {
            Ok(Some(node)) => node,
            Ok(None) => return Ok((size_bytes, Vec::new())),
            Err(DagError::Format(_)) if visit.cid != *root => return Ok((size_bytes, Vec::new())),
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
        Ok((size_bytes, next))
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

/// The names of a node that lie where their hashes say.
fn names_in(shard: &HamtNode, place: Place) -> impl Iterator<Item = &str> {
    shard.slots().iter().filter_map(move |(position, slot)| match slot {
        Slot::Value(name, _) => {
            (is_listed(name) && place.holds(NameHash::of(name), *position)).then_some(name.as_str())
        }
        Slot::Sub(_) => None,
    })
}

fn subs_of(shard: &HamtNode, place: Place) -> Result<Vec<(Cid, Place)>, DagError> {
    let mut subs = Vec::new();
    for (position, slot) in shard.slots() {
        if let Slot::Sub(entry) = slot {
            subs.push((entry.cid, below(&entry.cid, place, *position)?));
        }
    }
    Ok(subs)
}

/// Names, sorted.
pub(super) type Names = Arc<[Box<str>]>;

/// What a list of names takes in memory, in bytes.
pub(super) fn names_bytes(names: &Names) -> usize {
    names.iter().map(|name| name.len() + NAME_BYTES).sum()
}

/// The names below a node: all of them, or, where they are too many, those that may belong to the page.
enum Below<'a> {
    All(Names),
    Smallest(Page<'a>),
}

/// Names as they are found: all of them until they are too many, from then on those of the page.
struct Gathered<'a> {
    names: Vec<Box<str>>,
    bytes: usize,
    page: Page<'a>,
}

impl<'a> Gathered<'a> {
    fn push(&mut self, name: &str) {
        self.bytes = self.bytes.saturating_add(name.len() + NAME_BYTES);
        if self.bytes <= NAMES_BELOW_BYTES_MAX {
            self.names.push(name.into());
            return;
        }
        for name in std::mem::take(&mut self.names) {
            self.page.offer(&name);
        }
        self.page.offer(name);
    }

    fn finish(mut self) -> Below<'a> {
        if self.bytes > NAMES_BELOW_BYTES_MAX {
            return Below::Smallest(self.page);
        }
        self.names.sort_unstable();
        Below::All(self.names.into())
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

impl<'a> Page<'a> {
    fn new(after: Option<&'a str>, limit: usize) -> Self {
        Self { smallest: BinaryHeap::new(), after, limit, more: false }
    }

    /// Takes a name in if it belongs to the page as far as is known; says whether it does.
    fn offer(&mut self, name: &str) -> bool {
        if self.after.is_some_and(|after| name <= after) {
            return false;
        }
        if self.smallest.len() < self.limit {
            self.smallest.push(name.to_owned());
            return true;
        }
        self.more = true;
        match self.smallest.peek_mut() {
            Some(mut largest) if name < largest.as_str() => {
                *largest = name.to_owned();
                true
            }
            _ => false,
        }
    }

    /// Behind the first that does not belong to the page, none does.
    fn offer_sorted(&mut self, names: &[Box<str>]) {
        let first = self.after.map_or(0, |after| names.partition_point(|name| **name <= *after));
        for name in &names[first..] {
            if !self.offer(name) {
                return;
            }
        }
    }

    fn offer_page(&mut self, other: Self) {
        self.more |= other.more;
        for name in other.smallest {
            self.offer(&name);
        }
    }

    fn finish(self) -> Listing {
        Listing { names: self.smallest.into_sorted_vec(), more: self.more }
    }
}

/// Whether a path can have such a component.
pub(super) fn is_listed(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_too_many_to_be_remembered_still_make_a_page() {
        let name = |n: usize| format!("{n:0200}");
        let count = 2 * NAMES_BELOW_BYTES_MAX / 232;
        let mut gathered = Gathered { names: Vec::new(), bytes: 0, page: Page::new(None, 3) };
        (0..count).rev().for_each(|n| gathered.push(&name(n)));
        assert!(gathered.names.is_empty());
        let Below::Smallest(smallest) = gathered.finish() else { panic!("all were remembered") };
        let mut page = Page::new(None, 4);
        page.offer("1");
        page.offer_page(smallest);
        let listing = page.finish();
        assert_eq!(listing.names, [name(0), name(1), name(2), "1".to_owned()]);
        assert!(listing.more);
    }
}
