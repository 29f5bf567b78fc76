//! UnixFS nodes (UnixFS specification; IPIP-0499 for what we write): what a block means as part of a file or directory.
//!
//! Mode and mtime are read past and never written.

use bytes::Bytes;
use cid::Cid;
use prost::Message;

use super::block::{Block, DAG_PB, RAW};
use super::dag_pb::{DagPbError, Link, Node};

/// The hash function of HAMT shards: murmur3-x64-64.
pub const HAMT_MURMUR3: u64 = 0x22;

/// The largest fan-out of a shard that is read; everybody writes 256.
pub const HAMT_FANOUT_MAX: u64 = 1024;

/// The protobuf inside a DAG-PB node.
#[derive(Clone, PartialEq, Message)]
struct Data {
    /// The schema requires it, which prost does not enforce.
    #[prost(int32, optional, tag = "1")]
    kind: Option<i32>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    data: Option<Bytes>,
    #[prost(uint64, optional, tag = "3")]
    file_size: Option<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    block_sizes: Vec<u64>,
    #[prost(uint64, optional, tag = "5")]
    hash_type: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    fanout: Option<u64>,
}

const TYPE_RAW: i32 = 0;
const TYPE_DIRECTORY: i32 = 1;
const TYPE_FILE: i32 = 2;
const TYPE_SYMLINK: i32 = 4;
const TYPE_HAMT_SHARD: i32 = 5;

/// What a block is in UnixFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixFs {
    File(File),
    Directory(Vec<Link>),
    Shard(Shard),
    Symlink(Bytes),
}

/// A file, or a part of one: bytes of its own first, then those of its children in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Bytes that the node carries itself.
    pub data: Bytes,
    pub children: Vec<FileChild>,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChild {
    pub cid: Cid,
    /// File bytes below, as the writer claims; who reads must hold the child to it.
    pub size_bytes: u64,
    /// See [`Link::tsize`].
    pub tsize: u64,
}

/// A node of a sharded directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// A bit for each occupied position, big-endian, leading zeroes cut off.
    pub bitfield: Bytes,
    /// Positions in each node: a power of two from 8 to [`HAMT_FANOUT_MAX`].
    pub fanout: u64,
    /// Names begin with the position in hex, padded to the digits of the largest; nothing follows in links to sub-shards.
    pub links: Vec<Link>,
}

/// Why a block is no UnixFS node.
#[derive(Debug, thiserror::Error)]
pub enum UnixFsError {
    #[error(transparent)]
    DagPb(#[from] DagPbError),
    #[error("block {0} has codec {1:#x}: UnixFS uses raw and dag-pb")]
    Codec(Box<Cid>, u64),
    #[error("block {0} does not carry a valid UnixFS message")]
    Malformed(Box<Cid>, #[source] prost::DecodeError),
    #[error("block {0} does not say what it is in UnixFS")]
    NoKind(Box<Cid>),
    #[error("block {0} is of UnixFS type {1}, which is not supported")]
    Kind(Box<Cid>, i32),
    #[error("block {0} is a file node with {1} links and {2} block sizes")]
    BlockSizes(Box<Cid>, usize, usize),
    #[error("block {0} claims a file size that its parts do not add up to")]
    FileSize(Box<Cid>),
    #[error("block {0} is a directory shard with an unusable {1}")]
    Shard(Box<Cid>, &'static str),
}

impl File {
    /// The bytes of the whole, its own and its children's. Decoding proved that the sum does not overflow.
    pub fn size_bytes(&self) -> u64 {
        self.data.len() as u64 + self.children.iter().map(|child| child.size_bytes).sum::<u64>()
    }

    /// The node as a dag-pb block of profile `unixfs-v1-2025`.
    pub fn encode(&self) -> Block {
        let links = self.children.iter().map(|child| Link {
            name: String::new(),
            cid: child.cid,
            tsize: child.tsize,
        });
        let message = Data {
            kind: Some(TYPE_FILE),
            data: (!self.data.is_empty()).then(|| self.data.clone()),
            file_size: Some(self.size_bytes()),
            block_sizes: self.children.iter().map(|child| child.size_bytes).collect(),
            hash_type: None,
            fanout: None,
        };
        Node { links: links.collect(), data: message.encode_to_vec().into() }.encode()
    }
}

/// A directory in one block; links may come in any order.
pub fn encode_directory(links: Vec<Link>) -> Block {
    let message = Data { kind: Some(TYPE_DIRECTORY), ..Data::default() };
    Node { links, data: message.encode_to_vec().into() }.encode()
}

impl Shard {
    pub fn encode(&self) -> Block {
        let message = Data {
            kind: Some(TYPE_HAMT_SHARD),
            data: Some(self.bitfield.clone()),
            hash_type: Some(HAMT_MURMUR3),
            fanout: Some(self.fanout),
            ..Data::default()
        };
        Node { links: self.links.clone(), data: message.encode_to_vec().into() }.encode()
    }
}

impl UnixFs {
    /// Reads a raw leaf or a dag-pb node. Sizes are checked against each other, not yet against the children.
    pub fn decode(block: &Block) -> Result<Self, UnixFsError> {
        let cid = || Box::new(*block.cid());
        match block.cid().codec() {
            RAW => return Ok(Self::File(File { data: block.bytes().clone(), children: Vec::new() })),
            DAG_PB => (),
            codec => return Err(UnixFsError::Codec(cid(), codec)),
        }
        let node = Node::decode(block)?;
        let message = Data::decode(node.data).map_err(|error| UnixFsError::Malformed(cid(), error))?;
        match message.kind.ok_or_else(|| UnixFsError::NoKind(cid()))? {
            TYPE_RAW | TYPE_FILE => file(block.cid(), message, node.links).map(Self::File),
            TYPE_DIRECTORY => Ok(Self::Directory(node.links)),
            TYPE_SYMLINK => Ok(Self::Symlink(message.data.unwrap_or_default())),
            TYPE_HAMT_SHARD => shard(block.cid(), message, node.links).map(Self::Shard),
            kind => Err(UnixFsError::Kind(cid(), kind)),
        }
    }
}

fn file(cid: &Cid, message: Data, links: Vec<Link>) -> Result<File, UnixFsError> {
    if links.len() != message.block_sizes.len() {
        return Err(UnixFsError::BlockSizes(Box::new(*cid), links.len(), message.block_sizes.len()));
    }
    let data = message.data.unwrap_or_default();
    let sum = message.block_sizes.iter().try_fold(data.len() as u64, |sum, size| sum.checked_add(*size));
    if sum.is_none() || message.file_size.is_some_and(|size| Some(size) != sum) {
        return Err(UnixFsError::FileSize(Box::new(*cid)));
    }
    let children = links.into_iter().zip(message.block_sizes).map(|(link, size_bytes)| FileChild {
        cid: link.cid,
        size_bytes,
        tsize: link.tsize,
    });
    Ok(File { data, children: children.collect() })
}

fn shard(cid: &Cid, message: Data, links: Vec<Link>) -> Result<Shard, UnixFsError> {
    let unusable = |what| UnixFsError::Shard(Box::new(*cid), what);
    if message.hash_type != Some(HAMT_MURMUR3) {
        return Err(unusable("hash function"));
    }
    let fanout = message.fanout.unwrap_or_default();
    if !fanout.is_power_of_two() || !(8..=HAMT_FANOUT_MAX).contains(&fanout) {
        return Err(unusable("fan-out"));
    }
    let bitfield = message.data.unwrap_or_default();
    let set: u32 = bitfield.iter().map(|byte| byte.count_ones()).sum();
    if bitfield.len() as u64 * 8 > fanout || set as usize != links.len() {
        return Err(unusable("bit field"));
    }
    Ok(Shard { bitfield, fanout, links })
}

/// Reads whatever bytes as a node: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let block = Block::encode(DAG_PB, Bytes::copy_from_slice(bytes));
    let Ok(node) = UnixFs::decode(&block) else { return };
    let written = match &node {
        UnixFs::File(file) => {
            assert!(file.size_bytes() >= file.data.len() as u64, "the sum does not overflow");
            file.encode()
        }
        UnixFs::Directory(links) => encode_directory(links.clone()),
        UnixFs::Shard(shard) => shard.encode(),
        UnixFs::Symlink(_) => return,
    };
    match (UnixFs::decode(&written), node) {
        // Written in order of their names.
        (Ok(UnixFs::Directory(again)), UnixFs::Directory(links)) => assert_eq!(again.len(), links.len()),
        (Ok(UnixFs::Shard(again)), UnixFs::Shard(shard)) => assert_eq!(again.bitfield, shard.bitfield),
        (again, node) => assert_eq!(again.ok(), Some(node), "what was read can be written"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn child(text: &'static [u8]) -> FileChild {
        let block = Block::encode(RAW, Bytes::from_static(text));
        FileChild { cid: *block.cid(), size_bytes: text.len() as u64, tsize: text.len() as u64 }
    }

    fn nodes() -> [Block; 3] {
        let file = File { data: Bytes::from_static(b"data"), children: vec![child(b"a"), child(b"bc")] };
        let link = |name: &str| Link { name: name.to_owned(), cid: child(b"d").cid, tsize: 300 };
        let shard = Shard {
            bitfield: Bytes::from_static(&[0b101]),
            fanout: 256,
            links: vec![link("00a"), link("02")],
        };
        [file.encode(), encode_directory(vec![link("x"), link("y")]), shard.encode()]
    }

    #[test]
    fn a_node_without_a_type_is_none() {
        for bytes in [&b""[..], b"\x0a\x00", b"\x0a\x02\x18\x00"] {
            let block = Block::encode(DAG_PB, Bytes::from_static(bytes));
            assert!(matches!(UnixFs::decode(&block), Err(UnixFsError::NoKind(_))), "{bytes:?}");
        }
    }

    #[test]
    fn sizes_that_do_not_add_up_are_refused() {
        let links = |count: usize| vec![Link { name: String::new(), cid: child(b"d").cid, tsize: 1 }; count];
        let decode = |file_size, block_sizes: &[u64], links| {
            let message = Data {
                kind: Some(TYPE_FILE),
                file_size,
                block_sizes: block_sizes.to_vec(),
                ..Data::default()
            };
            UnixFs::decode(&Node { links, data: message.encode_to_vec().into() }.encode())
        };
        assert!(decode(Some(3), &[1, 2], links(2)).is_ok());
        assert!(decode(None, &[1, 2], links(2)).is_ok());
        assert!(matches!(decode(Some(4), &[1, 2], links(2)), Err(UnixFsError::FileSize(_))));
        assert!(matches!(decode(None, &[u64::MAX, 1], links(2)), Err(UnixFsError::FileSize(_))));
        assert!(matches!(decode(Some(3), &[3], links(2)), Err(UnixFsError::BlockSizes(_, 2, 1))));
        assert!(matches!(decode(Some(3), &[1, 2], links(0)), Err(UnixFsError::BlockSizes(_, 0, 2))));
    }

    proptest! {
        #[test]
        fn strange_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }

        #[test]
        fn damaged_nodes_do_no_harm(node in 0..3_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = nodes()[node].bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            fuzz(&bytes);
        }
    }
}
