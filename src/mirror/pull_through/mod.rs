//! Images of other registries: what is asked for is fetched from upstream, streamed on as it comes, and kept in a private
//! cache, which is a tree like the own one in a store of its own.
//!
//! The daemon, not a client, owns what is under way. A tag is believed for as long as the config says, and served beyond
//! that while upstream does not answer; what is asked for by digest and is here is never asked for again.

mod blobs;
mod cache;
mod fill;
mod fills;
mod finishing;
mod flights;
mod for_peers;
mod freshness;
mod lists;
mod manifests;
mod names;
mod pace;
mod prefetch;
mod reader;
mod state;
mod supply;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache as Memory;
use tokio::sync::Semaphore;

use super::mesh::Mesh;
use super::{Inner, MirrorError};
use crate::ipfs::{Ipfs, Peer};
use crate::metrics::Metrics;
use crate::oci::Digest;
use crate::store::{Notes, Store, StoreStats};
use crate::tasks::Tasks;
use crate::upstream::{UpstreamStatus, Upstreams};

pub(super) use blobs::Found;
use cache::Images;
pub use cache::{CachedImage, Pins};
pub use fills::FillStatus;
use fills::Fills;
use flights::Flights;
pub use for_peers::{BlobForPeer, ManifestForPeer, SharedBlob};
use freshness::Tags;
use lists::ListOutcome;
pub(super) use manifests::Scope;
use manifests::{Failure, Outcome};
pub(super) use names::Place;
use pace::Paces;

/// How long upstream may take when there is something older to serve instead.
const STALE_AFTER: Duration = Duration::from_millis(900);
/// How long a client waits for the header of an answer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to find out whether blobs can be had.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers "not there" that are remembered, and for how long at most.
const NEGATIVE_MAX: u64 = 16_384;
const NEGATIVE_FOR_MAX: Duration = Duration::from_secs(3600);
/// Blobs that upstream said it has, and for how long that is believed.
const PRESENT_MAX: u64 = 16_384;
const PRESENT_FOR: Duration = Duration::from_secs(60);
/// Sizes of blobs that manifests told.
const SIZES_MAX: u64 = 65_536;

/// What a mirror of other registries is started with.
pub struct PullThroughConfig {
    /// Where what is pulled through is kept: no part that answers strangers may have it.
    pub store: Store,
    pub upstreams: Upstreams,
    /// Bytes that the cache may take; `None`: no limit.
    pub quota_bytes: Option<u64>,
    /// Our own peer id.
    pub us: Peer,
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

/// The mirror of other registries. Cheap to clone.
#[derive(Clone)]
pub(super) struct PullThrough(Arc<Shared>);

struct Shared {
    cache: Arc<Inner>,
    images: Images,
    upstreams: Upstreams,
    fills: Fills,
    paces: Paces,
    tags: Tags,
    look_ups: Flights<String, Outcome>,
    listings: Flights<String, ListOutcome>,
    notes: Notes,
    /// `None`: nothing is shared.
    mesh: Option<Mesh>,
    negative: Memory<String, (Instant, Option<Failure>)>,
    /// Blobs that upstream said it has.
    present: Memory<String, ()>,
    sizes: Memory<Digest, u64>,
    prefetched: Memory<Digest, ()>,
    prefetches: Semaphore,
    quota_bytes: Option<u64>,
    tasks: Tasks,
}

impl PullThrough {
    pub(super) async fn start(
        tasks: &Tasks,
        ipfs: Arc<dyn Ipfs>,
        config: PullThroughConfig,
    ) -> Result<Self, MirrorError> {
        let PullThroughConfig { store, upstreams, quota_bytes, us, metrics } = config;
        let mesh = upstreams.any_is_shared().then(|| Mesh::start(tasks, ipfs, us));
        let cache = Inner::private(tasks, &store).await?;
        let fills = Fills::new(cache.clone(), tasks.clone(), mesh.clone(), metrics);
        let images =
            Images::open(&store, cache.clone(), fills.clone(), mesh.clone(), upstreams.clone()).await?;
        let shared = Arc::new(Shared {
            fills,
            paces: Paces::default(),
            tags: Tags::new(store.notes().clone()),
            look_ups: Flights::new(tasks.clone()),
            listings: Flights::new(tasks.clone()),
            notes: store.notes().clone(),
            mesh,
            negative: Memory::builder().max_capacity(NEGATIVE_MAX).time_to_live(NEGATIVE_FOR_MAX).build(),
            present: Memory::builder().max_capacity(PRESENT_MAX).time_to_live(PRESENT_FOR).build(),
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

    pub(super) fn status(&self) -> PullThroughStatus {
        PullThroughStatus {
            fills: self.0.fills.status(),
            upstreams: self.0.upstreams.status(),
            store: self.0.cache.tree.blocks().store().stats(),
            quota_bytes: self.0.quota_bytes,
        }
    }

    /// The mesh, as far as a registry is shared with it.
    fn mesh(&self, place: &Place) -> Option<&Mesh> {
        self.0.mesh.as_ref().filter(|_| place.upstream.config().share)
    }

    /// The images in the cache.
    pub(super) fn images(&self) -> &Images {
        &self.0.images
    }
}

fn late(place: &Place) -> MirrorError {
    MirrorError::Late { repository: place.repository.clone(), waited: HEADER_TIMEOUT }
}
