//! The store against a map: whatever is done to both, they agree.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use super::{Fixture, Model, block, remove_index};
use crate::ipld::Block;

/// Blocks of the model, each of another size.
const SEEDS: u64 = 24;

fn nth(seed: u64) -> Block {
    block(seed, 8 + usize::try_from(seed * 37 % 600).unwrap())
}

#[derive(Clone, Debug)]
enum Action {
    Put(u64),
    Remove(u64),
    Flush,
    Reopen,
    ReopenWithoutIndex,
    Crash,
    CrashWithoutIndex,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        30 => (0..SEEDS).prop_map(Action::Put),
        20 => (0..SEEDS).prop_map(Action::Remove),
        4 => Just(Action::Flush),
        1 => Just(Action::Reopen),
        1 => Just(Action::ReopenWithoutIndex),
        1 => Just(Action::Crash),
        1 => Just(Action::CrashWithoutIndex),
    ]
}

/// Compares all blocks. Those removed since the last flush may be back after a crash, and then are in the model again.
#[track_caller]
fn compare(f: &Fixture, model: &mut Model, may_be_back: &mut Vec<u64>) {
    for seed in 0..SEEDS {
        let found = f.blocks().get(nth(seed).cid().hash()).unwrap();
        if may_be_back.contains(&seed) && found.is_some() {
            model.insert(seed, nth(seed));
        }
        assert_eq!(found.as_ref(), model.get(&seed).map(Block::bytes), "block {seed}");
    }
    may_be_back.clear();
    assert_eq!(f.blocks().stats().blocks, model.len() as u64);
    f.assert_counts();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_is_done_the_store_is_a_map(actions in proptest::collection::vec(action(), 1..120)) {
        let mut f = Fixture::with_segments(2000);
        let (mut model, mut unflushed) = (Model::new(), Vec::new());
        for action in actions {
            match action {
                Action::Put(seed) => {
                    f.put(&nth(seed));
                    model.insert(seed, nth(seed));
                }
                Action::Remove(seed) => {
                    let removed = f.blocks().remove(nth(seed).cid().hash()).unwrap();
                    prop_assert_eq!(removed, model.remove(&seed).is_some());
                    unflushed.push(seed);
                }
                Action::Flush => {
                    f.blocks().flush().unwrap();
                    unflushed.clear();
                }
                Action::Reopen => {
                    f = f.reopened();
                    compare(&f, &mut model, &mut Vec::new());
                    unflushed.clear();
                }
                Action::ReopenWithoutIndex => {
                    f = f.reopened_after(remove_index);
                    compare(&f, &mut model, &mut Vec::new());
                    unflushed.clear();
                }
                Action::Crash => {
                    f = f.crashed();
                    compare(&f, &mut model, &mut unflushed);
                }
                Action::CrashWithoutIndex => {
                    f = f.crashed().reopened_after(remove_index);
                    compare(&f, &mut model, &mut unflushed);
                }
            }
        }
        compare(&f, &mut model, &mut Vec::new());
    }
}

/// What one writer does to blocks of its own.
fn write(f: &Fixture, writer: u64) -> Model {
    let mut model = Model::new();
    let mut state = writer + 1;
    for _ in 0..600 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let seed = writer * SEEDS + (state >> 33) % SEEDS;
        match state >> 60 {
            0..8 => {
                f.put(&nth(seed));
                model.insert(seed, nth(seed));
                f.assert_has(&nth(seed));
            }
            8..15 => {
                let removed = f.blocks().remove(nth(seed).cid().hash()).unwrap();
                assert_eq!(removed, model.remove(&seed).is_some());
                f.assert_lacks(&nth(seed));
            }
            _ => f.blocks().flush().unwrap(),
        }
    }
    model
}

#[test]
fn readers_see_a_block_whole_or_not_at_all_while_others_write_and_remove() {
    const WRITERS: u64 = 6;
    let f = Fixture::with_segments(3000);
    let done = AtomicBool::new(false);
    let model: Model = thread::scope(|scope| {
        let (f, done) = (&f, &done);
        for reader in 0..2 {
            scope.spawn(move || {
                let mut seed = reader;
                while !done.load(Ordering::Relaxed) {
                    seed = (seed + 7) % (WRITERS * SEEDS);
                    let found = f.blocks().get(nth(seed).cid().hash()).unwrap();
                    assert!(found.is_none_or(|bytes| bytes == nth(seed).bytes()));
                }
            });
        }
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(f, writer))).collect();
        let models = writers.into_iter().map(|writer| writer.join());
        let models: Vec<_> = models.collect();
        done.store(true, Ordering::Relaxed);
        models.into_iter().flat_map(|model| model.unwrap()).collect()
    });
    let check = |f: &Fixture| {
        for seed in 0..WRITERS * SEEDS {
            let found = f.blocks().get(nth(seed).cid().hash()).unwrap();
            assert_eq!(found.as_ref(), model.get(&seed).map(Block::bytes), "block {seed}");
        }
        f.assert_counts();
    };
    check(&f);
    let f = f.reopened();
    check(&f);
    check(&f.reopened_after(remove_index));
}
