//! The images in the cache: when each was last used, which are pinned, and which go when there is no room.
//!
//! Least recently used images go first, whole. What a pin or a running fill needs stays; what is being read stays until
//! its reader has ended; a blob of two images stays while one of them does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::super::mesh::{Key, Mesh};
use super::super::{Inner, MirrorError, chain, layout, listing};
use super::fills::Fills;
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Digest, ImageName, Reference, RepoName, Repository};
use crate::store::{Notes, State, Store, off_thread};
use crate::upstream::Upstreams;

/// How often it is looked at whether there is room.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long nothing is tried after a round that could not make room.
const REST: Duration = Duration::from_secs(30);
/// How often uses are written down.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);
/// Repositories read at a time.
const PAGE: usize = 10_000;
/// Images that may be pinned.
const PINS_MAX: usize = 10_000;
/// What is made room for at a time, as a part of the quota: eviction in small steps would never end.
const ROOM_PERCENT: u64 = 10;
/// Before the name of what is noted here.
const USE: &str = "use/";

/// The images in the cache. Cheap to clone.
#[derive(Clone)]
pub(in crate::mirror) struct Images {
    cache: Arc<Inner>,
    notes: Notes,
    state: State,
    /// Seconds since 1970 of the uses that are not written down yet.
    uses: Arc<Mutex<HashMap<(RepoName, Digest), u64>>>,
    pins: Arc<Mutex<BTreeSet<String>>>,
    fills: Fills,
    mesh: Option<Mesh>,
    upstreams: Upstreams,
}

/// An image in the cache, or an index of images.
#[derive(Clone, Debug)]
pub struct CachedImage {
    pub repo: RepoName,
    pub digest: Digest,
    /// Those of its tags that point to it now.
    pub tags: Vec<String>,
    /// Of itself and of its blobs that are here.
    pub size_bytes: u64,
    /// Blobs that it names and that are not here.
    pub missing_blobs: usize,
    /// Seconds since 1970; 0 if that is not known.
    pub used_at_s: u64,
    pub pinned: bool,
}

/// Whether an image that is to go is held by its pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pins {
    Kept,
    Ignored,
}

/// What an image needs.
struct Needs {
    image: (RepoName, Digest),
    used_at_s: u64,
    blobs: Vec<Digest>,
}

impl Images {
    pub(super) async fn open(
        store: &Store,
        cache: Arc<Inner>,
        fills: Fills,
        mesh: Option<Mesh>,
        upstreams: Upstreams,
    ) -> Result<Self, MirrorError> {
        let state = store.state().clone();
        let pins = {
            let state = state.clone();
            off_thread(move || state.pins()).await?
        };
        let (notes, pins) = (store.notes().clone(), Arc::new(Mutex::new(pins)));
        Ok(Self { cache, notes, state, uses: Arc::default(), pins, fills, mesh, upstreams })
    }

    /// An image was asked for.
    pub(super) fn touch(&self, repo: &RepoName, digest: &Digest) {
        lock(&self.uses).insert((repo.clone(), *digest), seconds(SystemTime::now()));
    }

    /// Keeps an image, by tag or digest, from being evicted. A tag keeps what it points to, whatever that is by then.
    pub(in crate::mirror) async fn pin(&self, image: &ImageName) -> Result<(), MirrorError> {
        let pins = {
            let mut pins = lock(&self.pins);
            if pins.len() >= PINS_MAX {
                return Err(MirrorError::TooManyPins(PINS_MAX));
            }
            pins.insert(image.to_string());
            pins.clone()
        };
        self.write_pins(pins).await
    }

    /// `false`: it was not pinned.
    pub(in crate::mirror) async fn unpin(&self, image: &ImageName) -> Result<bool, MirrorError> {
        let (was_pinned, pins) = {
            let mut pins = lock(&self.pins);
            (pins.remove(&image.to_string()), pins.clone())
        };
        self.write_pins(pins).await?;
        Ok(was_pinned)
    }

    async fn write_pins(&self, pins: BTreeSet<String>) -> Result<(), MirrorError> {
        let state = self.state.clone();
        Ok(off_thread(move || state.set_pins(&pins)).await?)
    }

    /// Takes an image out of the cache, and frees what only it needed. `false`: it is not there.
    pub(in crate::mirror) async fn evict(&self, image: &ImageName, pins: Pins) -> Result<bool, MirrorError> {
        let tag = "latest".parse().map(Reference::Tag);
        let reference = match &image.reference {
            Some(reference) => reference.clone(),
            None => tag?,
        };
        let Some((manifest, _)) = self.cache.manifest(&image.repo, &reference).await? else {
            return Ok(false);
        };
        let parsed = ParsedManifest::parse(None, &manifest.bytes).ok();
        if pins == Pins::Kept {
            let children = parsed.iter().flat_map(|parsed| &parsed.manifests).map(|child| child.digest);
            let going: HashSet<Digest> = children.chain([manifest.digest]).collect();
            if let Some(pin) = self.pin_of(&going).await? {
                return Err(MirrorError::Pinned { image: image.shown(), pin: pin.shown() });
            }
        }
        for child in parsed.iter().flat_map(|parsed| &parsed.manifests) {
            self.cache.delete_manifest(&image.repo, &Reference::Digest(child.digest)).await?;
        }
        let evicted = self.cache.delete_manifest(&image.repo, &Reference::Digest(manifest.digest)).await?;
        self.free().await?;
        Ok(evicted)
    }

    /// All images, sorted by name.
    pub(in crate::mirror) async fn list(&self) -> Result<Vec<CachedImage>, MirrorError> {
        self.note_uses().await?;
        let pinned = self.pinned().await?;
        let mut images = Vec::new();
        for Needs { image: (repo, digest), used_at_s, blobs } in self.needs().await? {
            let (mut size_bytes, mut missing_blobs) = (0, 0);
            for blob in &blobs {
                match self.cache.blob_anywhere(blob).await? {
                    Some((blob, _)) => size_bytes += blob.size_bytes,
                    None => missing_blobs += 1,
                }
            }
            let tags = self.cache.tags_pointing_to(&repo, &digest).await?;
            let tags = tags.iter().map(ToString::to_string).collect();
            let pinned = pinned.contains(&digest);
            images.push(CachedImage { repo, digest, tags, size_bytes, missing_blobs, used_at_s, pinned });
        }
        Ok(images)
    }

    /// Evicts while the cache takes more than `quota_bytes`.
    pub(super) async fn keep_within(self, quota_bytes: Option<u64>, stop: CancellationToken) {
        report(self.tell().await, "peers were not told what is cached");
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut noted = tokio::time::Instant::now();
        let mut rests_until = noted;
        while stop.run_until_cancelled(check.tick()).await.is_some() {
            if noted.elapsed() >= NOTE_INTERVAL {
                noted = tokio::time::Instant::now();
                report(self.note_uses().await, "uses of cached images not written down");
            }
            let Some(quota_bytes) = quota_bytes else { continue };
            if self.live_bytes() > quota_bytes && rests_until.elapsed() > Duration::ZERO {
                report(self.make_room(quota_bytes).await, "no room was made in the cache");
                if self.live_bytes() > quota_bytes {
                    rests_until = tokio::time::Instant::now() + REST;
                }
            }
        }
        report(self.note_uses().await, "uses of cached images not written down");
    }

    fn live_bytes(&self) -> u64 {
        self.cache.tree.blocks().store().stats().live_bytes
    }

    async fn make_room(&self, quota_bytes: u64) -> Result<(), MirrorError> {
        // What no image needs any more may be enough.
        self.free().await?;
        let goal = quota_bytes - quota_bytes / 100 * ROOM_PERCENT;
        let live_bytes = self.live_bytes();
        if live_bytes <= quota_bytes {
            return Ok(());
        }
        self.note_uses().await?;
        let mut images = self.needs().await?;
        images.sort_by_key(|needs| needs.used_at_s);
        let mut needed = HashMap::<Digest, usize>::new();
        images.iter().flat_map(|needs| &needs.blobs).for_each(|blob| *needed.entry(*blob).or_default() += 1);
        let (pinned, mut freed_bytes, mut evicted) = (self.pinned().await?, 0, 0);
        for Needs { image: (repo, digest), blobs, .. } in images {
            if live_bytes.saturating_sub(freed_bytes) <= goal {
                break;
            }
            let filling = blobs.iter().any(|blob| self.fills.running(blob).is_some());
            if filling || pinned.contains(&digest) {
                continue;
            }
            self.cache.delete_manifest(&repo, &Reference::Digest(digest)).await?;
            evicted += 1;
            for blob in blobs {
                let left = needed.get_mut(&blob).map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                if left == 0 {
                    let blob = self.cache.blob_anywhere(&blob).await?;
                    freed_bytes += blob.map_or(0, |(blob, _)| blob.size_bytes);
                }
            }
            tracing::info!(repo.name = %repo, %digest, "image evicted: least recently used");
        }
        if evicted == 0 {
            tracing::warn!(
                live_bytes,
                quota_bytes,
                "the cache is over its quota, and all in it is pinned or on its way"
            );
            return Ok(());
        }
        self.free().await
    }

    async fn free(&self) -> Result<(), MirrorError> {
        self.cache.collector.collect().await.map_err(MirrorError::NotFreed)?;
        self.tell().await
    }

    /// Tells the mesh what is here whole, of the registries that are shared.
    async fn tell(&self) -> Result<(), MirrorError> {
        let Some(mesh) = &self.mesh else { return Ok(()) };
        let mut whole = HashSet::new();
        for Needs { image: (repo, digest), blobs, .. } in self.needs().await? {
            let upstream =
                Repository::split(&repo).and_then(|repository| self.upstreams.get(&repository.host));
            if !upstream.is_some_and(|upstream| upstream.config().share) {
                continue;
            }
            for blob in &blobs {
                if self.cache.blob_anywhere(blob).await?.is_some() {
                    whole.insert(Key::of_digest(blob));
                }
            }
            let tags = self.cache.tags_pointing_to(&repo, &digest).await?;
            whole.extend(tags.iter().map(|tag| Key::of_tag(&repo, tag)));
        }
        mesh.hold_whole(&whole);
        Ok(())
    }

    /// What every image needs, itself included.
    async fn needs(&self) -> Result<Vec<Needs>, MirrorError> {
        let root = self.cache.own().await?.commits.root();
        let uses = self.uses_on_disk().await?;
        let (mut all, mut last) = (Vec::new(), None::<String>);
        loop {
            let page = listing::repositories(&self.cache.tree, &root, last.as_deref(), PAGE).await?;
            for repo in page.names.iter().filter_map(|name| name.parse::<RepoName>().ok()) {
                for digest in self.cache.digests_in(&root, &layout::revisions(&repo)).await? {
                    let manifest = self.cache.manifest_at(&root, &digest).await?;
                    let parsed = ParsedManifest::parse(None, &manifest.bytes).ok();
                    let named = parsed.iter().flat_map(|parsed| &parsed.blobs).map(|blob| blob.digest);
                    let blobs = std::iter::once(digest).chain(named).collect::<HashSet<_>>();
                    let used_at_s = uses.get(&format!("{repo}@{digest}")).copied().unwrap_or_default();
                    let blobs = blobs.into_iter().collect();
                    all.push(Needs { image: (repo.clone(), digest), used_at_s, blobs });
                }
            }
            last = page.names.last().cloned();
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// The manifests that pins keep.
    async fn pinned(&self) -> Result<HashSet<Digest>, MirrorError> {
        let mut pinned = HashSet::new();
        for pin in self.pins() {
            pinned.extend(self.kept_by(&pin).await?);
        }
        Ok(pinned)
    }

    /// A pin that keeps one of these manifests.
    async fn pin_of(&self, digests: &HashSet<Digest>) -> Result<Option<ImageName>, MirrorError> {
        for pin in self.pins() {
            if self.kept_by(&pin).await?.iter().any(|kept| digests.contains(kept)) {
                return Ok(Some(pin));
            }
        }
        Ok(None)
    }

    fn pins(&self) -> Vec<ImageName> {
        lock(&self.pins).iter().filter_map(|pin| pin.parse().ok()).collect()
    }

    /// The manifests that a pin keeps: what it names, and below an index all images.
    async fn kept_by(&self, pin: &ImageName) -> Result<Vec<Digest>, MirrorError> {
        let Some(reference) = &pin.reference else { return Ok(Vec::new()) };
        let Some((manifest, _)) = self.cache.manifest(&pin.repo, reference).await? else {
            return Ok(Vec::new());
        };
        let parsed = ParsedManifest::parse(None, &manifest.bytes).ok();
        let children = parsed.iter().flat_map(|parsed| &parsed.manifests).map(|child| child.digest);
        Ok(children.chain([manifest.digest]).collect())
    }

    async fn uses_on_disk(&self) -> Result<HashMap<String, u64>, MirrorError> {
        let notes = self.notes.clone();
        let rows = off_thread(move || notes.below(USE)).await?;
        let read = |row: Vec<u8>| std::str::from_utf8(&row).ok()?.parse().ok();
        Ok(rows.into_iter().filter_map(|(key, row)| Some((key, read(row)?))).collect())
    }

    async fn note_uses(&self) -> Result<(), MirrorError> {
        let uses = std::mem::take(&mut *lock(&self.uses));
        let notes = self.notes.clone();
        let write = move || {
            uses.iter().try_for_each(|((repo, digest), at_s)| {
                notes.put(&format!("{USE}{repo}@{digest}"), at_s.to_string().as_bytes())
            })
        };
        Ok(off_thread(write).await?)
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn report(outcome: Result<(), MirrorError>, what: &str) {
    if let Err(error) = outcome {
        tracing::warn!(error = %chain(&error), "{what}");
    }
}

/// A panic leaves a set with or without its last entry.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
