//! What the daemon and the command line say to each other over `api.sock`: JSON over HTTP/1.1.

use serde::{Deserialize, Serialize};

/// The socket below the root directory, mode 0600.
pub const SOCKET: &str = "api.sock";

/// `GET /v0/status`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub uptime_s: u64,
    /// Where clients reach the registry, as the ready line has it.
    pub registry: String,
    pub node: Node,
    /// Absent for a read-only daemon.
    pub own: Option<Own>,
    pub readonly: Vec<Readonly>,
    pub store: Store,
    /// What was pulled through; absent if no registry is mirrored.
    pub cache: Option<Cache>,
    /// The registries that are mirrored; those known by `"*"` once they were asked.
    pub upstreams: Vec<Upstream>,
    /// What is being pulled through.
    pub fills: Vec<Fill>,
    pub transfers: Transfers,
    pub tasks: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cache {
    /// Of blocks, which the quota bounds.
    pub live_bytes: u64,
    pub disk_bytes: u64,
    /// Absent: no limit.
    pub quota_bytes: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upstream {
    pub host: String,
    /// `asked`, or `resting` for a while after repeated failures.
    pub state: String,
    /// The last failure, unless an answer came since.
    pub error: Option<String>,
    pub rate_limit: Option<RateLimit>,
}

/// Of pulls, as Docker Hub tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RateLimit {
    pub remaining: u64,
    pub limit: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fill {
    /// With its registry before it.
    pub repository: String,
    pub digest: String,
    /// Absent until the source has told it.
    pub size_bytes: Option<u64>,
    pub received_bytes: u64,
    /// Where the bytes come from, as in `x-shoal-source`.
    pub from: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    pub peer_id: String,
    pub addresses: Vec<String>,
    pub peers: usize,
    /// Peers that share pulled-through images with this daemon.
    pub mesh_peers: usize,
    pub announcements_waiting: usize,
    /// Peers that records of names are exchanged with over pubsub; absent if it is off.
    pub pubsub_peers: Option<usize>,
    /// What is used instead of the embedded node; absent: that runs.
    pub kubo: Option<Kubo>,
}

/// A Kubo, whose peer id, addresses and peers are then those of the node. There is no mesh, no pubsub and no mDNS of our
/// own with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kubo {
    /// Where its RPC API is.
    pub api: String,
    /// Absent until it has answered.
    pub version: Option<String>,
    /// Why it did not answer the last time.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Own {
    pub name: String,
    pub root: String,
    pub sequence: Option<u64>,
    /// RFC 3339: when the network last took the record.
    pub published_at: Option<String>,
    /// `pending`, `published` or `blocked`.
    pub state: String,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Readonly {
    pub name: String,
    /// What is brought here before it is asked for: `none`, `tags` or `all`.
    pub follow: String,
    pub replica: Replica,
    /// What is served.
    pub root: Option<String>,
    /// Of the newest record.
    pub sequence: Option<u64>,
    pub valid_until: Option<String>,
    /// Since the network last confirmed the record.
    pub record_age_s: Option<u64>,
    /// Since the root was taken over.
    pub root_age_s: Option<u64>,
    pub error: Option<String>,
}

/// How far it has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replica {
    /// All that is to be here of the root that is served is here.
    pub whole: bool,
    /// Of the root; 0 unless all are brought.
    pub blobs: usize,
    pub blobs_held: usize,
    /// Brought in this run.
    pub received_bytes: u64,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Store {
    pub blocks: u64,
    pub live_bytes: u64,
    pub disk_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfers {
    pub uploads: usize,
    pub downloads: usize,
    /// Blocks that are being fetched from peers.
    pub fetches: usize,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// `POST /v0/gc`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Collected {
    /// Blobs that left a repository or the tree.
    pub links: u64,
    pub blocks: u64,
    pub bytes: u64,
}

/// `GET /v0/cache`: each of the list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CachedImage {
    /// With its registry before it.
    pub repository: String,
    pub digest: String,
    pub tags: Vec<String>,
    /// Of the manifest and of the blobs that are here.
    pub size_bytes: u64,
    pub missing_blobs: usize,
    /// Seconds since 1970; 0 if that is not known.
    pub used_at_s: u64,
    pub pinned: bool,
}

/// `POST /v0/cache/prefetch?image=…&platform=…`, which returns when all has come, and `…/pin`, `…/unpin`,
/// `…/evict`, which with `&force=true` takes what is pinned too.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// `false`: it was so already, or there is no such image.
    pub changed: bool,
}

/// In the body of `POST /v0/layouts?name=…`: a line of JSON for each file of an image layout, with the file's bytes behind
/// it. The answer is a [`Layout`], once all of it is on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayoutFile {
    /// Below the folder, components separated by `/`.
    pub path: String,
    pub size_bytes: u64,
}

/// The longest line of JSON there, in bytes.
pub const LAYOUT_FILE_BYTES_MAX: usize = 8 << 10;

/// `GET /v0/layouts`: each of the list. `DELETE /v0/layouts?cid=…` answers [`Changed`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// CIDv1 in base32, as a repository name takes it.
    pub cid: String,
    pub name: String,
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub added_at_s: u64,
}

/// `GET /v0/resolve?name=…`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    pub name: String,
    pub value: String,
    pub sequence: u64,
    pub valid_until: String,
}

/// The body of every answer that is no success.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}
