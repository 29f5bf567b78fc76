//! The store under use, crashes and damage. What a crash leaves is a copy of the folder, opened elsewhere.

mod blocks;
mod compaction;
mod crash;
mod damage;
mod folder;
mod model;

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;

use super::record::HEADER_BYTES;
use super::{Blockstore, Store, StoreOptions};
use crate::ipld::block::RAW;
use crate::ipld::{Block, Multihash};

/// Bytes of a sha2-256 multihash.
const KEY_BYTES: usize = 34;
/// What a record takes beside its body.
const OVERHEAD_BYTES: usize = HEADER_BYTES + KEY_BYTES;

/// A store in a folder that goes away with it.
struct Fixture {
    store: Store,
    options: StoreOptions,
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with_segments(StoreOptions::default().segment_bytes_max)
    }

    fn with_segments(segment_bytes_max: u64) -> Self {
        Self::open(tempfile::tempdir().unwrap(), StoreOptions { segment_bytes_max })
    }

    fn open(folder: TempDir, options: StoreOptions) -> Self {
        let store = Store::open(folder.path(), options.clone()).unwrap();
        Self { store, options, folder }
    }

    fn blocks(&self) -> &Blockstore {
        self.store.blocks()
    }

    fn put(&self, block: &Block) {
        put(self.blocks(), block);
    }

    fn put_all(&self, blocks: &[Block]) {
        blocks.iter().for_each(|block| self.put(block));
        self.blocks().flush().unwrap();
    }

    #[track_caller]
    fn assert_has(&self, block: &Block) {
        assert_eq!(self.blocks().get(block.cid().hash()).unwrap().as_ref(), Some(block.bytes()));
    }

    #[track_caller]
    fn assert_lacks(&self, block: &Block) {
        assert_eq!(self.blocks().get(block.cid().hash()).unwrap(), None);
        assert_eq!(self.blocks().size_bytes(block.cid().hash()).unwrap(), None);
    }

    /// Holds what the store says of itself to what is in it.
    #[track_caller]
    fn assert_counts(&self) {
        let (mut blocks, mut live_bytes) = (0, 0);
        let count = |key: &Multihash, size: u32| {
            blocks += 1;
            live_bytes += (HEADER_BYTES + key.to_bytes().len()) as u64 + u64::from(size);
            ControlFlow::Continue(())
        };
        self.blocks().for_each_key(count).unwrap();
        let stats = self.blocks().stats();
        assert_eq!((stats.blocks, stats.live_bytes), (blocks, live_bytes));
    }

    fn reopened(self) -> Self {
        self.reopened_after(|_| ())
    }

    /// Closes, lets `change` at the folder, and opens again.
    fn reopened_after(self, change: impl FnOnce(&Path)) -> Self {
        let Self { store, options, folder } = self;
        store.close().unwrap();
        drop(store);
        change(folder.path());
        Self::open(folder, options)
    }

    /// What is found after a crash at this moment: neither flushed nor closed.
    fn crashed(&self) -> Self {
        Self::open(copy(self.folder.path(), ["index", "packs"]), self.options.clone())
    }

    /// The segments, the first one first.
    fn packs(&self) -> Vec<PathBuf> {
        packs(self.folder.path())
    }
}

fn packs(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(folder.join("packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn remove_index(folder: &Path) {
    fs::remove_dir_all(folder.join("index")).unwrap();
}

fn put(blocks: &Blockstore, block: &Block) {
    blocks.put(block.cid().hash(), std::slice::from_ref(block.bytes())).unwrap();
}

fn put_together<'a>(blocks: &Blockstore, all: impl IntoIterator<Item = &'a Block>) {
    let parts = |block: &'a Block| (block.cid().hash(), std::slice::from_ref(block.bytes()));
    blocks.put_all(all.into_iter().map(parts)).unwrap();
}

/// A block of `size` bytes, at least 8, another one for each seed.
fn block(seed: u64, size: usize) -> Block {
    let mut bytes = seed.to_le_bytes().to_vec();
    bytes.resize(size.max(8), 0x5a);
    Block::encode(RAW, Bytes::from(bytes))
}

fn blocks(count: u64, size: usize) -> Vec<Block> {
    (0..count).map(|seed| block(seed, size)).collect()
}

/// Copies the parts of a store in this order, file by file, whatever goes on in it.
fn copy(from: &Path, parts: [&str; 2]) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for part in parts {
        copy_folder(&from.join(part), &to.path().join(part));
    }
    to
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            // A file may go between the listing and the copy, as one does in a crash.
            let copied = fs::read(&path).and_then(|bytes| fs::write(&target, bytes));
            assert!(copied.is_ok() || !path.exists(), "{}", path.display());
        }
    }
}

/// Blocks that ought to be there, by seed.
type Model = HashMap<u64, Block>;
