//! Files as streams: written chunk by chunk, read in order with several blocks in flight.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, BoxStream, FuturesOrdered};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use super::{Blocks, DagError, Keep};
use crate::ipfs::Want;
use crate::ipld::block::{BLOCK_BYTES_MAX, RAW};
use crate::ipld::file_builder::{Balanced, Chunker, Leaf};
use crate::ipld::unixfs::{File, FileChild, UnixFs};
use crate::ipld::{Block, Cid};
use crate::store::{Blockstore, StoreError};

pub use crate::ipld::file_builder::FileRoot;

/// Leaves of one writer that are hashed and written at once.
const LEAVES_IN_FLIGHT_MAX: usize = 3;
/// Nodes above the leaves that wait to be written.
const NODES_PENDING_MAX: usize = 16;
/// What one reader keeps in flight.
const READ_AHEAD_BYTES: u64 = 12 << 20;
/// The same in blocks: at least, so that a round trip is covered, and at most.
const READ_AHEAD_BLOCKS: (u64, u64) = (4, 48);
/// Blocks in flight of a file that is here whole: enough to keep the socket busy, few enough to stay in the caches of
/// the processor.
const READ_AHEAD_LOCAL_BLOCKS: u64 = 3;
/// Nodes and leaves that a part no larger than a block may consist of: a leaf for each 32 bytes.
const PARTS_PER_PIECE_MAX: usize = 65_536;
/// Levels of a file. A balanced one of 2 EiB has seven.
const DEPTH_MAX: usize = 64;

/// Writes a file as its bytes come: leaves are hashed and stored on blocking threads, a few at a time, which holds back
/// whoever writes. Nothing is durable before [`Blocks::flush`]; a writer that is dropped leaves blocks that nothing names.
pub struct FileWriter {
    blocks: Blocks,
    chunker: Chunker,
    waiting: VecDeque<Leaf>,
    in_flight: FuturesOrdered<JoinHandle<Result<FileRoot, StoreError>>>,
    dag: Balanced,
    nodes: Vec<Block>,
    /// The leaves that are in the DAG, in their order.
    leaves: Vec<Cid>,
    keep: Keep,
}

impl FileWriter {
    /// What is written is kept for as long as the writer, or a clone of its [`FileWriter::keep`], lives.
    pub fn new(blocks: &Blocks) -> Self {
        Self {
            blocks: blocks.clone(),
            chunker: Chunker::default(),
            waiting: VecDeque::new(),
            in_flight: FuturesOrdered::new(),
            dag: Balanced::default(),
            nodes: Vec::new(),
            leaves: Vec::new(),
            keep: blocks.keep(),
        }
    }

    pub fn keep(&self) -> &Keep {
        &self.keep
    }

    /// Takes in a leaf that is here already, behind whole leaves only.
    pub fn adopt(&mut self, leaf: FileRoot) {
        self.keep.add(leaf.cid);
        self.push(leaf);
    }

    /// Puts all that was fed into the store: from then on [`FileWriter::leaves`] are all whole leaves, and the CID that is
    /// returned is the block of what is behind them. Not durable before [`Blocks::flush`].
    pub async fn checkpoint(&mut self) -> Result<Option<Cid>, DagError> {
        self.settle().await?;
        while !self.in_flight.is_empty() {
            self.collect().await?;
        }
        let tail = self.chunker.open();
        if tail.size_bytes() == 0 {
            return Ok(None);
        }
        let stored = store_leaf(self.blocks.store().clone(), tail.clone(), self.keep.clone()).await;
        Ok(Some(stored.map_err(|_| DagError::Cancelled("writing a leaf"))??.cid))
    }

    /// What is behind the whole leaves, in the parts in which it came.
    pub fn open_parts(&self) -> &[Bytes] {
        self.chunker.open().parts()
    }

    pub fn leaves(&self) -> &[Cid] {
        &self.leaves
    }

    fn push(&mut self, leaf: FileRoot) {
        self.leaves.push(leaf.cid);
        let (nodes, keep) = (&mut self.nodes, &self.keep);
        self.dag.push(leaf, |node| {
            keep.add(*node.cid());
            nodes.push(node);
        });
    }

    /// Takes bytes in without waiting; [`FileWriter::settle`] must follow before the next.
    pub fn feed(&mut self, bytes: Bytes) {
        self.chunker.push(bytes, |leaf| self.waiting.push_back(leaf));
    }

    /// Waits until few leaves are under way. May be dropped midway: what was fed stays fed.
    pub async fn settle(&mut self) -> Result<(), DagError> {
        while let Some(leaf) = self.waiting.pop_front() {
            let job = store_leaf(self.blocks.store().clone(), leaf, self.keep.clone());
            self.in_flight.push_back(job);
            while self.in_flight.len() >= LEAVES_IN_FLIGHT_MAX {
                self.collect().await?;
            }
        }
        if self.nodes.len() >= NODES_PENDING_MAX {
            self.blocks.put(self.nodes.clone()).await?;
            self.nodes.clear();
        }
        Ok(())
    }

    /// Takes the oldest leaf under way into the DAG.
    async fn collect(&mut self) -> Result<(), DagError> {
        if let Some(stored) = self.in_flight.next().await {
            let leaf = stored.map_err(|_| DagError::Cancelled("writing a leaf"))??;
            self.push(leaf);
        }
        Ok(())
    }

    /// [`FileWriter::feed`] and [`FileWriter::settle`] in one.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), DagError> {
        self.feed(bytes);
        self.settle().await
    }

    /// Closes the file; all of its blocks are in the store, not yet durable.
    pub async fn finish(mut self) -> Result<FileRoot, DagError> {
        self.settle().await?;
        if let Some(last) = std::mem::take(&mut self.chunker).finish() {
            self.in_flight.push_back(store_leaf(self.blocks.store().clone(), last, self.keep.clone()));
        }
        while !self.in_flight.is_empty() {
            self.collect().await?;
        }
        let root = self.dag.finish(|node| self.nodes.push(node));
        if root.size_bytes == 0 {
            self.nodes.push(Block::encode(RAW, Bytes::new()));
        }
        self.nodes.iter().for_each(|node| self.keep.add(*node.cid()));
        self.blocks.put(self.nodes).await?;
        Ok(root)
    }
}

fn store_leaf(store: Blockstore, leaf: Leaf, keep: Keep) -> JoinHandle<Result<FileRoot, StoreError>> {
    tokio::task::spawn_blocking(move || {
        let (cid, size_bytes) = (leaf.cid(), leaf.size_bytes() as u64);
        keep.add(cid);
        store.put(cid.hash(), leaf.parts())?;
        Ok(FileRoot { cid, size_bytes, tsize: size_bytes })
    })
}

/// The size of a file in bytes; fetches its root node.
pub async fn file_size(blocks: &Blocks, cid: &Cid, session_root: &Cid) -> Result<u64, DagError> {
    Ok(fetch_file(blocks, *cid, *session_root).await?.size_bytes())
}

/// Where the blocks of a file are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// All here.
    Local,
    /// Some have to be fetched.
    Network,
}

/// Streams `range` of the file at `root`, of whatever layout, in order, with up to 12 MiB in flight. What lies before
/// the range is not fetched. Dropping the stream withdraws what it waits for.
pub fn read(
    blocks: &Blocks,
    root: Cid,
    session_root: Cid,
    range: Range<u64>,
    expected: Expected,
) -> BoxStream<'static, Result<Bytes, DagError>> {
    if range.is_empty() {
        return stream::empty().boxed();
    }
    let blocks = blocks.clone();
    async move {
        let file = fetch_file(&blocks, root, session_root).await?;
        if range.end > file.size_bytes() {
            return Err(DagError::Invalid {
                cid: Box::new(root),
                what: "a range behind the end was asked for",
            });
        }
        // No piece is larger than the largest child; a first one that is small promises nothing of the others.
        let block_bytes = file.children.iter().map(|child| child.size_bytes).max().unwrap_or(1).max(1);
        let (least, most) = READ_AHEAD_BLOCKS;
        let in_flight = match expected {
            Expected::Local => READ_AHEAD_LOCAL_BLOCKS,
            Expected::Network => {
                (READ_AHEAD_BYTES / block_bytes.min(BLOCK_BYTES_MAX as u64)).clamp(least, most)
            }
        };
        let walk = Walk::new(blocks.clone(), session_root, root, file, range);
        let pieces = stream::try_unfold(walk, Walk::next);
        let read = move |piece: Piece| read_piece(blocks.clone(), session_root, piece);
        Ok(pieces.map_ok(read).try_buffered(usize::try_from(in_flight).unwrap_or(1)))
    }
    .into_stream()
    .try_flatten()
    .try_filter(|bytes| std::future::ready(!bytes.is_empty()))
    .boxed()
}

async fn fetch_file(blocks: &Blocks, cid: Cid, session_root: Cid) -> Result<File, DagError> {
    let block = blocks.fetch(Want { cid, root: session_root }).await?;
    match UnixFs::decode(&block)? {
        UnixFs::File(file) => Ok(file),
        UnixFs::Directory(_) | UnixFs::Shard(_) | UnixFs::Symlink(_) => Err(DagError::Invalid {
            cid: Box::new(cid),
            what: "a file was expected, not a directory or symlink",
        }),
    }
}

/// Fetches a part of a file and holds it to the size that its parent states.
async fn fetch_part(blocks: &Blocks, session_root: Cid, part: &Part) -> Result<File, DagError> {
    if part.depth > DEPTH_MAX {
        return Err(DagError::Invalid { cid: Box::new(part.cid), what: "the file is too deep" });
    }
    let file = fetch_file(blocks, part.cid, session_root).await?;
    if file.size_bytes() != part.size_bytes {
        return Err(DagError::Invalid {
            cid: Box::new(part.cid),
            what: "the size is not what the parent states",
        });
    }
    Ok(file)
}

/// A part of a file that lies, at least partly, within the range.
struct Part {
    cid: Cid,
    size_bytes: u64,
    /// Where it begins in the file.
    at: u64,
    depth: usize,
}

/// What the walk hands over to be read.
enum Piece {
    /// Bytes that a node carried itself.
    Bytes(Bytes),
    /// A part no larger than a block, and what is wanted of it.
    Part(Part, Range<u64>),
}

/// Walks the nodes of a file in order, as far as needed to name the pieces of a range.
struct Walk {
    blocks: Blocks,
    session_root: Cid,
    range: Range<u64>,
    /// What is still to come, the next one last.
    stack: Vec<Step>,
}

enum Step {
    Bytes { bytes: Bytes, at: u64 },
    Part(Part),
}

impl Walk {
    fn new(blocks: Blocks, session_root: Cid, root: Cid, file: File, range: Range<u64>) -> Self {
        let mut walk = Self { blocks, session_root, range, stack: Vec::new() };
        walk.expand(file, &Part { cid: root, size_bytes: 0, at: 0, depth: 0 });
        walk
    }

    /// Puts what a node consists of onto the stack; parts outside of the range, and empty ones, are left out.
    fn expand(&mut self, file: File, node: &Part) {
        let mut steps = Vec::with_capacity(file.children.len() + 1);
        let mut at = node.at;
        let data_bytes = file.data.len() as u64;
        steps.push(Step::Bytes { bytes: file.data, at });
        at += data_bytes;
        for FileChild { cid, size_bytes, .. } in file.children {
            if size_bytes > 0 && overlaps(&self.range, at, size_bytes) {
                steps.push(Step::Part(Part { cid, size_bytes, at, depth: node.depth + 1 }));
            }
            at += size_bytes;
        }
        self.stack.extend(steps.into_iter().rev());
    }

    async fn next(mut self) -> Result<Option<(Piece, Self)>, DagError> {
        while let Some(step) = self.stack.pop() {
            match step {
                Step::Bytes { bytes, at } => {
                    let wanted = within(&self.range, at, bytes.len() as u64);
                    if !wanted.is_empty() {
                        return Ok(Some((Piece::Bytes(slice(&bytes, &wanted)), self)));
                    }
                }
                Step::Part(part) if part.cid.codec() == RAW || part.size_bytes <= BLOCK_BYTES_MAX as u64 => {
                    let wanted = within(&self.range, part.at, part.size_bytes);
                    return Ok(Some((Piece::Part(part, wanted), self)));
                }
                Step::Part(part) => {
                    let file = fetch_part(&self.blocks, self.session_root, &part).await?;
                    self.expand(file, &part);
                }
            }
        }
        Ok(None)
    }
}

async fn read_piece(blocks: Blocks, session_root: Cid, piece: Piece) -> Result<Bytes, DagError> {
    read_parts(&blocks, session_root, piece, &mut 0).await
}

/// Reads a piece and what lies below it. `parts` counts what was fetched for all of it.
async fn read_parts(
    blocks: &Blocks,
    session_root: Cid,
    piece: Piece,
    parts: &mut usize,
) -> Result<Bytes, DagError> {
    let (part, wanted) = match piece {
        Piece::Bytes(bytes) => return Ok(bytes),
        Piece::Part(part, wanted) => (part, wanted),
    };
    *parts += 1;
    if *parts > PARTS_PER_PIECE_MAX {
        return Err(DagError::Invalid {
            cid: Box::new(part.cid),
            what: "the file is cut into too many parts",
        });
    }
    let file = fetch_part(blocks, session_root, &part).await?;
    if file.children.is_empty() {
        return Ok(slice(&file.data, &wanted));
    }
    // A small inner node, as trickle files have: what lies below fits one block, so read it whole.
    let range = wanted.start + part.at..wanted.end + part.at;
    let mut walk = Walk { blocks: blocks.clone(), session_root, range, stack: Vec::new() };
    walk.expand(file, &part);
    let mut bytes = Vec::with_capacity(usize::try_from(wanted.end - wanted.start).unwrap_or(0));
    while let Some((piece, rest)) = walk.next().await? {
        walk = rest;
        bytes.extend_from_slice(&Box::pin(read_parts(blocks, session_root, piece, parts)).await?);
    }
    Ok(bytes.into())
}

fn overlaps(range: &Range<u64>, at: u64, size_bytes: u64) -> bool {
    at < range.end && range.start < at.saturating_add(size_bytes)
}

/// What of `range` lies within `size_bytes` at `at`, relative to `at`.
fn within(range: &Range<u64>, at: u64, size_bytes: u64) -> Range<u64> {
    let start = range.start.saturating_sub(at).min(size_bytes);
    start..range.end.saturating_sub(at).min(size_bytes).max(start)
}

fn slice(bytes: &Bytes, wanted: &Range<u64>) -> Bytes {
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(wanted.start)..index(wanted.end))
}
