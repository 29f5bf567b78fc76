//! HAMT shards (UnixFS specification, "HAMT-sharded directories"): where a name lies in a sharded directory, and one
//! node of it.
//!
//! A name's hash is cut into groups of bits; each group picks a position in the node of its level. A position holds an
//! entry, or, where several names meet, a sub-shard. Reading and joining the nodes is the work of others.

use std::io::Cursor;

use bytes::Bytes;
use cid::Cid;

use super::block::{Block, DAG_PB};
use super::dag_pb::Link;
use super::directory::Entry;
use super::unixfs::{HAMT_FANOUT_MAX, Shard, UnixFs, UnixFsError};

/// The bits of a [`NameHash`].
const HASH_BITS: u32 = 64;

/// How many positions each node of a sharded directory has: a power of two from 8 to [`HAMT_FANOUT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fanout {
    bits: u32,
}

impl Fanout {
    /// What profile `unixfs-v1-2025` writes.
    pub const F256: Self = Self { bits: 8 };

    pub fn new(positions: u64) -> Option<Self> {
        let usable = positions.is_power_of_two() && (8..=HAMT_FANOUT_MAX).contains(&positions);
        usable.then(|| Self { bits: positions.trailing_zeros() })
    }

    pub fn positions(self) -> u64 {
        1 << self.bits
    }

    /// The hex digits that a link name begins with.
    pub(super) fn prefix_digits(self) -> usize {
        self.bits.div_ceil(4) as usize
    }
}

/// murmur3-x64-64 of a name: the first half of murmur3-x64-128, read from its high bits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameHash(u64);

impl NameHash {
    pub fn of(name: &str) -> Self {
        // Reading from memory does not fail.
        let both = murmur3::murmur3_x64_128(&mut Cursor::new(name), 0).unwrap_or_default();
        Self(both as u64)
    }

    /// The position of the name in the node at `place`.
    pub fn position(self, place: Place) -> u16 {
        let shift = HASH_BITS - place.used_bits - place.fanout.bits;
        (self.0 >> shift & (place.fanout.positions() - 1)) as u16
    }
}

/// Which node of a sharded directory: the hash bits that all names below it begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    fanout: Fanout,
    prefix: u64,
    used_bits: u32,
}

impl Place {
    pub fn root(fanout: Fanout) -> Self {
        Self { fanout, prefix: 0, used_bits: 0 }
    }

    pub fn fanout(self) -> Fanout {
        self.fanout
    }

    /// The place of the sub-shard at `position`; `None` where the hash has no bits left to tell its names apart.
    pub fn below(self, position: u16) -> Option<Self> {
        let used_bits = self.used_bits + self.fanout.bits;
        (used_bits + self.fanout.bits <= HASH_BITS).then(|| Self {
            fanout: self.fanout,
            prefix: self.prefix << self.fanout.bits | u64::from(position),
            used_bits,
        })
    }

    /// Whether a name with this hash is found at `position` of this node.
    pub fn holds(self, hash: NameHash, position: u16) -> bool {
        let prefix = hash.0.checked_shr(HASH_BITS - self.used_bits).unwrap_or_default();
        prefix == self.prefix && hash.position(self) == position
    }
}

/// What is at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    Value(String, Entry),
    Sub(Entry),
}

impl Slot {
    pub fn entry(&self) -> &Entry {
        match self {
            Self::Value(_, entry) | Self::Sub(entry) => entry,
        }
    }
}

/// A node of a sharded directory, its slots in order of position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HamtNode {
    fanout: Fanout,
    slots: Vec<(u16, Slot)>,
}

impl HamtNode {
    pub fn new(fanout: Fanout) -> Self {
        Self { fanout, slots: Vec::new() }
    }

    /// Checks that the links agree with the bit field. Whether the names lie where their hashes say depends on the
    /// node's [`Place`], which only the reader knows.
    pub fn decode(cid: &Cid, shard: Shard) -> Result<Self, UnixFsError> {
        let unusable = |what| UnixFsError::Shard(Box::new(*cid), what);
        let fanout = Fanout::new(shard.fanout).ok_or_else(|| unusable("fan-out"))?;
        let occupied = occupied_positions(&shard.bitfield);
        let beyond = occupied.last().is_some_and(|position| *position >= fanout.positions());
        if beyond || shard.links.len() != occupied.len() {
            return Err(unusable("bit field"));
        }
        let mut slots = Vec::with_capacity(occupied.len());
        for link in shard.links {
            slots.push(slot(fanout, link).ok_or_else(|| unusable("link name"))?);
        }
        slots.sort_by_key(|(position, _)| *position);
        if slots.iter().map(|(position, _)| u64::from(*position)).ne(occupied) {
            return Err(unusable("bit field"));
        }
        Ok(Self { fanout, slots })
    }

    pub fn encode(&self) -> Block {
        let digits = self.fanout.prefix_digits();
        let mut bitfield = vec![0; (self.fanout.positions() / 8) as usize];
        let mut links = Vec::with_capacity(self.slots.len());
        for (position, slot) in &self.slots {
            let byte = bitfield.len() - 1 - usize::from(position / 8);
            bitfield[byte] |= 1 << (position % 8);
            let Entry { cid, tsize } = *slot.entry();
            let name = match slot {
                Slot::Value(name, _) => format!("{position:0digits$X}{name}"),
                Slot::Sub(_) => format!("{position:0digits$X}"),
            };
            links.push(Link { name, cid, tsize });
        }
        let zeroes = bitfield.iter().take_while(|byte| **byte == 0).count();
        let bitfield = Bytes::from(bitfield).slice(zeroes..);
        Shard { bitfield, fanout: self.fanout.positions(), links }.encode()
    }

    pub fn fanout(&self) -> Fanout {
        self.fanout
    }

    pub fn slots(&self) -> &[(u16, Slot)] {
        &self.slots
    }

    pub fn get(&self, position: u16) -> Option<&Slot> {
        let index = self.slots.binary_search_by_key(&position, |(position, _)| *position).ok()?;
        Some(&self.slots[index].1)
    }

    /// Fills a position, or empties it.
    pub fn set(&mut self, position: u16, slot: Option<Slot>) {
        match (self.slots.binary_search_by_key(&position, |(position, _)| *position), slot) {
            (Ok(index), Some(slot)) => self.slots[index].1 = slot,
            (Ok(index), None) => drop(self.slots.remove(index)),
            (Err(index), Some(slot)) => self.slots.insert(index, (position, slot)),
            (Err(_), None) => (),
        }
    }
}

/// The set bits of a big-endian number, lowest first.
fn occupied_positions(bitfield: &[u8]) -> Vec<u64> {
    let bytes = bitfield.iter().rev().zip(0_u64..);
    bytes
        .flat_map(|(byte, at)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit))
        .collect()
}

/// Splits a link name into position and name.
fn slot(fanout: Fanout, link: Link) -> Option<(u16, Slot)> {
    let (prefix, name) = link.name.split_at_checked(fanout.prefix_digits())?;
    // `from_str_radix` would take a sign.
    if !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let position = u16::from_str_radix(prefix, 16).ok()?;
    let entry = Entry { cid: link.cid, tsize: link.tsize };
    Some((position, if name.is_empty() { Slot::Sub(entry) } else { Slot::Value(name.to_owned(), entry) }))
}

/// Reads whatever bytes as a node of a sharded directory: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let block = Block::encode(DAG_PB, Bytes::copy_from_slice(bytes));
    let Ok(UnixFs::Shard(shard)) = UnixFs::decode(&block) else { return };
    if let Ok(node) = HamtNode::decode(block.cid(), shard) {
        assert!(node.slots.iter().all(|(position, _)| u64::from(*position) < node.fanout.positions()));
        let written = node.encode();
        let Ok(UnixFs::Shard(again)) = UnixFs::decode(&written) else {
            panic!("what was read can be written")
        };
        assert_eq!(HamtNode::decode(written.cid(), again).ok(), Some(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipld::block::RAW;
    use proptest::prelude::*;

    fn entry(text: &str) -> Entry {
        Entry { cid: *Block::encode(RAW, Bytes::from(text.to_owned())).cid(), tsize: text.len() as u64 }
    }

    fn decode(block: &Block) -> Result<HamtNode, UnixFsError> {
        match UnixFs::decode(block)? {
            UnixFs::Shard(shard) => HamtNode::decode(block.cid(), shard),
            other => panic!("a shard was encoded, not {other:?}"),
        }
    }

    fn shard(bitfield: &'static [u8], fanout: u64, names: &[&str]) -> Shard {
        let links = names.iter().map(|name| {
            let Entry { cid, tsize } = entry(name);
            Link { name: (*name).to_owned(), cid, tsize }
        });
        Shard { bitfield: Bytes::from_static(bitfield), fanout, links: links.collect() }
    }

    #[test]
    fn positions_are_read_from_the_high_bits() {
        let hash = NameHash(0x1234_5678_9abc_def0);
        let root = Place::root(Fanout::F256);
        assert_eq!(hash.position(root), 0x12);
        assert_eq!(hash.position(root.below(0x12).unwrap()), 0x34);
        let wide = Place::root(Fanout::new(1024).unwrap());
        assert_eq!(hash.position(wide), 0x1234 >> 6);
        let narrow = Place::root(Fanout::new(8).unwrap());
        assert_eq!(hash.position(narrow.below(0).unwrap()), 0b100);
    }

    #[test]
    fn depth_ends_with_the_bits_of_the_hash() {
        for (fanout, levels) in [(8, 21), (16, 16), (256, 8), (1024, 6)] {
            let mut place = Some(Place::root(Fanout::new(fanout).unwrap()));
            let mut depth = 0;
            while let Some(at) = place {
                place = at.below(0);
                depth += 1;
            }
            assert_eq!(depth, levels, "fan-out {fanout}");
        }
    }

    #[test]
    fn only_names_with_the_prefix_belong_below() {
        let hash = NameHash(0x1234_5678_9abc_def0);
        let root = Place::root(Fanout::F256);
        assert!(root.holds(hash, 0x12));
        assert!(!root.holds(hash, 0x13));
        assert!(root.below(0x12).unwrap().holds(hash, 0x34));
        assert!(!root.below(0x11).unwrap().holds(hash, 0x34));
    }

    #[test]
    fn link_names_and_bit_field_must_agree() {
        let cid = entry("shard").cid;
        let read = |shard| HamtNode::decode(&cid, shard).map(|node| node.slots.len());
        assert_eq!(read(shard(&[0b101], 256, &["00a", "02"])).unwrap(), 2);
        assert_eq!(read(shard(&[0b101], 256, &["02", "00a"])).unwrap(), 2);
        for names in [
            &["00a", "01"][..],
            &["00a", "00b"],
            &["00a"],
            &["00a", "2"],
            &["00a", ""],
            &["00a", "+2"],
            &["00a", "0\u{e9}"],
            &["00a", "zz"],
        ] {
            assert!(read(shard(&[0b101], 256, names)).is_err(), "{names:?}");
        }
        assert!(read(shard(&[0b1, 0], 8, &["8a"])).is_err());
        assert!(read(shard(&[0b1], 7, &["0a"])).is_err());
        assert!(read(shard(&[0b1], 2048, &["000a"])).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            bits in 3_u32..=10,
            chosen in proptest::collection::btree_map(0_u16..1024, "[a-zé]{0,9}", 0..60),
        ) {
            let fanout = Fanout::new(1 << bits).unwrap();
            let mut node = HamtNode::new(fanout);
            for (position, name) in chosen {
                let position = position % (1 << bits);
                let slot = if name.is_empty() { Slot::Sub(entry("sub")) } else { Slot::Value(name.clone(), entry(&name)) };
                node.set(position, Some(slot));
            }
            prop_assert_eq!(decode(&node.encode()).unwrap(), node);
        }

        #[test]
        fn strange_links_do_no_harm(
            bitfield in proptest::collection::vec(any::<u8>(), 0..40),
            fanout in any::<u64>(),
            names in proptest::collection::vec(".{0,5}", 0..20),
        ) {
            let links = names.iter().map(|name| Link { name: name.clone(), cid: entry(name).cid, tsize: 1 });
            let shard = Shard { bitfield: bitfield.into(), fanout, links: links.collect() };
            let _ = HamtNode::decode(&entry("shard").cid, shard);
        }

        #[test]
        fn strange_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }

        #[test]
        fn damaged_shards_do_no_harm(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut node = HamtNode::new(Fanout::F256);
            node.set(7, Some(Slot::Value("name".to_owned(), entry("name"))));
            node.set(200, Some(Slot::Sub(entry("sub"))));
            let mut bytes = node.encode().into_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            fuzz(&bytes);
        }
    }
}
