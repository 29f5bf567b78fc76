//! The distribution vocabulary: digests, names, manifests, routes. Pure: no I/O, no async, no clock.

pub mod access;
pub mod anywhere;
pub mod digest;
pub mod docker_archive;
pub mod error;
pub mod image_layout;
pub mod image_name;
pub mod layout_names;
pub mod manifest;
pub mod name;
pub mod platform;
pub mod range;
pub mod repository;
pub mod route;
pub mod storage;

pub use access::{Access, Action};
pub use anywhere::{Anywhere, Namespace};
pub use digest::{Algorithm, Digest, Hasher};
pub use error::ErrorCode;
pub use image_name::ImageName;
pub use name::{Reference, RepoName, Tag};
pub use platform::Platform;
pub use repository::{Host, Repository};
pub use route::Route;
