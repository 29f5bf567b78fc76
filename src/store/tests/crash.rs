//! A crash while others write: the folder is copied file by file under their hands, which is worse than any crash.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use super::{Fixture, OVERHEAD_BYTES, block, blocks, copy, put, put_together, remove_index};
use crate::ipld::Block;

/// Blocks that a flush has acknowledged.
#[derive(Default)]
struct Acknowledged {
    blocks: Mutex<Vec<Block>>,
    more: Condvar,
}

impl Acknowledged {
    fn extend(&self, blocks: Vec<Block>) {
        self.blocks.lock().unwrap().extend(blocks);
        self.more.notify_all();
    }

    fn at_least(&self, count: usize) -> Vec<Block> {
        let few = |blocks: &mut Vec<Block>| blocks.len() < count;
        self.more.wait_while(self.blocks.lock().unwrap(), few).unwrap().clone()
    }
}

#[test]
fn what_a_flush_acknowledged_is_in_every_later_copy() {
    let f = Fixture::with_segments(100_000);
    let (done, acknowledged) = (AtomicBool::new(false), Acknowledged::default());
    thread::scope(|scope| {
        for writer in 0..3_u64 {
            let (f, done, acknowledged) = (&f, &done, &acknowledged);
            scope.spawn(move || {
                let mut next = writer << 32;
                while !done.load(Ordering::Relaxed) {
                    let blocks: Vec<_> = (next..next + 7).map(|seed| block(seed, 900)).collect();
                    next += 7;
                    match writer {
                        0 => put_together(f.blocks(), &blocks),
                        _ => blocks.iter().for_each(|block| put(f.blocks(), block)),
                    }
                    f.blocks().flush().unwrap();
                    acknowledged.extend(blocks);
                }
            });
        }
        let _stop = StopOnDrop(&done);
        for round in 0..10 {
            let before = acknowledged.at_least(round * 50);
            let parts = if round % 2 == 0 { ["index", "packs"] } else { ["packs", "index"] };
            let folder = copy(f.folder.path(), parts);
            let copy = Fixture::open(folder, f.options.clone());
            before.iter().for_each(|block| copy.assert_has(block));
            copy.assert_counts();
            let copy = copy.reopened_after(remove_index);
            before.iter().for_each(|block| copy.assert_has(block));
        }
    });
}

#[test]
fn a_block_removed_and_put_again_before_a_crash_can_be_removed_for_good() {
    let f = Fixture::new();
    let block = block(1, 100);
    f.put(&block);
    f.blocks().remove(block.cid().hash()).unwrap();
    f.put(&block);
    let f = f.crashed();
    f.assert_has(&block);
    f.assert_counts();
    f.blocks().remove(block.cid().hash()).unwrap();
    f.reopened_after(remove_index).assert_lacks(&block);
}

#[test]
fn a_block_removed_before_a_crash_is_here_or_not_and_never_damaged() {
    let f = Fixture::new();
    let block = block(1, 100);
    f.put_all(std::slice::from_ref(&block));
    f.blocks().remove(block.cid().hash()).unwrap();
    let f = f.crashed();
    let found = f.blocks().get(block.cid().hash()).unwrap();
    assert!(found.is_none_or(|bytes| bytes == block.bytes()));
    f.put(&block);
    f.assert_has(&block);
    f.assert_counts();
}

#[test]
fn what_was_taken_in_after_a_crash_is_synced_by_the_next_flush() {
    let f = Fixture::new();
    let all = blocks(3, 100);
    all.iter().for_each(|block| f.put(block));
    let f = f.crashed();
    assert_eq!(f.blocks().syncs(), 1, "the start has synced what it found");
    all.iter().for_each(|block| f.put(block));
    assert_eq!(f.packs()[0].metadata().unwrap().len(), 3 * (OVERHEAD_BYTES as u64 + 100));
}

/// Ends the writers also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
