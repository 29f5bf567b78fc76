//! DAGs, local first, filled from the network.

mod archive;
pub mod blocks;
pub mod file;
#[cfg(test)]
mod file_tests;
mod keep;
mod mark;
#[cfg(test)]
mod testing;
pub mod tree;
mod tree_edit;
mod tree_list;
mod tree_merge;
#[cfg(test)]
mod tree_tests;

pub use archive::archive;
pub use blocks::Blocks;
pub use keep::Keep;
pub use mark::Marks;
pub use tree::{Edit, Entry, Listing, Tree};
pub use tree_merge::Additions;

use std::sync::Arc;

use cid::Cid;

use crate::ipfs::IpfsError;
use crate::ipld::unixfs::UnixFsError;
use crate::store::StoreError;

/// Why a DAG could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DagError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Fetch(#[from] IpfsError),
    #[error(transparent)]
    Format(#[from] UnixFsError),
    /// A DAG that lies about sizes, is deeper or wider than allowed, or is not what the path says.
    #[error("{what} at {cid}")]
    Invalid { cid: Box<Cid>, what: &'static str },
    #[error("the work was given up: {0}")]
    Cancelled(&'static str),
    /// The failure of a fetch that several waited for.
    #[error(transparent)]
    Shared(#[from] Arc<DagError>),
}

impl DagError {
    /// Whether nobody was there to be asked.
    pub fn is_no_peers(&self) -> bool {
        match self {
            Self::Fetch(error) => error.is_nobody_there(),
            Self::Shared(error) => error.is_no_peers(),
            _ => false,
        }
    }

    /// Whether the network did not deliver, which another try may mend.
    pub fn is_fetch(&self) -> bool {
        match self {
            Self::Fetch(_) | Self::Cancelled(_) => true,
            Self::Shared(error) => error.is_fetch(),
            Self::Store(_) | Self::Format(_) | Self::Invalid { .. } => false,
        }
    }
}
