//! DAG-PB nodes (IPLD DAG-PB specification): a list of links and some bytes.

use bytes::Bytes;
use cid::Cid;
use ipld_dagpb::{PbLink, PbNode};

use super::block::{Block, DAG_PB};

/// The most links that a node may have. A block of 2 MiB could hold some 50,000; nobody writes more than 1,024
/// to a file node or 4,000 to a directory of 256 KiB.
pub const LINKS_MAX: usize = 65_536;

/// A link to a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Empty for the links of a file.
    pub name: String,
    pub cid: Cid,
    /// Bytes of all blocks below, the child's own too; as its writer claims.
    pub tsize: u64,
}

/// A DAG-PB node. Encoding is canonical: links sorted by name, equal names in the order given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub links: Vec<Link>,
    pub data: Bytes,
}

/// Why a block is no DAG-PB node.
#[derive(Debug, thiserror::Error)]
pub enum DagPbError {
    #[error("block {0} is not valid dag-pb")]
    Malformed(Box<Cid>, #[source] ipld_dagpb::Error),
    #[error("block {0} has {1} links: at most {LINKS_MAX} are read")]
    TooManyLinks(Box<Cid>, usize),
}

impl Node {
    pub fn decode(block: &Block) -> Result<Self, DagPbError> {
        let node = PbNode::from_bytes(block.bytes().clone())
            .map_err(|error| DagPbError::Malformed(Box::new(*block.cid()), error))?;
        if node.links.len() > LINKS_MAX {
            return Err(DagPbError::TooManyLinks(Box::new(*block.cid()), node.links.len()));
        }
        let links = node.links.into_iter().map(|link| Link {
            name: link.name.unwrap_or_default(),
            cid: link.cid,
            tsize: link.size.unwrap_or_default(),
        });
        Ok(Self { links: links.collect(), data: node.data.unwrap_or_default() })
    }

    /// The node as a CIDv1 block.
    pub fn encode(&self) -> Block {
        let links = self.links.iter().map(|link| PbLink {
            cid: link.cid,
            name: Some(link.name.clone()),
            size: Some(link.tsize),
        });
        let node = PbNode { links: links.collect(), data: Some(self.data.clone()) };
        Block::encode(DAG_PB, node.into_bytes().into())
    }
}

/// Reads whatever bytes as a node: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let block = Block::encode(DAG_PB, Bytes::copy_from_slice(bytes));
    if let Ok(mut node) = Node::decode(&block) {
        assert!(node.links.len() <= LINKS_MAX);
        let again = Node::decode(&node.encode());
        node.links.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(again.ok(), Some(node), "what was read can be written");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipld::block::RAW;

    fn link(name: &str, tsize: u64) -> Link {
        let block = Block::encode(RAW, Bytes::copy_from_slice(name.as_bytes()));
        Link { name: name.to_owned(), cid: *block.cid(), tsize }
    }

    #[test]
    fn junk_is_no_node() {
        let junk = Block::encode(DAG_PB, Bytes::from_static(b"\xff\xff"));
        assert!(matches!(Node::decode(&junk), Err(DagPbError::Malformed(..))));
    }

    #[test]
    fn links_have_a_greatest_number() {
        let node = |links: usize| Node { links: vec![link("", 1); links], data: Bytes::new() }.encode();
        assert!(Node::decode(&node(1000)).is_ok());
        assert!(matches!(Node::decode(&node(LINKS_MAX + 1)), Err(DagPbError::TooManyLinks(..))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            links in proptest::collection::vec((".{0,20}", any::<u64>()), 0..20),
            data in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let links: Vec<_> = links.iter().map(|(name, tsize)| link(name, *tsize)).collect();
            let mut node = Node { links, data: data.into() };
            let read = Node::decode(&node.encode()).unwrap();
            node.links.sort_by(|a, b| a.name.cmp(&b.name));
            prop_assert_eq!(read, node);
        }

        #[test]
        fn strange_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }

        #[test]
        fn damaged_nodes_do_no_harm(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let node = Node { links: vec![link("a", 1), link("b", 300)], data: Bytes::from_static(b"data") };
            let mut bytes = node.encode().into_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            fuzz(&bytes);
        }
    }
}
