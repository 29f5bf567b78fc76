//! CARv1 (IPLD specification "Content Addressable aRchives"): blocks with their CIDs, one after the other; and which blocks
//! belong to an answer of the trustless gateway (IPIP-402).

use bytes::Bytes;
use cid::Cid;
use ipld_core::ipld::Ipld;

use super::block::{Block, DAG_PB};
use super::dag_pb::Node;
use super::hamt::Fanout;
use super::unixfs::{UnixFs, UnixFsError};

/// How much of what is below a block belongs to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The block alone.
    Block,
    /// The file, or the directory without what it lists.
    Entity,
    /// Everything.
    All,
}

/// The first bytes of an archive with one root.
pub fn header(root: &Cid) -> Bytes {
    let header = Ipld::Map(
        [("roots".to_owned(), Ipld::List(vec![Ipld::Link(*root)])), ("version".to_owned(), Ipld::Integer(1))]
            .into(),
    );
    // A map of a list and a number always has an encoding.
    let header = serde_ipld_dagcbor::to_vec(&header).unwrap_or_default();
    [length(header.len()).as_slice(), &header].concat().into()
}

/// A block as an archive has it: what goes before its bytes, and these.
pub fn entry(block: &Block) -> [Bytes; 2] {
    let cid = block.cid().to_bytes();
    [[length(cid.len() + block.bytes().len()).as_slice(), &cid].concat().into(), block.bytes().clone()]
}

fn length(bytes: usize) -> Vec<u8> {
    let mut buffer = unsigned_varint::encode::usize_buffer();
    unsigned_varint::encode::usize(bytes, &mut buffer).to_vec()
}

/// The blocks that belong to an answer after `block`, in order, before those below them. A block of another codec than
/// DAG-PB ends its branch.
pub fn below(block: &Block, scope: Scope) -> Result<Vec<Cid>, UnixFsError> {
    if scope == Scope::Block || block.cid().codec() != DAG_PB {
        return Ok(Vec::new());
    }
    if scope == Scope::All {
        let node = Node::decode(block)?;
        return Ok(node.links.into_iter().map(|link| link.cid).collect());
    }
    Ok(match UnixFs::decode(block)? {
        UnixFs::File(file) => file.children.into_iter().map(|child| child.cid).collect(),
        UnixFs::Directory(_) | UnixFs::Symlink(_) => Vec::new(),
        UnixFs::Shard(shard) => {
            let digits = Fanout::new(shard.fanout).map(Fanout::prefix_digits);
            let deeper = shard.links.into_iter().filter(|link| Some(link.name.len()) == digits);
            deeper.map(|link| link.cid).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipld::block::RAW;
    use crate::ipld::dag_pb::Link;
    use crate::ipld::unixfs::{File, FileChild, Shard, encode_directory};

    fn leaf() -> Block {
        Block::encode(RAW, Bytes::from_static(b"hello"))
    }

    fn link(name: &str) -> Link {
        Link { name: name.to_owned(), cid: *leaf().cid(), tsize: 5 }
    }

    #[test]
    fn an_archive_of_one_block_is_as_the_specification_has_it() {
        let leaf = leaf();
        let [before, bytes] = entry(&leaf);
        let archive = [header(leaf.cid()), before, bytes].concat();
        let cid = leaf.cid().to_bytes();
        // {"roots": [42(h'00' + CID)], "version": 1}
        let mut expected = vec![0x3a, 0xa2, 0x65];
        expected.extend(b"roots");
        expected.extend([0x81, 0xd8, 0x2a, 0x58, 0x25, 0x00]);
        expected.extend(&cid);
        expected.push(0x67);
        expected.extend(b"version");
        expected.push(0x01);
        expected.push(36 + 5);
        expected.extend(&cid);
        expected.extend(b"hello");
        assert_eq!(archive, expected);
    }

    #[test]
    fn an_entity_is_a_whole_file_and_a_directory_without_its_entries() {
        let child = FileChild { cid: *leaf().cid(), size_bytes: 5, tsize: 5 };
        let file = File { data: Bytes::new(), children: vec![child.clone(), child] }.encode();
        let directory = encode_directory(vec![link("x")]);
        let shard = Shard {
            bitfield: Bytes::from_static(&[0b11]),
            fanout: 256,
            links: vec![link("00"), link("01x")],
        }
        .encode();
        let counted =
            |scope| [&leaf(), &file, &directory, &shard].map(|block| below(block, scope).unwrap().len());
        assert_eq!(counted(Scope::Block), [0, 0, 0, 0]);
        assert_eq!(counted(Scope::Entity), [0, 2, 0, 1]);
        assert_eq!(counted(Scope::All), [0, 2, 1, 2]);
    }
}
