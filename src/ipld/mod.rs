//! The formats of IPFS. Pure: no I/O, no async, no clock.

pub mod block;
pub mod car;
pub mod dag_pb;
pub mod directory;
pub mod file_builder;
pub mod hamt;
pub mod ipns;
pub mod path;
pub mod unixfs;

pub use block::{Block, BlockError, Multihash};
pub use cid::Cid;
pub use ipns::parse_cid;
pub use path::{Domain, IpfsPath, Pointer, TreeName};
