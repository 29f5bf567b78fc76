//! Segments of which little counts are rewritten, and no moment of that loses a block.

use std::fs;
use std::os::unix::fs::FileExt;

use super::{Fixture, OVERHEAD_BYTES, block, blocks, remove_index};
use crate::ipld::Block;
use crate::store::packs::Location;

const BODY_BYTES: usize = 1000;
const RECORD_BYTES: usize = OVERHEAD_BYTES + BODY_BYTES;
/// Ten blocks in a segment.
const SEGMENT_BYTES: u64 = 10 * RECORD_BYTES as u64;

fn full() -> (Fixture, Vec<Block>) {
    let f = Fixture::with_segments(SEGMENT_BYTES);
    let all = blocks(45, BODY_BYTES);
    f.put_all(&all);
    assert_eq!(f.packs().len(), 5);
    (f, all)
}

fn remove(f: &Fixture, blocks: &[Block]) {
    for block in blocks {
        assert!(f.blocks().remove(block.cid().hash()).unwrap());
    }
}

#[test]
fn a_segment_below_half_is_rewritten_and_its_file_goes() {
    let (f, all) = full();
    let first = f.packs()[0].clone();
    remove(&f, &all[..5]);
    assert!(first.exists(), "half of it counts");
    let syncs = f.blocks().syncs();
    remove(&f, &all[5..6]);
    assert!(!first.exists());
    assert_eq!(f.blocks().syncs(), syncs + 1, "what was moved is on disk before the file goes");
    all[..6].iter().for_each(|block| f.assert_lacks(block));
    all[6..].iter().for_each(|block| f.assert_has(block));
    f.assert_counts();

    let f = f.reopened();
    all[..6].iter().for_each(|block| f.assert_lacks(block));
    all[6..].iter().for_each(|block| f.assert_has(block));
    f.assert_counts();
    let f = f.reopened_after(remove_index);
    all[..6].iter().for_each(|block| f.assert_lacks(block));
    all[6..].iter().for_each(|block| f.assert_has(block));
    f.assert_counts();
}

#[test]
fn the_segment_that_is_written_to_is_left_alone() {
    let (f, all) = full();
    remove(&f, &all[41..]);
    assert_eq!(f.packs().len(), 5);
    f.assert_has(&all[40]);
    f.put(&block(100, BODY_BYTES));
    f.assert_has(&block(100, BODY_BYTES));
}

#[test]
fn a_segment_that_was_emptied_before_it_was_full_goes_too() {
    let f = Fixture::with_segments(SEGMENT_BYTES);
    let all = blocks(30, BODY_BYTES);
    f.put_all(&all[..9]);
    remove(&f, &all[..9]);
    f.put_all(&all[9..]);
    let first = f.packs()[0].clone();
    assert!(first.exists());
    remove(&f, &all[29..]);
    assert!(!first.exists());
    all[9..29].iter().for_each(|block| f.assert_has(block));
}

#[test]
fn removing_everything_leaves_next_to_nothing() {
    let (f, all) = full();
    remove(&f, &all);
    f.blocks().flush().unwrap();
    let stats = f.blocks().stats();
    assert_eq!((stats.blocks, stats.live_bytes), (0, 0));
    assert!(f.packs().len() <= 2, "{:?}", f.packs());
    let f = f.reopened_after(remove_index);
    assert_eq!(f.blocks().stats().blocks, 0);
}

#[test]
fn a_crash_between_any_two_steps_loses_nothing() {
    let (f, all) = full();
    // Up to half is removed: one more removal would begin the rewriting, which is done step by step here.
    remove(&f, &all[..5]);
    f.blocks().flush().unwrap();
    let check = |f: &Fixture| {
        for f in [f.crashed(), f.crashed().reopened_after(remove_index)] {
            all[..5].iter().for_each(|block| f.assert_lacks(block));
            all[5..].iter().for_each(|block| f.assert_has(block));
            f.assert_counts();
        }
    };
    let inner = &f.blocks().0;
    let segment = inner.packs.get(0).unwrap();
    check(&f);
    for (n, block) in all[5..10].iter().enumerate() {
        let offset = ((n + 5) * RECORD_BYTES) as u64;
        let old = Location { segment: 0, offset, body_bytes: BODY_BYTES as u32 };
        inner.relocate(block.cid().hash(), old, block.bytes().clone()).unwrap();
        check(&f);
    }
    f.blocks().flush().unwrap();
    check(&f);
    inner.rows.forget(segment.id).unwrap();
    check(&f);
    inner.packs.delete(&segment).unwrap();
    check(&f);
    f.blocks().flush().unwrap();
    check(&f);
    assert_eq!(f.crashed().packs().len(), f.packs().len());
}

#[test]
fn a_file_that_a_crash_kept_from_going_goes_at_the_next_start() {
    let (f, all) = full();
    let first = f.packs()[0].clone();
    let bytes = fs::read(&first).unwrap();
    remove(&f, &all[..6]);
    assert!(!first.exists());
    let f = f.reopened_after(|_| fs::write(&first, bytes).unwrap());
    // Its checkpoint is gone with it, so that its blocks are taken in again, but for those that are elsewhere.
    all.iter().for_each(|block| f.assert_has(block));
    f.assert_counts();
    remove(&f, &all[..6]);
    assert!(!first.exists());
    f.assert_counts();
}

#[test]
fn a_damaged_segment_stays_and_so_do_its_blocks() {
    for at in [0, OVERHEAD_BYTES + 7] {
        let (f, all) = full();
        let first = f.packs()[0].clone();
        let file = fs::File::options().write(true).open(&first).unwrap();
        file.write_all_at(b"?", (7 * RECORD_BYTES + at) as u64).unwrap();
        remove(&f, &all[..6]);
        f.blocks().flush().unwrap();
        assert!(first.exists());
        assert!(f.blocks().get(all[7].cid().hash()).is_err(), "damaged is not absent");
        for block in [&all[6], &all[8], &all[9]] {
            f.assert_has(block);
        }
        f.assert_counts();
        remove(&f, &all[8..9]);
        f.assert_has(&all[9]);
    }
}
