//! What is asked of the cache of other registries besides pulls: by operators, to fetch an image before it is needed, to
//! keep it, to let it go; by peers of the mesh, what it has.

use bytes::Bytes;

use super::mesh::Hop;
use super::pull_through::{BlobForPeer, CachedImage, ManifestForPeer, Pins, Place, PullThrough};
use super::{Asked, Mirror, MirrorError};
use crate::ipfs::Peer;
use crate::oci::{Digest, ImageName, Platform, Reference, RepoName};

impl Mirror {
    /// Fetches an image into the cache; of an index the images for `platform`, or all of them. Returns when all of it is
    /// there; what was begun goes on if the future is dropped.
    pub async fn prefetch(&self, image: &ImageName, platform: Option<&Platform>) -> Result<(), MirrorError> {
        let (pull_through, place) = self.mirrored(image)?;
        pull_through.fetch(&place, &reference(image)?, platform).await
    }

    /// Keeps an image from being evicted.
    pub async fn pin(&self, image: &ImageName) -> Result<(), MirrorError> {
        let (pull_through, place) = self.mirrored(image)?;
        pull_through.images().pin(&in_cache(image, &place)?).await
    }

    /// `false`: it was not pinned.
    pub async fn unpin(&self, image: &ImageName) -> Result<bool, MirrorError> {
        let (pull_through, place) = self.mirrored(image)?;
        pull_through.images().unpin(&in_cache(image, &place)?).await
    }

    /// Takes an image out of the cache. `false`: it is not there. What a pin keeps is [`MirrorError::Pinned`], unless pins
    /// are ignored; they stay.
    pub async fn evict(&self, image: &ImageName, pins: Pins) -> Result<bool, MirrorError> {
        let (pull_through, place) = self.mirrored(image)?;
        pull_through.images().evict(&in_cache(image, &place)?, pins).await
    }

    /// All images in the cache; empty if no registry is mirrored.
    pub async fn cached_images(&self) -> Result<Vec<CachedImage>, MirrorError> {
        match &self.0.pull_through {
            Some(pull_through) => pull_through.images().list().await,
            None => Ok(Vec::new()),
        }
    }

    /// What we hold of other registries, for a peer of the mesh that knows what we held at `version` of `epoch`; waits a
    /// while for news. `None`: nothing is shared.
    pub async fn holdings(&self, epoch: u64, version: u64) -> Option<Bytes> {
        self.0.pull_through.as_ref()?.holdings(epoch, version).await
    }

    /// A blob of a shared registry for a peer of the mesh. `repo`: its name in the cache, the registry before it.
    pub async fn blob_for_peer(
        &self,
        peer: &Peer,
        repo: &RepoName,
        digest: &Digest,
        hop: Hop,
    ) -> Result<BlobForPeer, MirrorError> {
        match &self.0.pull_through {
            Some(pull_through) => pull_through.blob_for_peer(peer, repo, digest, hop).await,
            None => Ok(BlobForPeer::No),
        }
    }

    /// The same for a manifest.
    pub async fn manifest_for_peer(
        &self,
        repo: &RepoName,
        reference: &Reference,
        hop: Hop,
    ) -> Result<ManifestForPeer, MirrorError> {
        match &self.0.pull_through {
            Some(pull_through) => pull_through.manifest_for_peer(repo, reference, hop).await,
            None => Ok(ManifestForPeer::No),
        }
    }

    fn mirrored(&self, image: &ImageName) -> Result<(&PullThrough, Place), MirrorError> {
        let asked = Asked { repo: &image.repo, registry: None, via: None, is_ours: false };
        self.0.place(&asked)?.ok_or_else(|| MirrorError::NotMirrored(image.repo.clone()))
    }
}

/// The name of an image in the cache: with its registry before it, and what it is asked for by.
fn in_cache(image: &ImageName, place: &Place) -> Result<ImageName, MirrorError> {
    Ok(ImageName { repo: place.joined.clone(), reference: Some(reference(image)?) })
}

fn reference(image: &ImageName) -> Result<Reference, MirrorError> {
    match &image.reference {
        Some(reference) => Ok(reference.clone()),
        None => Ok(Reference::Tag("latest".parse()?)),
    }
}
