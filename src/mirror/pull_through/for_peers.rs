//! What peers of the mesh are given: what was pulled through of registries that are shared, also while it comes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::super::mesh::{Hop, Key};
use super::super::{MirrorError, Served, StoredBlob};
use super::fill::{Fill, Follower};
use super::manifests::Scope;
use super::reader::{self, For};
use super::supply::Supply;
use super::{Place, PullThrough, STALE_AFTER};
use crate::ipfs::Peer;
use crate::oci::{Digest, Host, Reference, RepoName, Repository};

/// How long a peer waits to hear more than that the blob is being looked for.
const LOOKED_FOR: Duration = Duration::from_millis(350);
/// The same for a manifest: longer than upstream may take before a tag is served as it last was.
const MANIFEST_LOOKED_FOR: Duration = STALE_AFTER.saturating_add(Duration::from_millis(50));

/// What a peer is told that asks for a blob.
pub enum BlobForPeer {
    Found(Box<SharedBlob>),
    /// Enough follow its fill already: these. Nobody: it is still looking for it.
    Refer(Vec<Peer>),
    /// Its registry is not mirrored here, or not shared.
    NotMirrored,
    /// Its registry refuses us.
    Refused,
    /// It is not here, and not to be fetched for this peer.
    No,
}

/// A blob that a peer may read.
pub struct SharedBlob {
    pub size_bytes: u64,
    /// The peers that its bytes come by, the nearest first.
    pub path: Vec<Peer>,
    /// Of one that is on its way: up to where it is here, or at the peer that it comes by, if that is known.
    pub held_bytes: Option<u64>,
    content: Content,
    through: PullThrough,
}

enum Content {
    Cached(Box<StoredBlob>),
    Filling(Arc<Fill>, Box<Supply>, Arc<Follower>),
}

/// What a peer is told that asks for a manifest.
pub enum ManifestForPeer {
    Found(Box<Served>),
    /// Upstream says that there is none.
    Absent,
    /// Upstream has not answered yet: it is still being looked for.
    Awaited,
    /// Its registry is not mirrored here, or not shared.
    NotMirrored,
    /// It cannot be said.
    No,
}

impl SharedBlob {
    /// The bytes of `range`, as they come. Not held back: the peer holds them to the digest itself.
    pub fn read(self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        match self.content {
            Content::Cached(blob) => self.through.0.cache.read_held(&blob, range),
            Content::Filling(fill, supply, follower) => reader::follow(fill, *supply, range, For::Peer)
                .inspect(move |_| {
                    let _ = &follower;
                })
                .boxed(),
        }
    }
}

impl PullThrough {
    /// See [`super::super::Mirror::holdings`].
    pub(in crate::mirror) async fn holdings(&self, epoch: u64, version: u64) -> Option<Bytes> {
        Some(self.0.mesh.as_ref()?.told(epoch, version).await)
    }

    pub(in crate::mirror) async fn blob_for_peer(
        &self,
        peer: &Peer,
        joined: &RepoName,
        digest: &Digest,
        hop: Hop,
    ) -> Result<BlobForPeer, MirrorError> {
        let Some(place) = self.shared_place(joined) else { return Ok(BlobForPeer::NotMirrored) };
        let missed = self.0.fills.now();
        if let Some(blob) = self.shared_blob(&place, digest).await? {
            let size_bytes = blob.size_bytes;
            let content = Content::Cached(Box::new(blob));
            let (path, through) = (Vec::new(), self.clone());
            let shared = SharedBlob { size_bytes, path, held_bytes: None, content, through };
            return Ok(BlobForPeer::Found(Box::new(shared)));
        }
        let mut supply = self.supply(&place, digest);
        supply.is_for_peer = true;
        // Upstream is about to be back, or not: others of us may have found out first.
        let settled = match hop {
            Hop::Fetch => timeout(LOOKED_FOR, place.upstream.settles()).await,
            Hop::Held => Ok(false),
        };
        let others = match settled {
            Ok(true) => self.suppliers(digest, peer),
            Ok(false) => Vec::new(),
            Err(_) => return Ok(BlobForPeer::Refer(Vec::new())),
        };
        let fill = match self.0.fills.running(digest) {
            Some(fill) if self.may_follow(&fill, peer) => fill,
            Some(fill) if fill.state().from.is_none() && self.is_shared(&fill.repository.host) => {
                // Else two that lack credentials would wait for each other.
                return Ok(match fill.is_refused() {
                    true => BlobForPeer::Refused,
                    false => BlobForPeer::Refer(Vec::new()),
                });
            }
            Some(_) => return Ok(BlobForPeer::No),
            None if !others.is_empty() => return Ok(BlobForPeer::Refer(others)),
            None if hop == Hop::Fetch => match self.0.fills.follow(supply.clone(), missed)? {
                Some(fill) => fill,
                // It may be in the cache now.
                None => return Box::pin(self.blob_for_peer(peer, joined, digest, hop)).await,
            },
            None => return Ok(BlobForPeer::No),
        };
        let follower = match fill.admit(peer) {
            Ok(follower) => Arc::new(follower),
            Err(followers) => return Ok(BlobForPeer::Refer(followers)),
        };
        let Ok(size_bytes) = timeout(LOOKED_FOR, fill.size_bytes()).await else {
            return Ok(BlobForPeer::Refer(Vec::new()));
        };
        let Some(size_bytes) = size_bytes.map_err(MirrorError::Fill)? else { return Ok(BlobForPeer::No) };
        let state = fill.state();
        let (path, held_bytes) = (state.path.to_vec(), state.held_bytes());
        let content = Content::Filling(fill, Box::new(supply), follower);
        let shared = SharedBlob { size_bytes, path, held_bytes, content, through: self.clone() };
        Ok(BlobForPeer::Found(Box::new(shared)))
    }

    fn suppliers(&self, digest: &Digest, asker: &Peer) -> Vec<Peer> {
        let mesh = self.0.mesh.as_ref();
        mesh.map(|mesh| mesh.suppliers(Key::of_digest(digest), asker)).unwrap_or_default()
    }

    /// Whether a peer may follow a fill: one of a registry that is shared, and without the two, or more, waiting for each
    /// other.
    fn may_follow(&self, fill: &Fill, peer: &Peer) -> bool {
        let Some(mesh) = &self.0.mesh else { return false };
        if !self.is_shared(&fill.repository.host) {
            return false;
        }
        let state = fill.state();
        match state.from {
            None => mesh.may_wait_for_us(peer, Key::of_digest(&fill.digest)),
            Some(_) => !state.path.contains(peer),
        }
    }

    pub(in crate::mirror) async fn manifest_for_peer(
        &self,
        joined: &RepoName,
        reference: &Reference,
        hop: Hop,
    ) -> Result<ManifestForPeer, MirrorError> {
        let Some(place) = self.shared_place(joined) else { return Ok(ManifestForPeer::NotMirrored) };
        let scope = match hop {
            Hop::Fetch => Scope::Upstream,
            Hop::Held => Scope::Local,
        };
        let Ok(found) = timeout(MANIFEST_LOOKED_FOR, self.manifest(&place, reference, scope)).await else {
            return Ok(ManifestForPeer::Awaited);
        };
        Ok(match found? {
            Some(served) => ManifestForPeer::Found(Box::new(served)),
            None if hop == Hop::Fetch => ManifestForPeer::Absent,
            None => ManifestForPeer::No,
        })
    }

    fn is_shared(&self, host: &Host) -> bool {
        self.0.upstreams.get(host).is_some_and(|upstream| upstream.config().share)
    }

    /// The place that a name in the cache stands for, if it is one of a registry that is shared.
    fn shared_place(&self, joined: &RepoName) -> Option<Place> {
        let repository = Repository::split(joined)?;
        let upstream = self.0.upstreams.get(&repository.host).filter(|upstream| upstream.config().share)?;
        Some(Place { upstream, repository, joined: joined.clone() })
    }

    /// A blob in the cache that may be shared: one of the repository that is asked for, or of any other where all are.
    async fn shared_blob(&self, place: &Place, digest: &Digest) -> Result<Option<StoredBlob>, MirrorError> {
        let all_are_shared = self.0.upstreams.all_are_shared();
        let root = self.0.cache.own().await?.commits.root();
        if !all_are_shared && !self.0.cache.has_blob(&root, &place.joined, digest).await? {
            return Ok(None);
        }
        Ok(self.0.cache.blob_anywhere(digest).await?.map(|(blob, _)| blob))
    }
}
