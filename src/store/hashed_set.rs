//! A set that keeps eight bytes of each member.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};

/// Says yes to every member, and by mistake to one in 2⁶⁴ / `len` of others; the hash is keyed, so that nobody can choose
/// which. What is decided by it must be safe when it says yes.
#[derive(Debug, Default)]
pub struct HashedSet {
    hasher: RandomState,
    hashes: HashSet<u64>,
}

impl HashedSet {
    /// `true`: it was not a member.
    pub fn insert(&mut self, member: &impl Hash) -> bool {
        self.hashes.insert(self.hasher.hash_one(member))
    }

    pub fn contains(&self, member: &impl Hash) -> bool {
        self.hashes.contains(&self.hasher.hash_one(member))
    }

    pub fn remove(&mut self, member: &impl Hash) {
        self.hashes.remove(&self.hasher.hash_one(member));
    }

    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_known_and_others_are_not() {
        let mut set = HashedSet::default();
        assert!((0..1000_u32).all(|number| set.insert(&number)));
        assert!(!set.insert(&7_u32));
        set.remove(&7_u32);
        assert!((0..1000_u32).all(|number| set.contains(&number) == (number != 7)));
        assert!(!set.contains(&1000_u32));
        assert_eq!(set.len(), 999);
    }
}
