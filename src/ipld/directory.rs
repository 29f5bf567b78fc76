//! Directories of one block, and nodes of sharded ones, in the form in which they are searched and changed.
//!
//! Pure: joining the nodes of a sharded directory takes I/O and is done elsewhere.

use std::cmp::Ordering;

use cid::Cid;

use super::block::Block;
use super::dag_pb::Link;
use super::hamt::{HamtNode, Slot};
use super::unixfs::{UnixFs, UnixFsError, encode_directory};

/// The largest directory in one block, in bytes (IPIP-0499): a larger one is sharded.
pub const DIRECTORY_BYTES_MAX: u64 = 256 * 1024;

/// The fewest bytes that an entry takes in the block of a directory.
pub const LINK_BYTES_MIN: u64 = 13;

/// A directory entry: what a link to it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub cid: Cid,
    /// See [`Link::tsize`].
    pub tsize: u64,
}

/// A new state of one name in a directory; `None` removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub name: String,
    pub to: Option<Entry>,
}

/// A directory, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directory {
    Basic(Basic),
    Shard(HamtNode),
}

impl Directory {
    /// `None` if the block is a file or a symbolic link.
    pub fn decode(block: &Block) -> Result<Option<Self>, UnixFsError> {
        match UnixFs::decode(block)? {
            UnixFs::Directory(links) => Ok(Some(Self::Basic(Basic::from_links(links)))),
            UnixFs::Shard(shard) => HamtNode::decode(block.cid(), shard).map(|node| Some(Self::Shard(node))),
            UnixFs::File(_) | UnixFs::Symlink(_) => Ok(None),
        }
    }

    pub fn encode(&self) -> Block {
        match self {
            Self::Basic(basic) => basic.encode(),
            Self::Shard(node) => node.encode(),
        }
    }

    /// What a link to this node says, if its block is `block`.
    pub fn entry(&self, block: &Block) -> Entry {
        let below = |sum: u64, entry: &Entry| sum.saturating_add(entry.tsize);
        let size_bytes = block.bytes().len() as u64;
        let tsize = match self {
            Self::Basic(basic) => basic.entries.iter().map(|(_, entry)| entry).fold(size_bytes, below),
            Self::Shard(node) => node.slots().iter().map(|(_, slot)| slot.entry()).fold(size_bytes, below),
        };
        Entry { cid: *block.cid(), tsize }
    }

    /// About what it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Basic(basic) => {
                basic.entries.iter().map(|(name, _)| name.len() + size_of::<(String, Entry)>()).sum()
            }
            Self::Shard(node) => {
                let name_bytes = |slot: &Slot| if let Slot::Value(name, _) = slot { name.len() } else { 0 };
                node.slots().iter().map(|(_, slot)| name_bytes(slot) + size_of::<(u16, Slot)>()).sum()
            }
        }
    }
}

/// A directory in one block: entries sorted by the bytes of their names, each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Basic {
    entries: Vec<(String, Entry)>,
}

impl Basic {
    /// Of links with the same name the first counts, as in Kubo's look-ups.
    fn from_links(links: Vec<Link>) -> Self {
        let entries = links.into_iter().map(|Link { name, cid, tsize }| (name, Entry { cid, tsize }));
        Self::from_entries(entries.collect())
    }

    /// Takes entries in any order; of those with the same name the first counts.
    pub fn from_entries(mut entries: Vec<(String, Entry)>) -> Self {
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(later, _), (first, _)| later == first);
        Self { entries }
    }

    pub fn encode(&self) -> Block {
        let link =
            |(name, entry): &(String, Entry)| Link { name: name.clone(), cid: entry.cid, tsize: entry.tsize };
        encode_directory(self.entries.iter().map(link).collect())
    }

    /// The size of the block that [`Basic::encode`] gives.
    pub fn size_bytes(&self) -> u64 {
        self.entries.iter().fold(EMPTY_BYTES, |sum, (name, entry)| sum + link_bytes(name, entry))
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        let index = self.entries.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
        Some(&self.entries[index].1)
    }

    pub fn entries(&self) -> &[(String, Entry)] {
        &self.entries
    }

    pub fn into_entries(self) -> Vec<(String, Entry)> {
        self.entries
    }

    /// The entries with names behind `name`, or all.
    pub fn entries_after(&self, name: Option<&str>) -> &[(String, Entry)] {
        let start = name.map(|name| self.entries.partition_point(|(other, _)| other.as_str() <= name));
        &self.entries[start.unwrap_or_default()..]
    }

    /// The directory with `changes` made, which are sorted by name, each name once.
    #[must_use]
    pub fn with(&self, changes: &[Change]) -> Self {
        let (mut old, mut new) = (self.entries.iter().peekable(), changes.iter().peekable());
        let mut entries = Vec::with_capacity(self.entries.len() + changes.len());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Self { entries },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((name, _)), Some(change)) => name.cmp(&change.name),
            };
            if order.is_lt() {
                entries.extend(old.next().cloned());
                continue;
            }
            if order.is_eq() {
                old.next();
            }
            let change = new.next();
            entries.extend(change.and_then(|change| Some((change.name.clone(), change.to?))));
        }
    }
}

/// The block of an empty directory: tag and length of the data, type of the node.
pub const EMPTY_BYTES: u64 = 4;

/// The bytes that an entry takes in the block of a directory.
pub fn link_bytes(name: &str, entry: &Entry) -> u64 {
    let field = |bytes: u64| 1 + varint_bytes(bytes) + bytes;
    let link =
        field(entry.cid.encoded_len() as u64) + field(name.len() as u64) + 1 + varint_bytes(entry.tsize);
    field(link)
}

fn varint_bytes(value: u64) -> u64 {
    u64::from((u64::BITS - (value | 1).leading_zeros()).div_ceil(7))
}

/// Reads whatever bytes as a directory: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let block = Block::encode(super::block::DAG_PB, bytes.to_vec().into());
    if let Ok(Some(directory)) = Directory::decode(&block) {
        let written = directory.encode();
        let again = Directory::decode(&written);
        assert!(matches!(again, Ok(Some(again)) if again == directory), "what was read can be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipld::Multihash;
    use crate::ipld::block::{IDENTITY, RAW};
    use bytes::Bytes;
    use proptest::prelude::*;

    fn entry(text: &str, tsize: u64) -> Entry {
        Entry { cid: *Block::encode(RAW, Bytes::from(text.to_owned())).cid(), tsize }
    }

    #[test]
    fn of_links_with_the_same_name_the_first_counts() {
        let link = |name: &str, text| Link { name: name.to_owned(), cid: entry(text, 0).cid, tsize: 1 };
        let block = encode_directory(vec![link("b", "1"), link("a", "2"), link("b", "3"), link("a", "4")]);
        let Some(Directory::Basic(basic)) = Directory::decode(&block).unwrap() else { panic!("a directory") };
        assert_eq!(basic.entries().len(), 2);
        assert_eq!(basic.get("a").unwrap().cid, entry("2", 0).cid);
        assert_eq!(basic.get("b").unwrap().cid, entry("1", 0).cid);
    }

    #[test]
    fn no_link_is_smaller_than_the_minimum() {
        let cid = Cid::new_v1(RAW, Multihash::wrap(IDENTITY, b"").unwrap());
        assert_eq!(link_bytes("a", &Entry { cid, tsize: 0 }), LINK_BYTES_MIN);
    }

    proptest! {
        #[test]
        fn the_size_is_that_of_the_block(
            entries in proptest::collection::vec((".{0,200}", any::<u64>()), 0..20),
        ) {
            let entries = entries.into_iter().map(|(name, tsize)| (name.clone(), entry(&name, tsize >> (name.len() % 64))));
            let basic = Basic::from_entries(entries.collect());
            let block = basic.encode();
            prop_assert_eq!(basic.size_bytes(), block.bytes().len() as u64);
            prop_assert_eq!(Directory::decode(&block).unwrap(), Some(Directory::Basic(basic)));
        }

        #[test]
        fn changes_are_those_of_a_map(
            before in proptest::collection::btree_map("[a-d]{1,2}", 0_u64..9, 0..12),
            changes in proptest::collection::btree_map("[a-d]{1,2}", proptest::option::of(0_u64..9), 0..12),
        ) {
            let basic = Basic::from_entries(before.iter().map(|(name, n)| (name.clone(), entry("", *n))).collect());
            let list: Vec<_> =
                changes.iter().map(|(name, to)| Change { name: name.clone(), to: to.map(|n| entry("", n)) }).collect();
            let mut after = before.clone();
            for (name, to) in changes {
                match to {
                    Some(n) => after.insert(name, n),
                    None => after.remove(&name),
                };
            }
            let expected = Basic::from_entries(after.into_iter().map(|(name, n)| (name, entry("", n))).collect());
            prop_assert_eq!(basic.with(&list), expected);
        }

        #[test]
        fn strange_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }

        #[test]
        fn damaged_directories_do_no_harm(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let basic = Basic::from_entries(vec![("a".to_owned(), entry("a", 1)), ("b".to_owned(), entry("b", 300))]);
            let mut bytes = basic.encode().into_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            fuzz(&bytes);
        }
    }
}
