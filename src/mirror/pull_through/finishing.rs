//! Whether an image can be had whole: who takes a manifest from us without a way around us must be able to finish. Such a
//! client reads the config next, and layers then: their fills are begun, and looked at, before it is given the manifest.
//! For further layers upstream is only asked whether it has them, a few at a time.

use std::collections::HashSet;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{timeout, timeout_at};

use super::super::mesh::Key;
use super::super::{Age, MirrorError, Origin, Purpose, Served};
use super::blobs::Begun;
use super::fill::Stage;
use super::fills::Moment;
use super::manifests::Scope;
use super::state::SMALL_BYTES_MAX;
use super::{PROBE_TIMEOUT, Place, PullThrough};
use crate::oci::manifest::{Descriptor, ParsedManifest};
use crate::oci::{Digest, Platform, Reference};

/// Layers whose fills are begun: as many as podman reads at once.
const LAYERS_MAX: usize = 6;
/// Layers that upstream is asked for beyond those: no engine mounts more.
const ASKED_MAX: usize = 128;
/// … and how many of them at once.
const ASKED_AT_ONCE_MAX: usize = 4;

/// What proves that a blob can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// All of it, and that it has its digest.
    Whole,
    /// Its first bytes.
    Beginning,
}

impl PullThrough {
    /// Proves that the blobs of a manifest are here or come now, as far as can be told in 5 s: the config whole, the first
    /// six layers by their first bytes, up to 128 further ones by upstream's word, all by not having broken off a moment
    /// ago. Of an index, its image for this platform is looked at, without the layers. `Err`: the reason why not; that there
    /// was no answer in all of the 5 s is one. May be dropped midway: fills go on.
    pub(in crate::mirror) async fn is_finishable(
        &self,
        place: &Place,
        served: &Served,
        purpose: Purpose,
    ) -> Result<(), MirrorError> {
        let Ok(parsed) = ParsedManifest::parse(None, &served.manifest.bytes) else { return Ok(()) };
        if parsed.manifests.is_empty() {
            return self.has_blobs(place, served, &parsed, purpose).await;
        }
        for named in &parsed.manifests {
            let Some(manifest) = self.cached(place, &named.digest).await? else { continue };
            let Ok(image) = ParsedManifest::parse(None, &manifest.bytes) else { continue };
            if self.out_of_reach(place, &image).await?.is_none() {
                return Ok(());
            }
        }
        match (purpose, Platform::of_host().choose(&served.manifest.bytes)) {
            (Purpose::Image, Ok(child)) => self.has_child(place, &child).await,
            _ => self.is_confirmed(place, served, &parsed).await,
        }
    }

    /// Looks at the image of an index that its reader is likely to take.
    async fn has_child(&self, place: &Place, child: &Digest) -> Result<(), MirrorError> {
        let reference = Reference::Digest(*child);
        let found = timeout(PROBE_TIMEOUT, self.manifest(place, &reference, Scope::Mesh)).await;
        let found = found.unwrap_or_else(|_| Err(is_late(place)));
        let absent = || MirrorError::NotUpstream { repository: place.repository.clone(), digest: *child };
        let served = match found.and_then(|found| found.ok_or_else(absent)) {
            Ok(served) => served,
            Err(source) => return Err(unfinishable(child, source)),
        };
        let Ok(image) = ParsedManifest::parse(None, &served.manifest.bytes) else { return Ok(()) };
        self.has_blobs(place, &served, &image, Purpose::Manifest).await
    }

    async fn has_blobs(
        &self,
        place: &Place,
        served: &Served,
        image: &ParsedManifest,
        purpose: Purpose,
    ) -> Result<(), MirrorError> {
        for blob in &image.blobs {
            // In this order: what succeeds is no failure any more before it runs no more.
            let flows = self.0.fills.running(&blob.digest).is_some_and(|fill| fill.state().flows);
            if !flows && let Some(failure) = self.0.fills.broken(&blob.digest) {
                return Err(unfinishable(&blob.digest, MirrorError::Fill(failure)));
            }
        }
        let missed = self.0.fills.now();
        let missing = self.missing(image, 1 + LAYERS_MAX + ASKED_MAX).await?;
        let is_config = |blob: &Descriptor| {
            let is_first = image.blobs.first().is_some_and(|first| first.digest == blob.digest);
            is_first && blob.size_bytes.is_some_and(|size_bytes| size_bytes <= SMALL_BYTES_MAX)
        };
        let (configs, layers): (Vec<_>, Vec<_>) = missing.into_iter().partition(is_config);
        let (configs_max, layers_max, asked_max) = match purpose {
            Purpose::Header => (0, 0, 0),
            Purpose::Image if place.upstream.config().prefetch => (1, LAYERS_MAX, ASKED_MAX),
            Purpose::Image => (1, 0, ASKED_MAX),
            Purpose::Manifest => (1, 0, 0),
        };
        let (begun, further) = layers.split_at(layers.len().min(layers_max));
        let whole = configs.iter().take(configs_max).map(|blob| (blob, Proof::Whole));
        let begun = whole.chain(begun.iter().map(|blob| (blob, Proof::Beginning)));
        let proofs: Vec<_> = begun.map(|(blob, proof)| self.prove(place, blob, proof, missed)).collect();
        let asked = &further[..further.len().min(asked_max)];
        if proofs.is_empty() && asked.is_empty() {
            return self.is_confirmed(place, served, image).await;
        }
        futures::try_join!(try_join_all(proofs), self.are_upstream(place, asked, missed)).map(|_| ())
    }

    /// Asks upstream whether it has these layers, a few at a time. Whoever lacks credentials may be told that there is
    /// nothing: then one such layer is proved by the mesh, and stands for all.
    async fn are_upstream(
        &self,
        place: &Place,
        layers: &[Descriptor],
        missed: Moment,
    ) -> Result<(), MirrorError> {
        let deadline = tokio::time::Instant::now() + PROBE_TIMEOUT;
        let asked = layers.iter().enumerate().map(async |(n, layer)| {
            match timeout_at(deadline, self.is_upstream(place, layer)).await {
                Ok(Ok(())) => Ok(None),
                Ok(Err(error)) if self.may_be_had_by_others(place, &error) => Ok(Some(layer)),
                Ok(Err(error)) => Err(unfinishable(&layer.digest, error)),
                Err(_) if n < ASKED_AT_ONCE_MAX => Err(unfinishable(&layer.digest, is_late(place))),
                // Those before it took the time: nothing is known of this one.
                Err(_) => Ok(None),
            }
        });
        let asked: Vec<_> = asked.collect();
        let answers = stream::iter(asked).buffered(ASKED_AT_ONCE_MAX);
        let denied: Vec<_> = answers.try_filter_map(async |denied| Ok(denied)).try_collect().await?;
        let Some(layer) = denied.first() else { return Ok(()) };
        timeout_at(deadline, self.prove(place, layer, Proof::Beginning, missed)).await.unwrap_or(Ok(()))
    }

    async fn is_upstream(&self, place: &Place, layer: &Descriptor) -> Result<(), MirrorError> {
        let absent =
            || MirrorError::NotUpstream { repository: place.repository.clone(), digest: layer.digest };
        if self.is_absent(place, &layer.digest) {
            return Err(absent());
        }
        if self.is_near(place, &layer.digest) || self.is_present(place, &layer.digest) {
            return Ok(());
        }
        let found = place.upstream.head_blob(&place.repository.name, &layer.digest).await?;
        self.note_upstream(place, &layer.digest, found.is_some());
        found.map(|_| ()).ok_or_else(absent)
    }

    fn may_be_had_by_others(&self, place: &Place, error: &MirrorError) -> bool {
        let is_denial = error.is_refusal() || matches!(error, MirrorError::NotUpstream { .. });
        is_denial && self.mesh(place).is_some_and(|mesh| !mesh.is_alone())
    }

    /// Begins the fill of a blob that was not in the cache after the moment `missed`, and waits until it has shown as much
    /// as is wanted.
    async fn prove(
        &self,
        place: &Place,
        blob: &Descriptor,
        proof: Proof,
        missed: Moment,
    ) -> Result<(), MirrorError> {
        let shows = async {
            let (repository, digest) = (place.repository.clone(), blob.digest);
            let absent = || MirrorError::NotUpstream { repository, digest };
            let fill = match self.filling(place, &digest, missed).await? {
                Begun::Cached(_) => return Ok(()),
                Begun::Filling(fill, _) => fill,
                Begun::Absent => return Err(absent()),
            };
            let state = match proof {
                Proof::Whole => fill.reached(u64::MAX).await,
                Proof::Beginning => fill.flows().await,
            };
            match state.stage {
                Stage::Failed(error) => Err(MirrorError::Fill(error)),
                Stage::Absent => Err(absent()),
                Stage::Running | Stage::Verified | Stage::Committed => Ok(()),
            }
        };
        let shown = timeout(PROBE_TIMEOUT, shows).await.unwrap_or_else(|_| Err(is_late(place)));
        shown.map_err(|source| unfinishable(&blob.digest, source))
    }

    /// Whether upstream was there a moment ago, or answers to a question that costs next to nothing.
    async fn is_confirmed(
        &self,
        place: &Place,
        served: &Served,
        parsed: &ParsedManifest,
    ) -> Result<(), MirrorError> {
        if served.origin != Origin::Cache || served.age.is_some_and(|age| age == Age::default()) {
            return Ok(());
        }
        let (upstream, name) = (&place.upstream, &place.repository.name);
        let child = parsed.manifests.first().map(|child| child.digest);
        let blob = self.out_of_reach(place, parsed).await?;
        let asks = async {
            Ok(match (child, blob) {
                (Some(child), _) => upstream.head_manifest(name, &Reference::Digest(child)).await?.is_some(),
                (None, Some(blob)) => upstream.head_blob(name, &blob).await?.is_some(),
                (None, None) => true,
            })
        };
        let wanted = child.or(blob).unwrap_or(served.manifest.digest);
        let absent = || MirrorError::NotUpstream { repository: place.repository.clone(), digest: wanted };
        let found = timeout(PROBE_TIMEOUT, asks).await.unwrap_or_else(|_| Err(is_late(place)));
        match found.map(|found| found.then_some(()).ok_or_else(absent)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) | Err(source) => Err(unfinishable(&wanted, source)),
        }
    }

    /// The first blob of an image that is neither in the cache, nor on its way, nor at a peer.
    async fn out_of_reach(
        &self,
        place: &Place,
        image: &ParsedManifest,
    ) -> Result<Option<Digest>, MirrorError> {
        for blob in image.blobs.iter().filter(|blob| !blob.non_distributable) {
            if !self.is_near(place, &blob.digest) && self.0.cache.blob_anywhere(&blob.digest).await?.is_none()
            {
                return Ok(Some(blob.digest));
            }
        }
        Ok(None)
    }

    /// Whether a blob is on its way, here or to a peer, or at one.
    fn is_near(&self, place: &Place, digest: &Digest) -> bool {
        let key = Key::of_digest(digest);
        self.0.fills.running(digest).is_some() || self.mesh(place).is_some_and(|mesh| mesh.is_held(key))
    }

    /// The first blobs of an image that may be fetched and are not in the cache, each once.
    async fn missing(&self, image: &ParsedManifest, at_most: usize) -> Result<Vec<Descriptor>, MirrorError> {
        let (mut missing, mut seen) = (Vec::new(), HashSet::new());
        for blob in image.blobs.iter().filter(|blob| !blob.non_distributable) {
            if missing.len() < at_most
                && seen.insert(blob.digest)
                && self.0.cache.blob_anywhere(&blob.digest).await?.is_none()
            {
                missing.push(blob.clone());
            }
        }
        Ok(missing)
    }
}

fn is_late(place: &Place) -> MirrorError {
    MirrorError::Late { repository: place.repository.clone(), waited: PROBE_TIMEOUT }
}

fn unfinishable(digest: &Digest, source: MirrorError) -> MirrorError {
    MirrorError::Unfinishable { digest: *digest, source: Box::new(source) }
}
