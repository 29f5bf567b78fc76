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
