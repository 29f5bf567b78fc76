//! Blocks that must not be taken away though no root names them yet, or any more: of an upload, of a commit on its way,
//! of a reader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cid::Cid;

/// Keeps DAGs for as long as it, or a clone of it, lives: the blocks it was given, and all below them.
#[derive(Clone, Default)]
pub struct Keep(Arc<Mutex<Vec<Cid>>>);

impl Keep {
    /// Must come before the block is put or relied on.
    pub fn add(&self, cid: Cid) {
        lock(&self.0).push(cid);
    }
}

/// All that live.
#[derive(Default)]
pub(super) struct Keeps(Mutex<Vec<Weak<Mutex<Vec<Cid>>>>>);

impl Keeps {
    pub(super) fn make(&self) -> Keep {
        let keep = Keep::default();
        let mut all = lock(&self.0);
        // The dead are few if they are buried as often as others are born.
        if all.len() == all.capacity() {
            all.retain(|keep| keep.strong_count() > 0);
        }
        all.push(Arc::downgrade(&keep.0));
        keep
    }

    /// What is kept now.
    pub(super) fn cids(&self) -> Vec<Cid> {
        let living: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        living.iter().flat_map(|cids| lock(cids).clone()).collect()
    }
}

/// A panic leaves a list with or without its last entry.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipld::Block;
    use crate::ipld::block::RAW;

    #[test]
    fn what_is_kept_is_known_until_the_last_clone_goes() {
        let keeps = Keeps::default();
        let cid = *Block::encode(RAW, "x".into()).cid();
        let keep = keeps.make();
        keep.add(cid);
        let clone = keep.clone();
        drop(keep);
        assert_eq!(keeps.cids(), [cid]);
        drop(clone);
        assert_eq!(keeps.cids(), []);
        for _ in 0..10_000 {
            keeps.make().add(cid);
        }
        assert!(lock(&keeps.0).len() < 100);
    }
}
