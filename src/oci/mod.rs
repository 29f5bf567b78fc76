//! The distribution vocabulary: digests, names, manifests, routes. Pure: no I/O, no async, no clock.

pub mod digest;
pub mod error;
pub mod manifest;
pub mod name;
pub mod range;
pub mod route;
pub mod storage;

pub use digest::{Algorithm, Digest, Hasher};
pub use error::ErrorCode;
pub use name::{Reference, RepoName, Tag};
pub use route::Route;
