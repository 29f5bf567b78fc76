//! Who takes a manifest will ask for its blobs: their fills are begun at once, in the order in which clients ask.

use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use moka::sync::Cache as Memory;

use super::super::{Manifest, MirrorError, chain};
use super::blobs::Begun;
use super::fill::{Fill, Stage};
use super::manifests::Scope;
use super::{Place, PullThrough};
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Digest, Platform, Reference};

/// Blobs that are prefetched at once; those that clients ask for do not wait.
pub(super) const AT_ONCE_MAX: usize = 4;
/// How long it is remembered that an image's blobs are on their way.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
const REMEMBERED_MAX: u64 = 1024;

pub(super) fn remembered() -> Memory<Digest, ()> {
    Memory::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED_FOR).build()
}

impl PullThrough {
    /// Begins to fill the blobs of an image that was handed out. An index has none: the image that its reader takes
    /// comes by itself.
    pub(in crate::mirror) fn prefetch(&self, place: &Place, manifest: &Manifest) {
        if !place.upstream.config().prefetch || self.0.prefetched.contains_key(&manifest.digest) {
            return;
        }
        let Ok(parsed) = ParsedManifest::parse(None, &manifest.bytes) else { return };
        if parsed.blobs.is_empty() {
            return;
        }
        self.0.prefetched.insert(manifest.digest, ());
        let (this, place) = (self.clone(), place.clone());
        self.0.tasks.spawn("prefetch", |stop| async move {
            let filled = stop.run_until_cancelled(this.fill_all(&place, &parsed)).await;
            if let Some(Err(error)) = filled {
                tracing::debug!(repo.name = %place.repository, error = %chain(&error), "not all blobs were prefetched");
            }
        });
    }

    /// Fetches an image whole, as far as it is not here: of an index those for `platform`, or all of them.
    pub(in crate::mirror) async fn fetch(
        &self,
        place: &Place,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<(), MirrorError> {
        let missing = || MirrorError::NoImage(format!("{}:{reference}", place.repository));
        let top = self.manifest(place, reference, Scope::Mesh).await?.ok_or_else(missing)?.manifest;
        let parsed = parse(&top)?;
        self.fill_all(place, &parsed).await?;
        let children = match platform {
            Some(platform) if !parsed.manifests.is_empty() => vec![platform.choose(&top.bytes)?],
            _ => parsed.manifests.iter().map(|child| child.digest).collect(),
        };
        for child in children {
            let reference = Reference::Digest(child);
            let image = self.manifest(place, &reference, Scope::Mesh).await?.ok_or_else(missing)?.manifest;
            self.fill_all(place, &parse(&image)?).await?;
        }
        Ok(())
    }

    /// Fills all blobs of an image that may be fetched, a few at a time.
    pub(super) async fn fill_all(&self, place: &Place, image: &ParsedManifest) -> Result<(), MirrorError> {
        let blobs = image.blobs.iter().filter(|blob| !blob.non_distributable).map(|blob| blob.digest);
        let fills = blobs.map(|digest| {
            let (this, place) = (self.clone(), place.clone());
            async move { this.fill(&place, digest).await }
        });
        let fills: Vec<_> = fills.collect();
        stream::iter(fills).buffer_unordered(AT_ONCE_MAX).try_collect::<()>().await
    }

    /// Fills a blob, when there is room, unless it is here.
    async fn fill(&self, place: &Place, digest: Digest) -> Result<(), MirrorError> {
        let _slot = self.0.prefetches.acquire().await.map_err(|_| MirrorError::Closed)?;
        let missed = self.0.fills.now();
        if self.0.cache.blob_anywhere(&digest).await?.is_some() {
            return Ok(());
        }
        match self.begin(&self.supply(place, &digest), missed).await? {
            Begun::Cached(_) => Ok(()),
            Begun::Filling(fill, _) => ended(&fill).await,
            Begun::Absent => Err(MirrorError::NoImage(format!("blob {digest} of {}", place.repository))),
        }
    }
}

fn parse(manifest: &Manifest) -> Result<ParsedManifest, MirrorError> {
    let parsed = ParsedManifest::parse(None, &manifest.bytes);
    parsed.map_err(|source| MirrorError::NoManifest { digest: manifest.digest, source })
}

/// Waits until a blob is in the cache.
async fn ended(fill: &Fill) -> Result<(), MirrorError> {
    match fill.ended().await.stage {
        Stage::Failed(error) => Err(MirrorError::Fill(error)),
        Stage::Absent => Err(MirrorError::NoImage(format!("blob {} of {}", fill.digest, fill.repository))),
        Stage::Running | Stage::Verified | Stage::Committed => Ok(()),
    }
}
