//! Edits of a tree: a new root from an old one, at the cost of the paths that change.
//!
//! What comes out depends on the entries alone, not on the order in which they came: a directory is one block while
//! that has at most 256 KiB, and sharded above; a sub-shard is there only where several names meet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use cid::Cid;
use futures::future::{BoxFuture, try_join_all};

use super::DagError;
use super::tree::{Entry, NODES_AT_ONCE, Node, Tree, below, invalid, shard_of};
use super::tree_list::is_listed;
use crate::ipld::Block;
use crate::ipld::block::BLOCK_BYTES_MAX;
use crate::ipld::directory::{Basic, Change, Directory, EMPTY_BYTES, LINK_BYTES_MIN, link_bytes};
use crate::ipld::hamt::{Fanout, HamtNode, NameHash, Place, Slot};

/// The longest component of an edit's path, in bytes: what file systems take, so that a tree can be copied to one.
const NAME_BYTES_MAX: usize = 255;

/// How many new nodes are held in memory before they are written.
const NODES_PENDING_MAX: usize = 512;

/// A new state of the entry at a path: what it shall be, or `None` for no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Components separated by `/`, each at most 255 bytes.
    pub path: String,
    pub to: Option<Entry>,
}

impl Tree {
    /// Applies the edits in their order and returns the new root. Directories that are missing on the way to an entry
    /// are made; those that become empty stay; removing what is not there, or is below no directory, does nothing. Fails if
    /// a path is malformed or leads through a file, and where more names meet in a shard than their hashes tell apart.
    /// The new nodes are in the store, not flushed. Dropped midway, nodes without a root may be left there.
    pub async fn edit(&self, root: &Cid, edits: &[Edit]) -> Result<Entry, DagError> {
        let plan = Plan::new(root, edits)?;
        let mut work = Work { tree: self, root, pending: Vec::new() };
        let entry = work.apply(&plan).await?;
        work.write().await?;
        Ok(entry)
    }
}

/// Edits as a tree, in which later ones have replaced earlier ones.
struct Plan {
    /// The root first; parents before children.
    nodes: Vec<Planned>,
}

#[derive(Default)]
struct Planned {
    /// What takes the place of what is there, before the children are looked at.
    to: Option<Option<Entry>>,
    children: BTreeMap<String, usize>,
    /// Whether an entry was set below, so that this is a directory.
    made: bool,
}

impl Plan {
    fn new(root: &Cid, edits: &[Edit]) -> Result<Self, DagError> {
        let mut nodes = vec![Planned::default()];
        for edit in edits {
            let mut at = 0;
            for name in edit.path.split('/') {
                if !is_listed(name) || name.len() > NAME_BYTES_MAX {
                    return Err(invalid(root, "an edit of a path with an unusable component"));
                }
                nodes[at].made |= edit.to.is_some();
                at = match nodes[at].children.get(name) {
                    Some(child) => *child,
                    None => {
                        let child = nodes.len();
                        nodes[at].children.insert(name.to_owned(), child);
                        nodes.push(Planned::default());
                        child
                    }
                };
            }
            nodes[at] = Planned { to: Some(edit.to), ..Planned::default() };
        }
        Ok(Self { nodes })
    }
}

/// What is at a planned node before the edits below it.
#[derive(Default)]
struct Before {
    entry: Option<Entry>,
    directory: Option<Arc<Node>>,
    /// Not below anything that was replaced or is missing.
    reached: bool,
}

/// An edit under way.
struct Work<'a> {
    tree: &'a Tree,
    root: &'a Cid,
    pending: Vec<(Block, Arc<Node>)>,
}

impl Work<'_> {
    async fn apply(&mut self, plan: &Plan) -> Result<Entry, DagError> {
        let before = self.load(plan).await?;
        let mut after: Vec<Option<Entry>> = vec![None; plan.nodes.len()];
        // Children come behind their parents.
        for (at, (planned, before)) in plan.nodes.iter().zip(before).enumerate().rev() {
            if !before.reached {
                continue;
            }
            after[at] = if before.directory.is_some() || before.entry.is_none() && planned.made {
                let change =
                    |(name, child): (&String, &usize)| Change { name: name.clone(), to: after[*child] };
                let changes = planned.children.iter().map(change).collect::<Vec<_>>();
                let changed = self.change(before.directory, &changes).await?;
                changed.or(before.entry)
            } else {
                before.entry
            };
            if self.pending.len() >= NODES_PENDING_MAX {
                self.write().await?;
            }
        }
        after[0].ok_or_else(|| invalid(self.root, "an edit of what is no directory"))
    }

    /// Reads the directories that the plan leads through.
    async fn load(&self, plan: &Plan) -> Result<Vec<Before>, DagError> {
        let mut before: Vec<_> = plan.nodes.iter().map(|_| Before::default()).collect();
        let Some(root) = self.tree.node(self.root, self.root).await? else {
            return Err(invalid(self.root, "an edit of what is no directory"));
        };
        before[0] = Before { entry: Some(root.entry), directory: None, reached: true };
        for (at, planned) in plan.nodes.iter().enumerate() {
            if !before[at].reached || planned.children.is_empty() {
                continue;
            }
            let directory = match before[at].entry {
                Some(entry) => self.tree.node(self.root, &entry.cid).await?,
                None => None,
            };
            if let (None, Some(entry)) = (&directory, before[at].entry) {
                if planned.made {
                    return Err(invalid(&entry.cid, "an edit of a path that leads through a file"));
                }
                continue;
            }
            for (name, child) in &planned.children {
                let entry = match (plan.nodes[*child].to, &directory) {
                    (Some(to), _) => to,
                    (None, Some(directory)) => self.tree.find(self.root, directory, name).await?,
                    (None, None) => None,
                };
                before[*child] = Before { entry, directory: None, reached: true };
            }
            before[at].directory = directory;
        }
        Ok(before)
    }

    /// Makes the changes, which are sorted by name, in a directory given by its first node, or in a new one. `None`:
    /// it is as it was.
    async fn change(
        &mut self,
        directory: Option<Arc<Node>>,
        changes: &[Change],
    ) -> Result<Option<Entry>, DagError> {
        let Some(node) = directory else {
            return self.add_directory(Basic::default().with(changes)).map(Some);
        };
        match &node.directory {
            Directory::Basic(basic) => {
                let changed = basic.with(changes);
                if changed == *basic { Ok(None) } else { self.add_directory(changed).map(Some) }
            }
            Directory::Shard(shard) => self.change_shards(shard, changes).await,
        }
    }

    /// A directory with these entries, in one block if it fits.
    fn add_directory(&mut self, basic: Basic) -> Result<Entry, DagError> {
        if basic.size_bytes() <= self.tree.directory_bytes_max {
            return self.add(Directory::Basic(basic));
        }
        let entries = basic.into_entries().into_iter().map(|(name, entry)| Hashed::new(name, entry));
        let node = self.shards(entries.collect(), Place::root(Fanout::F256))?;
        self.add(Directory::Shard(node))
    }

    async fn change_shards(
        &mut self,
        shard: &HamtNode,
        changes: &[Change],
    ) -> Result<Option<Entry>, DagError> {
        let kept = self.pending.len();
        let mut hashed: Vec<_> =
            changes.iter().map(|change| Hashed::new(change.name.clone(), change.to)).collect();
        hashed.sort_by_key(|change| change.hash);
        let mut growth = Growth::default();
        let changed =
            self.change_shard(shard.clone(), hashed, Place::root(shard.fanout()), &mut growth).await?;
        if !growth.changed {
            self.pending.truncate(kept);
            return Ok(None);
        }
        // A directory that was too large for one block and grew is still too large.
        if growth.bytes < 0
            && let Some(entries) = self.entries_that_fit(shard, growth.bytes.unsigned_abs()).await?
        {
            self.pending.truncate(kept);
            return self.add_directory(Basic::from_entries(entries).with(changes)).map(Some);
        }
        self.add(Directory::Shard(changed)).map(Some)
    }

    /// Makes the changes, sorted by hash, in one node and those below.
    fn change_shard<'s>(
        &'s mut self,
        mut shard: HamtNode,
        changes: Vec<Hashed<Option<Entry>>>,
        place: Place,
        growth: &'s mut Growth,
    ) -> BoxFuture<'s, Result<HamtNode, DagError>> {
        Box::pin(async move {
            for (position, changes) in by_position(changes, place) {
                let slot = match shard.get(position).cloned() {
                    Some(Slot::Sub(entry)) => {
                        let place = below(&entry.cid, place, position)?;
                        let sub = self.tree.sub_shard(self.root, &entry.cid, place).await?;
                        let Some(sub) = shard_of(&sub).cloned() else { continue };
                        let changed = self.change_shard(sub, changes, place, growth).await?;
                        self.settle(changed)?
                    }
                    Some(Slot::Value(name, entry)) => {
                        let old = Hashed::new(name, entry);
                        if !place.holds(old.hash, position) {
                            return Err(misplaced(&entry.cid));
                        }
                        let entries = growth.merge(Some(old), changes);
                        self.slot(entries, place, position)?
                    }
                    None => self.slot(growth.merge(None, changes), place, position)?,
                };
                shard.set(position, slot);
            }
            Ok(shard)
        })
    }

    /// The node at `place` for these entries; writes those below it.
    fn shards(&mut self, mut entries: Vec<Hashed<Entry>>, place: Place) -> Result<HamtNode, DagError> {
        entries.sort_by_key(|entry| entry.hash);
        let mut shard = HamtNode::new(place.fanout());
        for (position, entries) in by_position(entries, place) {
            shard.set(position, self.slot(entries, place, position)?);
        }
        Ok(shard)
    }

    /// What stands at a position where these entries meet.
    fn slot(
        &mut self,
        mut entries: Vec<Hashed<Entry>>,
        place: Place,
        position: u16,
    ) -> Result<Option<Slot>, DagError> {
        if entries.len() > 1 {
            let sub = self.shards(entries, below(self.root, place, position)?)?;
            return self.settle(sub);
        }
        Ok(entries.pop().map(|entry| Slot::Value(entry.name, entry.to)))
    }

    /// What stands for a sub-shard in its parent: a single name needs none.
    fn settle(&mut self, shard: HamtNode) -> Result<Option<Slot>, DagError> {
        match shard.slots() {
            [] => Ok(None),
            [(_, value @ Slot::Value(..))] => Ok(Some(value.clone())),
            _ => Ok(Some(Slot::Sub(self.add(Directory::Shard(shard))?))),
        }
    }

    /// All entries of a sharded directory, if they take at most `shrunk_bytes` more than fits into one block. Reads no
    /// more than it needs to know that they do not.
    async fn entries_that_fit(
        &self,
        shard: &HamtNode,
        shrunk_bytes: u64,
    ) -> Result<Option<Vec<(String, Entry)>>, DagError> {
        let bytes_max = self.tree.directory_bytes_max.saturating_add(shrunk_bytes);
        let mut census = Census { bytes: EMPTY_BYTES, entries: Vec::new(), waiting: VecDeque::new() };
        census.count(shard, Place::root(shard.fanout()))?;
        while !census.waiting.is_empty() {
            if census.bytes_min() > bytes_max {
                return Ok(None);
            }
            let next = census.waiting.len().min(NODES_AT_ONCE);
            let read = census.waiting.drain(..next).map(async |(cid, place)| {
                Ok::<_, DagError>((self.tree.sub_shard(self.root, &cid, place).await?, place))
            });
            for (node, place) in try_join_all(read).await? {
                if let Some(shard) = shard_of(&node) {
                    census.count(shard, place)?;
                }
            }
        }
        Ok((census.bytes <= bytes_max).then_some(census.entries))
    }

    fn add(&mut self, directory: Directory) -> Result<Entry, DagError> {
        let block = directory.encode();
        if block.bytes().len() > BLOCK_BYTES_MAX {
            return Err(invalid(self.root, "an edit that makes a directory node larger than a block may be"));
        }
        let node = Node::new(directory, &block);
        let entry = node.entry;
        self.pending.push((block, Arc::new(node)));
        Ok(entry)
    }

    async fn write(&mut self) -> Result<(), DagError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (blocks, nodes): (Vec<_>, Vec<_>) = self.pending.drain(..).unzip();
        self.tree.blocks().put(blocks).await?;
        for node in nodes {
            self.tree.keep(node).await;
        }
        Ok(())
    }
}

/// An entry, or a change of one, with the hash of its name.
struct Hashed<T> {
    hash: NameHash,
    name: String,
    to: T,
}

impl<T> Hashed<T> {
    fn new(name: String, to: T) -> Self {
        Self { hash: NameHash::of(&name), name, to }
    }
}

/// Groups what is sorted by hash by its position in a node.
fn by_position<T>(sorted: Vec<Hashed<T>>, place: Place) -> Vec<(u16, Vec<Hashed<T>>)> {
    let mut groups: Vec<(u16, Vec<_>)> = Vec::new();
    for item in sorted {
        let position = item.hash.position(place);
        match groups.last_mut() {
            Some((last, group)) if *last == position => group.push(item),
            _ => groups.push((position, vec![item])),
        }
    }
    groups
}

/// How a sharded directory changes in size.
#[derive(Default)]
struct Growth {
    /// Of the block that the whole directory would be.
    bytes: i64,
    changed: bool,
}

impl Growth {
    /// The entries at a position after the changes.
    fn merge(
        &mut self,
        old: Option<Hashed<Entry>>,
        changes: Vec<Hashed<Option<Entry>>>,
    ) -> Vec<Hashed<Entry>> {
        let mut old = old;
        let mut entries = Vec::with_capacity(changes.len() + 1);
        for change in changes {
            let before = old.take_if(|old| old.name == change.name).map(|old| old.to);
            self.changed |= before != change.to;
            self.bytes -= before.map_or(0, |entry| link_bytes(&change.name, &entry).cast_signed());
            if let Some(to) = change.to {
                self.bytes += link_bytes(&change.name, &to).cast_signed();
                entries.push(Hashed { hash: change.hash, name: change.name, to });
            }
        }
        entries.extend(old);
        entries
    }
}

/// A count of the entries of a sharded directory under way.
struct Census {
    /// The block that the entries found so far would be.
    bytes: u64,
    entries: Vec<(String, Entry)>,
    /// Sub-shards not yet read.
    waiting: VecDeque<(Cid, Place)>,
}

impl Census {
    fn count(&mut self, shard: &HamtNode, place: Place) -> Result<(), DagError> {
        for (position, slot) in shard.slots() {
            match slot {
                Slot::Sub(entry) => self.waiting.push_back((entry.cid, below(&entry.cid, place, *position)?)),
                Slot::Value(name, entry) => {
                    if !place.holds(NameHash::of(name), *position) {
                        return Err(misplaced(&entry.cid));
                    }
                    self.bytes += link_bytes(name, entry);
                    self.entries.push((name.clone(), *entry));
                }
            }
        }
        Ok(())
    }

    /// At least so many bytes it will be: two names meet in each sub-shard.
    fn bytes_min(&self) -> u64 {
        self.bytes + 2 * LINK_BYTES_MIN * self.waiting.len() as u64
    }
}

fn misplaced(cid: &Cid) -> DagError {
    invalid(cid, "a shard with an entry that is not where its name's hash says")
}
