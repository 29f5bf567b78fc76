//! The blockstore beside a bare file: what an index, checksums and removal cost.
//!
//! `bare_file` writes the same bytes in the same pieces and syncs once, in the same run.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::fs::File;
use std::io::Write;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use shoal::ipld::Block;
use shoal::ipld::block::RAW;
use shoal::store::{Store, StoreOptions};
use tempfile::TempDir;

/// Bytes written and synced as one.
const TOTAL_BYTES: usize = 64 << 20;
const SMALL: usize = 4 << 10;
const LARGE: usize = 1 << 20;

fn main() {
    divan::main();
}

/// Different blocks of one size; hashed here, not while the clock runs.
fn blocks(count: usize, size: usize) -> Vec<Block> {
    let block = |n: usize| {
        let mut bytes = vec![0x5a; size];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Block::encode(RAW, bytes.into())
    };
    (0..count).map(block).collect()
}

fn open(folder: &TempDir) -> Store {
    Store::open(folder.path(), StoreOptions::default()).unwrap()
}

fn empty() -> (Store, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (open(&folder), folder)
}

fn put_all(store: &Store, blocks: &[Block]) {
    for block in blocks {
        store.blocks().put(block.cid().hash(), &[block.bytes().clone()]).unwrap();
    }
    store.blocks().flush().unwrap();
}

/// A store that has these blocks.
fn filled(blocks: &[Block]) -> (Store, TempDir) {
    let (store, folder) = empty();
    put_all(&store, blocks);
    (store, folder)
}

#[divan::bench(args = [SMALL, LARGE], sample_count = 10)]
fn put_and_flush(bencher: Bencher<'_, '_>, size: usize) {
    let blocks = blocks(TOTAL_BYTES / size, size);
    bencher
        .counter(BytesCount::new(TOTAL_BYTES))
        .with_inputs(empty)
        .bench_local_refs(|(store, _)| put_all(store, &blocks));
}

#[divan::bench(args = [SMALL, LARGE], sample_count = 10)]
fn bare_file(bencher: Bencher<'_, '_>, size: usize) {
    let blocks = blocks(TOTAL_BYTES / size, size);
    let create = || {
        let folder = tempfile::tempdir().unwrap();
        (File::create(folder.path().join("bare")).unwrap(), folder)
    };
    bencher.counter(BytesCount::new(TOTAL_BYTES)).with_inputs(create).bench_local_refs(|(file, _)| {
        for block in &blocks {
            file.write_all(block.bytes()).unwrap();
        }
        file.sync_data().unwrap();
    });
}

#[divan::bench(args = [SMALL, LARGE])]
fn put_one_and_flush(bencher: Bencher<'_, '_>, size: usize) {
    let (store, _folder) = empty();
    let mut next = 0_usize;
    bencher
        .counter(BytesCount::new(size))
        .with_inputs(|| {
            next += 1;
            let mut bytes = vec![0x5a; size];
            bytes[..8].copy_from_slice(&next.to_le_bytes());
            [Block::encode(RAW, bytes.into())]
        })
        .bench_local_refs(|block| put_all(&store, block));
}

#[divan::bench(args = [SMALL, LARGE])]
fn get(bencher: Bencher<'_, '_>, size: usize) {
    let blocks = blocks(TOTAL_BYTES / size, size);
    let (store, _folder) = filled(&blocks);
    let mut next = blocks.iter().cycle();
    bencher
        .counter(BytesCount::new(size))
        .with_inputs(|| *next.next().unwrap().cid().hash())
        .bench_local_values(|key| black_box(store.blocks().get(&key).unwrap().unwrap()));
}

#[divan::bench]
fn has(bencher: Bencher<'_, '_>) {
    let blocks = blocks(TOTAL_BYTES / SMALL, SMALL);
    let (store, _folder) = filled(&blocks);
    let mut next = blocks.iter().cycle();
    bencher
        .counter(ItemsCount::new(1_usize))
        .with_inputs(|| *next.next().unwrap().cid().hash())
        .bench_local_values(|key| black_box(store.blocks().size_bytes(&key).unwrap().unwrap()));
}

#[divan::bench(args = [SMALL, LARGE], sample_count = 10)]
fn remove_all_and_flush(bencher: Bencher<'_, '_>, size: usize) {
    let blocks = blocks(TOTAL_BYTES / size, size);
    bencher.counter(ItemsCount::new(blocks.len())).with_inputs(|| filled(&blocks)).bench_local_refs(
        |(store, _)| {
            for block in &blocks {
                store.blocks().remove(block.cid().hash()).unwrap();
            }
            store.blocks().flush().unwrap();
        },
    );
}

/// A start with 100,000 blocks of 100 bytes.
#[divan::bench(sample_count = 10)]
fn reopen_100_000(bencher: Bencher<'_, '_>) {
    let (store, folder) = filled(&blocks(100_000, 100));
    store.close().unwrap();
    drop(store);
    bencher.bench_local(|| open(&folder));
}

/// The same without an index.
#[divan::bench(sample_count = 3)]
fn rebuild_100_000(bencher: Bencher<'_, '_>) {
    let (store, folder) = filled(&blocks(100_000, 100));
    store.close().unwrap();
    drop(store);
    bencher
        .with_inputs(|| std::fs::remove_dir_all(folder.path().join("index")).unwrap())
        .bench_local_values(|()| open(&folder));
}
