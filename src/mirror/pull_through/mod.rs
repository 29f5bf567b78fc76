//! Images of other registries: what is asked for is fetched from upstream, streamed on as it comes, and kept in a private
//! cache, which is a tree like the own one in a store of its own.
//!
//! The daemon, not a client, owns what is under way. A tag is believed for as long as the config says, and served beyond
//! that while upstream does not answer; what is asked for by digest and is here is never asked for again.

mod cache;
mod fill;
mod flights;
mod freshness;
mod names;
mod prefetch;
mod reader;
mod supply;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::stream::BoxStream;
use moka::sync::Cache as Memory;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::push::PutManifest;
use super::{Age, Inner, Manifest, MirrorError, Origin, Served, StoredBlob, chain};
use crate::metrics::Metrics;
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Digest, Reference, Tag};
use crate::store::{Store, StoreStats};
use crate::tasks::Tasks;
use crate::upstream::{Fetched, UpstreamStatus, Upstreams};

pub use cache::CachedImage;
use cache::Images;
pub use fill::FillStatus;
use fill::{Fill, Fills};
use flights::Flights;
use freshness::{Confirmed, Tags, Verdict};
pub(super) use names::Place;
use supply::Supply;

/// How long upstream may take when there is something older to serve instead.
const STALE_AFTER: Duration = Duration::from_millis(900);
/// How long a client waits for the header of an answer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to find out whether blobs can be had.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers "not there" that are remembered, and for how long at most.
const NEGATIVE_MAX: u64 = 16_384;
const NEGATIVE_FOR_MAX: Duration = Duration::from_secs(3600);
/// Sizes of blobs that manifests told.
const SIZES_MAX: u64 = 65_536;

/// What a mirror of other registries is started with.
pub struct PullThroughConfig {
    /// Where what is pulled through is kept: no part that answers strangers may have it.
    pub store: Store,
    pub upstreams: Upstreams,
    /// Bytes that the cache may take; `None`: no limit.
    pub quota_bytes: Option<u64>,
    pub metrics: Metrics,
}

/// What `status` tells.
#[derive(Clone, Debug)]
pub struct PullThroughStatus {
    pub fills: Vec<FillStatus>,
    pub upstreams: Vec<UpstreamStatus>,
    /// Of the cache.
    pub store: StoreStats,
    pub quota_bytes: Option<u64>,
}

/// Why there was no answer.
type Failure = Arc<MirrorError>;
/// A manifest that upstream has just confirmed.
type Confirmation = Result<Option<Manifest>, Failure>;

/// The mirror of other registries. Cheap to clone.
#[derive(Clone)]
pub(super) struct PullThrough(Arc<Shared>);

struct Shared {
    cache: Arc<Inner>,
    images: Images,
    upstreams: Upstreams,
    fills: Fills,
    tags: Tags,
    look_ups: Flights<(String, Reference), Confirmation>,
    negative: Memory<String, (Instant, Option<Failure>)>,
    sizes: Memory<Digest, u64>,
    prefetched: Memory<Digest, ()>,
    prefetches: Semaphore,
    quota_bytes: Option<u64>,
    tasks: Tasks,
}

/// A blob of another registry.
pub(super) struct Found {
    pub(super) size_bytes: u64,
    content: Content,
}

enum Content {
    Cached(StoredBlob),
    Filling(Arc<Fill>, Box<Supply>),
}

impl PullThrough {
    pub(super) async fn start(tasks: &Tasks, config: PullThroughConfig) -> Result<Self, MirrorError> {
        let PullThroughConfig { store, upstreams, quota_bytes, metrics } = config;
        let cache = Inner::private(tasks, &store).await?;
        let fills = Fills::new(cache.clone(), tasks.clone(), metrics);
        let images = Images::open(&store, cache.clone(), fills.clone()).await?;
        let shared = Arc::new(Shared {
            fills,
            tags: Tags::new(store.notes().clone()),
            look_ups: Flights::new(tasks.clone()),
            negative: Memory::builder().max_capacity(NEGATIVE_MAX).time_to_live(NEGATIVE_FOR_MAX).build(),
            sizes: Memory::new(SIZES_MAX),
            prefetched: prefetch::remembered(),
            prefetches: Semaphore::new(prefetch::AT_ONCE_MAX),
            tasks: tasks.clone(),
            cache,
            images,
            upstreams,
            quota_bytes,
        });
        let keeper = shared.images.clone();
        tasks.spawn("cache", |stop| keeper.keep_within(quota_bytes, stop));
        Ok(Self(shared))
    }

    /// A manifest, from the cache for as long as that may be, else from upstream. `None`: upstream says that there is none.
    pub(super) async fn manifest(
        &self,
        place: &Place,
        reference: &Reference,
    ) -> Result<Option<Served>, MirrorError> {
        let served = match reference {
            Reference::Digest(digest) => self.by_digest(place, reference, digest).await?,
            Reference::Tag(tag) => self.by_tag(place, reference, tag).await?,
        };
        let Some(served) = served else { return Ok(None) };
        let parsed = ParsedManifest::parse(None, &served.manifest.bytes).ok();
        for named in parsed.iter().flat_map(|parsed| &parsed.blobs) {
            named.size_bytes.inspect(|size_bytes| self.0.sizes.insert(named.digest, *size_bytes));
        }
        self.0.images.touch(&place.joined, &served.manifest.digest);
        Ok(Some(served))
    }

    async fn by_digest(
        &self,
        place: &Place,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<Served>, MirrorError> {
        if let Some(manifest) = self.cached(place, digest).await? {
            return Ok(Some(Served { manifest, origin: Origin::Cache, age: None }));
        }
        let found = timeout(HEADER_TIMEOUT, self.ask(place, reference)).await.map_err(|_| late(place))?;
        let manifest = found.map_err(MirrorError::Fill)?;
        let origin = Origin::Upstream(place.repository.host.clone());
        Ok(manifest.map(|manifest| Served { manifest, origin, age: None }))
    }

    async fn by_tag(
        &self,
        place: &Place,
        reference: &Reference,
        tag: &Tag,
    ) -> Result<Option<Served>, MirrorError> {
        let now = SystemTime::now();
        let config = place.upstream.config();
        let ttl = config.tag_ttl(&place.repository.name, tag);
        let confirmed = self.0.tags.get(&place.joined, tag).await?;
        let verdict = freshness::judge(confirmed.as_ref(), now, ttl, config.stale_for);
        let at_hand = match (&confirmed, verdict) {
            (Some(confirmed), Verdict::Fresh | Verdict::AskOrServe) => {
                let manifest = self.cached(place, &confirmed.digest).await?;
                manifest.map(|manifest| (manifest, confirmed.age(now)))
            }
            _ => None,
        };
        let Some((manifest, age)) = at_hand else {
            let found = timeout(HEADER_TIMEOUT, self.ask(place, reference)).await.map_err(|_| late(place))?;
            let origin = Origin::Upstream(place.repository.host.clone());
            let fresh = |manifest| Served { manifest, origin, age: Some(Age::default()) };
            return Ok(found.map_err(MirrorError::Fill)?.map(fresh));
        };
        let served = |stale| Served {
            manifest: manifest.clone(),
            origin: Origin::Cache,
            age: Some(Age { since_confirmed: age, stale }),
        };
        if verdict == Verdict::Fresh {
            return Ok(Some(served(false)));
        }
        let reason = match timeout(STALE_AFTER, self.ask(place, reference)).await {
            Ok(Ok(None)) => return Ok(None),
            Ok(Ok(Some(manifest))) => {
                let origin = match manifest.digest == served(false).manifest.digest {
                    true => Origin::Cache,
                    false => Origin::Upstream(place.repository.host.clone()),
                };
                return Ok(Some(Served { manifest, origin, age: Some(Age::default()) }));
            }
            Ok(Err(error)) => chain(&*error),
            Err(_) => format!("no answer within {} ms", STALE_AFTER.as_millis()),
        };
        tracing::warn!(repo.name = %place.repository, %tag, age_s = age.as_secs(), error = reason, "upstream did not confirm the tag: served as it last was");
        Ok(Some(served(true)))
    }

    /// A manifest of this repository that is in the cache.
    async fn cached(&self, place: &Place, digest: &Digest) -> Result<Option<Manifest>, MirrorError> {
        let found = self.0.cache.manifest(&place.joined, &Reference::Digest(*digest)).await?;
        Ok(found.map(|(manifest, _)| manifest))
    }

    /// Asks upstream, once for all who ask at the same time, unless it said no a moment ago.
    async fn ask(&self, place: &Place, reference: &Reference) -> Confirmation {
        let key = format!("{}@{reference}", place.joined);
        if let Some((until, failure)) = self.0.negative.get(&key)
            && Instant::now() < until
        {
            return failure.map_or(Ok(None), Err);
        }
        let (this, place, asked) = (self.clone(), place.clone(), reference.clone());
        let flight = (place.joined.to_string(), reference.clone());
        let work = async move {
            let outcome = this.confirm(&place, &asked).await.map_err(Arc::new);
            let negative = match &outcome {
                Ok(Some(_)) => return outcome,
                Ok(None) => None,
                Err(error) => Some(error.clone()),
            };
            let until = Instant::now() + place.upstream.config().negative_ttl;
            this.0.negative.insert(key, (until, negative));
            outcome
        };
        self.0.look_ups.join(flight, work).await
    }

    /// What upstream has now. A tag costs a `HEAD`, which registries do not count, and a `GET` if it moved.
    async fn confirm(&self, place: &Place, reference: &Reference) -> Result<Option<Manifest>, MirrorError> {
        let (upstream, name) = (&place.upstream, &place.repository.name);
        let Reference::Tag(tag) = reference else {
            let fetched = upstream.manifest(name, reference).await?;
            return self.keep_if_found(place, fetched, &[]).await;
        };
        let Some(head) = upstream.head_manifest(name, reference).await? else { return Ok(None) };
        let at = SystemTime::now();
        let known = match &head.digest {
            Some(digest) => self.cached(place, digest).await?,
            None => None,
        };
        let manifest = match (known, head.digest) {
            (Some(manifest), _) => Some(manifest),
            (None, Some(digest)) => {
                let fetched = upstream.manifest(name, &Reference::Digest(digest)).await?;
                self.keep_if_found(place, fetched, std::slice::from_ref(tag)).await?
            }
            (None, None) => {
                let fetched = upstream.manifest(name, reference).await?;
                self.keep_if_found(place, fetched, std::slice::from_ref(tag)).await?
            }
        };
        if let Some(manifest) = &manifest {
            let confirmed = Confirmed { digest: manifest.digest, at };
            self.0.tags.put(&place.joined, tag, confirmed).await?;
        }
        Ok(manifest)
    }

    async fn keep_if_found(
        &self,
        place: &Place,
        fetched: Option<Fetched>,
        tags: &[Tag],
    ) -> Result<Option<Manifest>, MirrorError> {
        let Some(Fetched { digest, bytes, .. }) = fetched else { return Ok(None) };
        let put = PutManifest { tags, expected: Some(digest), content_type: None, bytes };
        self.0.cache.put_manifest(&place.joined, put).await?;
        self.cached(place, &digest).await
    }

    /// A blob; starts its fill if nobody has yet. `None`: upstream says that there is none. `resumes`: the client has
    /// the beginning already, so that after a failure it is told so rather than given a second try.
    pub(super) async fn blob(
        &self,
        place: &Place,
        digest: &Digest,
        resumes: bool,
    ) -> Result<Option<(Found, Origin)>, MirrorError> {
        if let Some((blob, _)) = self.0.cache.blob_anywhere(digest).await? {
            let found = Found { size_bytes: blob.size_bytes, content: Content::Cached(blob) };
            return Ok(Some((found, Origin::Cache)));
        }
        if resumes && let Some(failure) = self.0.fills.failed(digest) {
            return Err(MirrorError::FillBroken { digest: *digest, source: failure });
        }
        let key = format!("{}@{digest}/blob", place.joined);
        if let Some((until, _)) = self.0.negative.get(&key)
            && Instant::now() < until
        {
            return Ok(None);
        }
        let supply = self.supply(place, digest);
        let fill = self.0.fills.follow(supply.clone())?;
        let size_bytes = timeout(HEADER_TIMEOUT, fill.size_bytes()).await.map_err(|_| late(place))?;
        match size_bytes.map_err(MirrorError::Fill)? {
            Some(size_bytes) => {
                let origin = fill.state().from.unwrap_or(Origin::Upstream(place.repository.host.clone()));
                let content = Content::Filling(fill, Box::new(supply));
                Ok(Some((Found { size_bytes, content }, origin)))
            }
            None => {
                let until = Instant::now() + place.upstream.config().negative_ttl;
                self.0.negative.insert(key, (until, None));
                Ok(None)
            }
        }
    }

    /// The size of a blob, for who asks for no more.
    pub(super) async fn blob_size(
        &self,
        place: &Place,
        digest: &Digest,
    ) -> Result<Option<(u64, Origin)>, MirrorError> {
        if let Some((blob, _)) = self.0.cache.blob_anywhere(digest).await? {
            return Ok(Some((blob.size_bytes, Origin::Cache)));
        }
        let size = timeout(HEADER_TIMEOUT, place.upstream.head_blob(&place.repository.name, digest))
            .await
            .map_err(|_| late(place))??;
        Ok(size.map(|size_bytes| (size_bytes, Origin::Upstream(place.repository.host.clone()))))
    }

    pub(super) fn read(
        &self,
        found: &Found,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        match &found.content {
            Content::Cached(blob) => self.0.cache.read_held(blob, range),
            Content::Filling(fill, supply) => reader::follow(fill.clone(), (**supply).clone(), range),
        }
    }

    fn supply(&self, place: &Place, digest: &Digest) -> Supply {
        Supply {
            digest: *digest,
            repository: place.repository.clone(),
            size_bytes: self.0.sizes.get(digest),
            upstream: place.upstream.clone(),
        }
    }

    /// Whether all blobs of a manifest are here or can be fetched now: who takes a manifest from us without a way around
    /// us must be able to finish.
    pub(super) async fn can_finish(&self, place: &Place, served: &Served) -> Result<bool, MirrorError> {
        if served.origin != Origin::Cache || served.age.is_some_and(|age| age == Age::default()) {
            return Ok(true); // Upstream was there a moment ago.
        }
        let Ok(parsed) = ParsedManifest::parse(None, &served.manifest.bytes) else { return Ok(true) };
        if !parsed.manifests.is_empty() {
            return self.can_finish_any(place, &parsed).await;
        }
        let Some(missing) = self.first_missing(&parsed).await? else { return Ok(true) };
        let probe = place.upstream.head_blob(&place.repository.name, &missing);
        Ok(matches!(timeout(PROBE_TIMEOUT, probe).await, Ok(Ok(Some(_)))))
    }

    /// Whether an index has an image that is here whole; if none is, whether upstream answers.
    async fn can_finish_any(&self, place: &Place, index: &ParsedManifest) -> Result<bool, MirrorError> {
        for named in &index.manifests {
            let Some(manifest) = self.cached(place, &named.digest).await? else { continue };
            let Ok(parsed) = ParsedManifest::parse(None, &manifest.bytes) else { continue };
            if self.first_missing(&parsed).await?.is_none() {
                return Ok(true);
            }
        }
        let Some(first) = index.manifests.first() else { return Ok(true) };
        let reference = Reference::Digest(first.digest);
        let probe = place.upstream.head_manifest(&place.repository.name, &reference);
        Ok(matches!(timeout(PROBE_TIMEOUT, probe).await, Ok(Ok(Some(_)))))
    }

    /// The first blob of an image that is neither in the cache nor on its way.
    async fn first_missing(&self, image: &ParsedManifest) -> Result<Option<Digest>, MirrorError> {
        for named in image.blobs.iter().filter(|blob| !blob.non_distributable) {
            let here = self.0.fills.running(&named.digest).is_some()
                || self.0.cache.blob_anywhere(&named.digest).await?.is_some();
            if !here {
                return Ok(Some(named.digest));
            }
        }
        Ok(None)
    }

    pub(super) fn status(&self) -> PullThroughStatus {
        PullThroughStatus {
            fills: self.0.fills.status(),
            upstreams: self.0.upstreams.status(),
            store: self.0.cache.tree.blocks().store().stats(),
            quota_bytes: self.0.quota_bytes,
        }
    }

    /// The images in the cache.
    pub(super) fn images(&self) -> &Images {
        &self.0.images
    }
}

fn late(place: &Place) -> MirrorError {
    MirrorError::Late { repository: place.repository.clone(), waited: HEADER_TIMEOUT }
}
