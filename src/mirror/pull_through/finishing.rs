//! Whether an image can be had whole: who takes a manifest from us without a way around us must be able to finish.

use tokio::time::timeout;

use super::super::{Age, MirrorError, Origin, Served};
use super::{PROBE_TIMEOUT, Place, PullThrough};
use crate::mirror::mesh::Key;
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Digest, Reference};

impl PullThrough {
    /// Whether all blobs of a manifest are here or can be fetched now: who takes a manifest from us without a way around
    /// us must be able to finish.
    pub(in crate::mirror) async fn can_finish(
        &self,
        place: &Place,
        served: &Served,
    ) -> Result<bool, MirrorError> {
        if served.origin != Origin::Cache || served.age.is_some_and(|age| age == Age::default()) {
            return Ok(true); // Upstream was there a moment ago.
        }
        let Ok(parsed) = ParsedManifest::parse(None, &served.manifest.bytes) else { return Ok(true) };
        if !parsed.manifests.is_empty() {
            return self.can_finish_any(place, &parsed).await;
        }
        let Some(missing) = self.first_missing(place, &parsed).await? else { return Ok(true) };
        let probe = place.upstream.head_blob(&place.repository.name, &missing);
        Ok(matches!(timeout(PROBE_TIMEOUT, probe).await, Ok(Ok(Some(_)))))
    }

    /// Whether an index has an image that is here whole; if none is, whether upstream answers.
    async fn can_finish_any(&self, place: &Place, index: &ParsedManifest) -> Result<bool, MirrorError> {
        for named in &index.manifests {
            let Some(manifest) = self.cached(place, &named.digest).await? else { continue };
            let Ok(parsed) = ParsedManifest::parse(None, &manifest.bytes) else { continue };
            if self.first_missing(place, &parsed).await?.is_none() {
                return Ok(true);
            }
        }
        let Some(first) = index.manifests.first() else { return Ok(true) };
        let reference = Reference::Digest(first.digest);
        let probe = place.upstream.head_manifest(&place.repository.name, &reference);
        Ok(matches!(timeout(PROBE_TIMEOUT, probe).await, Ok(Ok(Some(_)))))
    }

    /// The first blob of an image that is neither in the cache, nor on its way, nor at a peer.
    async fn first_missing(
        &self,
        place: &Place,
        image: &ParsedManifest,
    ) -> Result<Option<Digest>, MirrorError> {
        for named in image.blobs.iter().filter(|blob| !blob.non_distributable) {
            let key = Key::of_digest(&named.digest);
            let can_be_had = self.0.fills.running(&named.digest).is_some()
                || self.0.cache.blob_anywhere(&named.digest).await?.is_some()
                || self.mesh(place).is_some_and(|mesh| !mesh.holders(key).is_empty());
            if !can_be_had {
                return Ok(Some(named.digest));
            }
        }
        Ok(None)
    }
}
