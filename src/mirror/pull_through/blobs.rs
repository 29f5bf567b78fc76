//! Blobs: in the cache, or on their way into it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::super::{MirrorError, Origin, StoredBlob};
use super::fill::Fill;
use super::fills::Moment;
use super::reader::{self, For};
use super::supply::Supply;
use super::{HEADER_TIMEOUT, Place, PullThrough, late};
use crate::mirror::mesh::Key;
use crate::oci::Digest;

/// How often a blob is looked for while others are about to get it, and the pause before each further try.
const TRIES_MAX: u32 = 8;
const AWAITED_FOR: Duration = Duration::from_millis(250);

/// A blob of another registry.
pub(in crate::mirror) struct Found {
    pub(in crate::mirror) size_bytes: u64,
    pub(super) content: Content,
}

pub(super) enum Content {
    Cached(StoredBlob),
    Filling(Arc<Fill>, Box<Supply>),
}

/// What came of beginning the fill of a blob.
pub(super) enum Begun {
    /// A fill before it has ended meanwhile, and brought the blob.
    Cached(StoredBlob),
    /// … with the size of the blob.
    Filling(Arc<Fill>, u64),
    /// Nobody has it.
    Absent,
}

impl Found {
    fn cached(blob: StoredBlob) -> Self {
        Self { size_bytes: blob.size_bytes, content: Content::Cached(blob) }
    }
}

impl PullThrough {
    /// A blob; starts its fill if nobody has yet. `None`: upstream says that there is none. `resumes`: the client has
    /// the beginning already, so that after a failure it is told so rather than given a second try.
    pub(in crate::mirror) async fn blob(
        &self,
        place: &Place,
        digest: &Digest,
        resumes: bool,
    ) -> Result<Option<(Found, Origin)>, MirrorError> {
        let missed = self.0.fills.now();
        if let Some((blob, _)) = self.0.cache.blob_anywhere(digest).await? {
            return Ok(Some((Found::cached(blob), Origin::Cache)));
        }
        if resumes && let Some(failure) = self.0.fills.failed(digest) {
            return Err(MirrorError::FillBroken { digest: *digest, source: failure });
        }
        let filling = timeout(HEADER_TIMEOUT, self.filling(place, digest, missed)).await;
        let (fill, size_bytes) = match filling.map_err(|_| late(place))?? {
            Begun::Cached(blob) => return Ok(Some((Found::cached(blob), Origin::Cache))),
            Begun::Filling(fill, size_bytes) => (fill, size_bytes),
            Begun::Absent => return Ok(None),
        };
        let origin = fill.state().from.unwrap_or(Origin::Upstream(place.repository.host.clone()));
        let content = Content::Filling(fill, Box::new(self.supply(place, digest)));
        Ok(Some((Found { size_bytes, content }, origin)))
    }

    /// The fill of a blob that was not in the cache after the moment `missed`. Absent: upstream says so, or said it a moment
    /// ago.
    pub(super) async fn filling(
        &self,
        place: &Place,
        digest: &Digest,
        missed: Moment,
    ) -> Result<Begun, MirrorError> {
        if self.is_absent(place, digest) {
            return Ok(Begun::Absent);
        }
        let begun = self.begin(&self.supply(place, digest), missed).await?;
        if matches!(begun, Begun::Absent) {
            self.note_upstream(place, digest, false);
        }
        Ok(begun)
    }

    /// Whether upstream said a moment ago that it has no such blob.
    pub(super) fn is_absent(&self, place: &Place, digest: &Digest) -> bool {
        let known = self.0.negative.get(&blob_of(place, digest));
        known.is_some_and(|(until, _)| Instant::now() < until)
    }

    /// Whether upstream said a moment ago that it has the blob.
    pub(super) fn is_present(&self, place: &Place, digest: &Digest) -> bool {
        self.0.present.contains_key(&blob_of(place, digest))
    }

    /// Remembers for a while what upstream said of a blob.
    pub(super) fn note_upstream(&self, place: &Place, digest: &Digest, is_there: bool) {
        let key = blob_of(place, digest);
        if is_there {
            self.0.present.insert(key, ());
        } else {
            self.0.negative.insert(key, (Instant::now() + place.upstream.config().negative_ttl, None));
        }
    }

    /// The fill of a blob that was not in the cache after the moment `missed`, when its size is known. What failed for want
    /// of credentials that others have is begun anew: a fill that was for a peer, and so has asked upstream alone, and one
    /// whose blob others were about to get.
    pub(super) async fn begin(&self, supply: &Supply, mut missed: Moment) -> Result<Begun, MirrorError> {
        let mut tries = 1;
        loop {
            let Some(fill) = self.0.fills.follow(supply.clone(), missed)? else {
                missed = self.0.fills.now();
                match self.0.cache.blob_anywhere(&supply.digest).await? {
                    Some((blob, _)) => return Ok(Begun::Cached(blob)),
                    None => continue,
                }
            };
            let size_bytes = fill.size_bytes().await;
            let was_for_a_peer = fill.is_of_upstream_alone && !matches!(size_bytes, Ok(Some(_)));
            let is_awaited =
                matches!(&size_bytes, Err(error) if matches!(**error, MirrorError::Awaited { .. }));
            if supply.mesh.is_none() || tries >= TRIES_MAX || !(was_for_a_peer || is_awaited) {
                let size_bytes = size_bytes.map_err(MirrorError::Fill)?;
                return Ok(size_bytes.map_or(Begun::Absent, |size_bytes| Begun::Filling(fill, size_bytes)));
            }
            if is_awaited {
                tokio::time::sleep(AWAITED_FOR).await;
            }
            tries += 1;
        }
    }

    /// The size of a blob, for who asks for no more.
    pub(in crate::mirror) async fn blob_size(
        &self,
        place: &Place,
        digest: &Digest,
    ) -> Result<Option<(u64, Origin)>, MirrorError> {
        if let Some((blob, _)) = self.0.cache.blob_anywhere(digest).await? {
            return Ok(Some((blob.size_bytes, Origin::Cache)));
        }
        if let (Some(size_bytes), Some(mesh)) = (self.0.sizes.get(digest), self.mesh(place))
            && let Some(peer) = mesh.holders(Key::of_digest(digest)).into_iter().next()
        {
            return Ok(Some((size_bytes, Origin::Peer(peer))));
        }
        let size = timeout(HEADER_TIMEOUT, place.upstream.head_blob(&place.repository.name, digest))
            .await
            .map_err(|_| late(place))??;
        Ok(size.map(|size_bytes| (size_bytes, Origin::Upstream(place.repository.host.clone()))))
    }

    pub(in crate::mirror) fn read(
        &self,
        found: &Found,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        match &found.content {
            Content::Cached(blob) => self.0.cache.read_held(blob, range),
            Content::Filling(fill, supply) => {
                reader::follow(fill.clone(), (**supply).clone(), range, For::Client)
            }
        }
    }

    /// Whom to ask for a blob: the mesh and upstream, as far as the registry is shared.
    pub(super) fn supply(&self, place: &Place, digest: &Digest) -> Supply {
        let mesh = self.mesh(place).cloned();
        let (repository, joined) = (place.repository.clone(), place.joined.clone());
        let mut supply =
            Supply::new(*digest, repository, joined, place.upstream.clone(), mesh, self.0.paces.clone());
        supply.size_bytes = self.0.sizes.get(digest);
        supply
    }
}

/// What a blob is called in the memory of what upstream said.
fn blob_of(place: &Place, digest: &Digest) -> String {
    format!("{}@{digest}/blob", place.joined)
}
