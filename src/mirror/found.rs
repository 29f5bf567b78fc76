//! How something is asked for, and what is found.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;

use super::pull_through::Found;
use crate::ipfs::Peer;
use crate::ipld::TreeName;
use crate::oci::{Digest, Host, RepoName};
use crate::store::IndexEntry;

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Under the own root.
    Own,
    /// Under the root of a name that is followed.
    Readonly(TreeName),
    /// Below a CID that the repository names, or the name leads to.
    Ipfs(Cid),
    /// Among what was pulled through before.
    Cache,
    /// At its registry, just now.
    Upstream(Host),
    /// At a peer of the mesh.
    Peer(Peer),
}

impl Origin {
    /// What sort of place it is, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Readonly(_) => "readonly",
            Self::Ipfs(_) => "ipfs",
            Self::Cache => "cache",
            Self::Upstream(_) => "upstream",
            Self::Peer(_) => "peer",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Readonly(name) => fmt::Display::fmt(name, f),
            Self::Ipfs(root) => write!(f, "ipfs={root}"),
            Self::Cache => f.write_str("cache"),
            Self::Upstream(host) => write!(f, "upstream={host}"),
            Self::Peer(peer) => write!(f, "peer={peer}"),
        }
    }
}

/// A manifest, byte for byte as it was pushed.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
}

/// How a client names a repository.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub repo: &'a RepoName,
    /// The registry that it is one of, as containerd says it (`?ns=`). Such a client has a way around us.
    pub registry: Option<&'a Host>,
    /// The mirrors that it came by (RFC 9110, section 7.6.3). If we are among them, no registry is asked.
    pub via: Option<&'a str>,
    /// The registry is ourselves, so that no other is asked.
    pub is_ours: bool,
}

/// What a client is going to do with a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It asked for the header alone.
    Header,
    /// It asks for the blobs that it wants at once, and need not be helped.
    Manifest,
    /// It is going to ask for the blobs.
    Image,
}

/// How old an answer is that upstream, or the author of a followed name, has confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Age {
    pub since_confirmed: Duration,
    /// Older than it should be: upstream did not answer, or the record of the name has expired.
    pub stale: bool,
}

/// A manifest that was found.
#[derive(Clone, Debug)]
pub struct Served {
    pub manifest: Manifest,
    pub origin: Origin,
    /// Of what a tag of another registry points to, or of what is read from a name whose record has expired.
    pub age: Option<Age>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    pub page: T,
    /// Of what another registry has listed.
    pub age: Option<Age>,
}

/// A blob that was found; its bytes may still be elsewhere.
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// Under a root of ours or of somebody we follow.
    Rooted(StoredBlob),
    /// Of another registry.
    PulledThrough(Found),
    /// Only the size was asked for.
    SizeAlone,
}

/// A blob below some root.
#[derive(Clone, Debug)]
pub(super) struct StoredBlob {
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) entry: IndexEntry,
    /// Its bytes were held to the digest before.
    pub(super) proven: bool,
    /// Whose providers are looked for when blocks are missing; `None`: its own.
    pub(super) session_root: Option<Box<Cid>>,
}

impl StoredBlob {
    /// For a blob that is announced with its root, and not by itself.
    pub(super) fn of_root(self, root: Cid) -> Self {
        Self { session_root: Some(Box::new(root)), ..self }
    }
}

impl From<StoredBlob> for Blob {
    fn from(blob: StoredBlob) -> Self {
        Self { digest: blob.digest, size_bytes: blob.size_bytes, content: Content::Rooted(blob) }
    }
}

/// A page of names, sorted bytewise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub names: Vec<String>,
    /// Whether more follow the last one.
    pub more: bool,
}

impl Page {
    /// The part of a sorted list that lies behind `last`.
    pub(super) fn of(all: Vec<String>, last: Option<&str>, limit: usize) -> Self {
        let mut names: Vec<String> =
            all.into_iter().filter(|name| last.is_none_or(|last| name.as_str() > last)).collect();
        let more = names.len() > limit;
        names.truncate(limit);
        Self { names, more }
    }

    /// The union of two pages that begin behind the same name, cut to `limit`.
    pub(super) fn merge(self, other: Self, limit: usize) -> Self {
        let mut names: Vec<String> = self.names.into_iter().chain(other.names).collect();
        names.sort_unstable();
        names.dedup();
        let more = self.more || other.more || names.len() > limit;
        names.truncate(limit);
        Self { names, more }
    }
}
