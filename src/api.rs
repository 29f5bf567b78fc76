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
    pub nat: Nat,
    /// What is used instead of the embedded node; absent: that runs.
    pub kubo: Option<Kubo>,
    /// The delegated routers and gateways of the config.
    #[serde(default)]
    pub web: Vec<Web>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Web {
    pub url: String,
    /// `router` or `gateway`.
    pub kind: String,
    /// `asked`, or `resting` for a while after a failure.
    pub state: String,
    /// The last failure, unless an answer came since.
    pub error: Option<String>,
}

/// How peers reach the node, and the node them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nat {
    /// `public`, `private` (by a relay only), or `unknown` until a peer has tested it.
    pub reachability: String,
    /// Where it is reached by the relays that hold a reservation of it.
    pub relayed_addresses: Vec<String>,
    /// Peers with a direct connection.
    pub direct_peers: usize,
    /// Peers that are reached by a relay alone.
    pub relayed_peers: usize,
    /// Peers that this node is a relay for, and connections that it passes on.
    pub reservations_given: usize,
    pub circuits: usize,
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
    /// Absent unless publishing is blocked.
    #[serde(default)]
    pub other_writer: Option<OtherWriter>,
    /// Names that were given up for this one and lead to it, the oldest first.
    #[serde(default)]
    pub former_names: Vec<String>,
}

/// What another daemon has published with the same key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OtherWriter {
    pub sequence: u64,
    /// `/ipfs/<cid>`, or `/ipns/<name>` if it gave the name up.
    pub value: String,
    pub valid_until: String,
}

/// `POST /v0/name/adopt`. `POST /v0/publish` and `POST /v0/name/overwrite` answer [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Adopted {
    pub own: Own,
    /// Tags that pointed elsewhere in both trees; at most 10,000 are listed.
    pub conflicts: Vec<TagConflict>,
    /// Files that nobody delivered: they are fetched when they are asked for.
    pub missing_files: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TagConflict {
    pub repository: String,
    pub tag: String,
    /// The digest that it points to from now on.
    pub ours: String,
    /// The digest that it pointed to in the other tree.
    pub theirs: String,
}

/// `POST /v0/key/rotate?name=…`; without a name, the key that is published under.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rotated {
    /// The name in force.
    pub name: String,
    /// The name that leads to it.
    pub former_name: String,
    /// What the old key is called now.
    pub former_key: String,
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
    /// The name that this one was given up for, and that is read in its place.
    #[serde(default)]
    pub moved_to: Option<String>,
    /// Since a record on the way to the root expired: what is served may be out of date.
    #[serde(default)]
    pub expired_for_s: Option<u64>,
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
