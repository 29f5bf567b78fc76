//! Get, put, has, remove, flush, one at a time and many at once.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::FallocateFlags;

use super::{Fixture, OVERHEAD_BYTES, block, blocks, put, put_together};
use crate::ipld::block::RAW;
use crate::ipld::{Block, Cid, Multihash};
use crate::store::StoreStats;

#[test]
fn a_block_is_here_until_it_is_removed() {
    let f = Fixture::new();
    let block = block(1, 1000);
    f.assert_lacks(&block);
    f.put(&block);
    f.assert_has(&block);
    assert_eq!(f.blocks().size_bytes(block.cid().hash()).unwrap(), Some(1000));
    assert!(f.blocks().remove(block.cid().hash()).unwrap());
    f.assert_lacks(&block);
    assert!(!f.blocks().remove(block.cid().hash()).unwrap());
    f.put(&block);
    f.assert_has(&block);
    f.assert_counts();
    f.reopened().assert_has(&block);
}

#[test]
fn parts_are_put_together_in_order() {
    let f = Fixture::new();
    let parts: Vec<Bytes> = (0..3000_u32).map(|n| Bytes::from(n.to_string())).collect();
    let whole = Block::encode(RAW, parts.concat().into());
    f.blocks().put(whole.cid().hash(), &parts).unwrap();
    f.assert_has(&whole);
    let empty = Block::encode(RAW, Bytes::new());
    f.blocks().put(empty.cid().hash(), &[]).unwrap();
    f.assert_has(&empty);
    let f = f.reopened_after(super::remove_index);
    f.assert_has(&whole);
    f.assert_has(&empty);
}

#[test]
fn a_block_has_one_key_whatever_the_codec_of_its_cid() {
    let f = Fixture::new();
    let raw = block(1, 50);
    f.put(&raw);
    let other = Cid::new_v0(*raw.cid().hash()).unwrap();
    assert_eq!(f.blocks().get(other.hash()).unwrap().as_ref(), Some(raw.bytes()));
}

#[test]
fn keys_of_every_length_are_kept() {
    let f = Fixture::new();
    let keys: Vec<_> = (0..=64_u8)
        .map(|length| Multihash::wrap(u64::MAX >> (length % 64), &vec![length; usize::from(length)]).unwrap())
        .collect();
    for key in &keys {
        f.blocks().put(key, &[Bytes::copy_from_slice(key.digest())]).unwrap();
    }
    let f = f.reopened_after(super::remove_index);
    for key in keys {
        // Bytes that do not match their key are the caller's fault; an intact record is believed.
        assert_eq!(f.blocks().get(&key).unwrap().unwrap(), key.digest());
    }
}

#[test]
fn a_block_put_again_takes_no_space() {
    let f = Fixture::new();
    let block = block(1, 4000);
    (0..10).for_each(|_| f.put(&block));
    assert_eq!(f.packs()[0].metadata().unwrap().len(), (4000 + OVERHEAD_BYTES) as u64);
    assert_eq!(f.blocks().stats().blocks, 1);
    f.assert_counts();
}

#[test]
fn a_block_put_by_many_at_once_counts_once() {
    let f = Fixture::new();
    for seed in 0..50 {
        let block = block(seed, 2000);
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    put(f.blocks(), &block);
                });
            }
        });
        f.assert_has(&block);
    }
    assert_eq!(f.blocks().stats().blocks, 50);
    f.assert_counts();
    let f = f.reopened_after(super::remove_index);
    assert_eq!(f.blocks().stats().blocks, 50);
    f.assert_counts();
}

#[test]
fn writers_at_once_fill_several_segments_none_beyond_its_size() {
    let f = Fixture::with_segments(64 << 10);
    thread::scope(|scope| {
        for writer in 0..8 {
            let f = &f;
            scope.spawn(move || (0..100).for_each(|seed| f.put(&block(writer << 32 | seed, 3000))));
        }
    });
    assert!(f.packs().len() >= 8 * 100 * 3000 / (64 << 10));
    for path in f.packs() {
        assert!(path.metadata().unwrap().len() <= 64 << 10);
    }
    f.assert_counts();
    let f = f.reopened();
    assert_eq!(f.blocks().stats().blocks, 800);
    for writer in 0..8 {
        (0..100).for_each(|seed| f.assert_has(&block(writer << 32 | seed, 3000)));
    }
}

#[test]
fn a_block_larger_than_a_segment_has_one_of_its_own() {
    let f = Fixture::with_segments(1000);
    f.put_all(&blocks(4, 3000));
    assert_eq!(f.packs().len(), 4);
    let f = f.reopened_after(super::remove_index);
    blocks(4, 3000).iter().for_each(|block| f.assert_has(block));
}

#[test]
fn blocks_put_together_count_once_and_fill_segments_as_far_as_they_go() {
    let record_bytes = 1000 + OVERHEAD_BYTES as u64;
    let f = Fixture::with_segments(8 * record_bytes);
    let blocks = blocks(40, 1000);
    f.put(&blocks[3]);
    put_together(f.blocks(), blocks.iter().chain(&blocks[..1]));

    assert_eq!(f.blocks().stats().blocks, 40);
    f.assert_counts();
    let sizes_bytes: Vec<u64> = f.packs().iter().map(|path| path.metadata().unwrap().len()).collect();
    // The last one has the block that came twice.
    assert_eq!(sizes_bytes, [8, 8, 8, 8, 8, 1].map(|records| records * record_bytes));
    let f = f.reopened_after(super::remove_index);
    blocks.iter().for_each(|block| f.assert_has(block));
    f.assert_counts();
}

#[test]
fn flushes_at_once_share_syncs() {
    const THREADS: usize = 16;
    let f = Fixture::new();
    thread::scope(|scope| {
        let held = f.blocks().hold_syncs();
        for seed in 0..THREADS as u64 {
            let f = &f;
            scope.spawn(move || {
                f.put(&block(seed, 100));
                f.blocks().flush().unwrap();
            });
        }
        let begun = Instant::now();
        while f.blocks().waiting() < THREADS - 1 {
            assert!(begun.elapsed() < Duration::from_secs(60), "{} wait", f.blocks().waiting());
            thread::yield_now();
        }
        drop(held);
    });
    assert_eq!(f.blocks().syncs(), 2, "the one under way, which began too early, and one for all the others");
}

#[test]
fn every_block_is_visited_until_told_to_stop() {
    let f = Fixture::new();
    let all: HashSet<_> = blocks(20, 30).iter().map(|block| *block.cid().hash()).collect();
    f.put_all(&blocks(20, 30));
    let mut seen = HashSet::new();
    let visit = |key: &Multihash, size| {
        assert_eq!(size, 30);
        seen.insert(*key);
        ControlFlow::Continue(())
    };
    f.blocks().for_each_key(visit).unwrap();
    assert_eq!(seen, all);
    let mut visits = 0;
    let stop = |_: &Multihash, _| {
        visits += 1;
        ControlFlow::Break(())
    };
    f.blocks().for_each_key(stop).unwrap();
    assert_eq!(visits, 1);
}

#[test]
fn an_empty_store_has_nothing() {
    assert_eq!(Fixture::new().reopened().blocks().stats(), StoreStats::default());
}

#[test]
fn the_space_of_removed_blocks_comes_back_with_the_next_flush() {
    let f = Fixture::new();
    let all = blocks(16, 256 << 10);
    f.put_all(&all);
    let before = f.blocks().stats();
    assert!(before.disk_bytes >= before.live_bytes);
    for block in &all[..15] {
        f.blocks().remove(block.cid().hash()).unwrap();
    }
    f.blocks().flush().unwrap();
    let after = f.blocks().stats();
    assert_eq!(after.live_bytes, ((256 << 10) + OVERHEAD_BYTES) as u64);
    f.assert_has(&all[15]);
    if punches_holes(&f) {
        assert!(after.disk_bytes < before.disk_bytes / 8, "{after:?} of {before:?}");
    } else {
        eprintln!("NOT CHECKED: this file system punches no holes");
    }
}

fn punches_holes(f: &Fixture) -> bool {
    let file = std::fs::File::create(f.folder.path().join("probe")).unwrap();
    file.set_len(8192).unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 0, 4096).is_ok()
}
