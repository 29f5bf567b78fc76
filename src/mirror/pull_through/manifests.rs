//! Manifests: from the cache for as long as that may be, else from the mesh or upstream, once for all who ask.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;

use super::super::push::PutManifest;
use super::super::{Age, Manifest, MirrorError, Origin, Served, chain};
use super::flights::Flights;
use super::freshness::{self, Confirmed, Verdict};
use super::{HEADER_TIMEOUT, Place, PullThrough, STALE_AFTER, late};
use crate::ipfs::Peer;
use crate::mirror::mesh::{Candidate, Held, Hop, Key, ManifestAnswer, Mesh, Unable};
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Digest, Reference, Tag};
use crate::upstream::Fetched;

/// How long a peer may look for a manifest before somebody else is asked. It says in time that it does.
const AWAITED_MAX: Duration = Duration::from_secs(5);

/// Who may be asked for the sake of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::mirror) enum Scope {
    /// Peers and upstream.
    Mesh,
    /// Upstream alone: a peer has asked us to go there.
    Upstream,
    /// Nobody: what is here.
    Local,
}

/// What was found out about a manifest.
#[derive(Clone)]
pub(super) struct Confirmation {
    manifest: Manifest,
    /// When upstream said so.
    at: SystemTime,
    stale: bool,
    origin: Origin,
}

/// Why there was no answer.
pub(super) type Failure = Arc<MirrorError>;
pub(super) type Outcome = Result<Option<Confirmation>, Failure>;

impl PullThrough {
    /// A manifest. `None`: upstream says that there is none, or nobody may be asked and it is not here.
    pub(in crate::mirror) async fn manifest(
        &self,
        place: &Place,
        reference: &Reference,
        scope: Scope,
    ) -> Result<Option<Served>, MirrorError> {
        let served = match reference {
            Reference::Digest(digest) => self.by_digest(place, reference, digest, scope).await?,
            Reference::Tag(tag) => self.by_tag(place, reference, tag, scope).await?,
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
        scope: Scope,
    ) -> Result<Option<Served>, MirrorError> {
        if let Some(manifest) = self.cached(place, digest).await? {
            return Ok(Some(Served { manifest, origin: Origin::Cache, age: None }));
        }
        if scope == Scope::Local {
            return Ok(None);
        }
        let found =
            timeout(HEADER_TIMEOUT, self.ask(place, reference, scope)).await.map_err(|_| late(place))?;
        let found = found.map_err(MirrorError::Fill)?;
        Ok(found.map(|found| Served { manifest: found.manifest, origin: found.origin, age: None }))
    }

    async fn by_tag(
        &self,
        place: &Place,
        reference: &Reference,
        tag: &Tag,
        scope: Scope,
    ) -> Result<Option<Served>, MirrorError> {
        let now = SystemTime::now();
        let config = place.upstream.config();
        let ttl = config.tag_ttl(&place.repository.name, tag);
        let confirmed = self.0.tags.get(&place.joined, tag).await?;
        let verdict = freshness::judge(confirmed.map(|confirmed| confirmed.at), now, ttl, config.stale_for);
        let at_hand = match (&confirmed, verdict) {
            (Some(confirmed), Verdict::Fresh | Verdict::AskOrServe) => {
                let manifest = self.cached(place, &confirmed.digest).await?;
                manifest.map(|manifest| (manifest, confirmed.age(now)))
            }
            _ => None,
        };
        let Some((manifest, age)) = at_hand else {
            if scope == Scope::Local {
                return Ok(None);
            }
            let found =
                timeout(HEADER_TIMEOUT, self.ask(place, reference, scope)).await.map_err(|_| late(place))?;
            return Ok(found.map_err(MirrorError::Fill)?.map(Confirmation::served));
        };
        let served = |stale| Served {
            manifest: manifest.clone(),
            origin: Origin::Cache,
            age: Some(Age { since_confirmed: age, stale }),
        };
        if verdict == Verdict::Fresh {
            return Ok(Some(served(false)));
        }
        if scope == Scope::Local {
            return Ok(Some(served(true)));
        }
        let reason = match timeout(STALE_AFTER, self.ask(place, reference, scope)).await {
            Ok(Ok(None)) => return Ok(None),
            Ok(Ok(Some(found))) if !found.stale => {
                let is_known = found.manifest.digest == manifest.digest;
                let served = found.served();
                return Ok(Some(if is_known { Served { origin: Origin::Cache, ..served } } else { served }));
            }
            Ok(Ok(Some(_))) => "a peer has no newer answer either".to_owned(),
            Ok(Err(error)) => chain(&*error),
            Err(_) => format!("no answer within {} ms", STALE_AFTER.as_millis()),
        };
        tracing::warn!(repo.name = %place.repository, %tag, age_s = age.as_secs(), error = reason, "upstream did not confirm the tag: served as it last was");
        Ok(Some(served(true)))
    }

    /// A manifest of this repository that is in the cache.
    pub(super) async fn cached(
        &self,
        place: &Place,
        digest: &Digest,
    ) -> Result<Option<Manifest>, MirrorError> {
        let found = self.0.cache.manifest(&place.joined, &Reference::Digest(*digest)).await?;
        Ok(found.map(|(manifest, _)| manifest))
    }

    /// Finds out, once for all who ask at the same time, unless there was no answer a moment ago.
    async fn ask(&self, place: &Place, reference: &Reference, scope: Scope) -> Outcome {
        if scope == Scope::Upstream {
            return self.ask_upstream(place, reference).await;
        }
        let (this, asked, of) = (self.clone(), reference.clone(), place.clone());
        let work = Box::pin(async move { this.confirm(&of, &asked, scope).await });
        self.once(&self.0.look_ups, format!("{}@{reference}/{scope:?}", place.joined), place, work).await
    }

    /// Upstream is asked once for our own clients and for peers.
    async fn ask_upstream(&self, place: &Place, reference: &Reference) -> Outcome {
        let (this, asked, of) = (self.clone(), reference.clone(), place.clone());
        let work = Box::pin(async move { this.confirm_upstream(&of, &asked).await });
        self.once(&self.0.look_ups, format!("{}@{reference}/upstream", place.joined), place, work).await
    }

    /// The outcome of `work`, as one of `flights`, unless there was no good one a moment ago.
    pub(super) async fn once<T: Clone + Send + Sync + 'static>(
        &self,
        flights: &Flights<String, Result<Option<T>, Failure>>,
        key: String,
        place: &Place,
        work: impl Future<Output = Result<Option<T>, MirrorError>> + Send + 'static,
    ) -> Result<Option<T>, Failure> {
        if let Some((until, failure)) = self.0.negative.get(&key)
            && Instant::now() < until
        {
            return failure.map_or(Ok(None), Err);
        }
        let (this, negative_ttl, flight) = (self.clone(), place.upstream.config().negative_ttl, key.clone());
        let work = async move {
            let outcome = work.await.map_err(Arc::new);
            let negative = match &outcome {
                Ok(Some(_)) => return outcome,
                Ok(None) => None,
                Err(error) => Some(error.clone()),
            };
            let until = Instant::now() + negative_ttl;
            this.0.negative.insert(key, (until, negative));
            outcome
        };
        flights.join(flight, work).await
    }

    /// Asks whoever is meant to, one after the other; a stale answer is better than none.
    async fn confirm(
        &self,
        place: &Place,
        reference: &Reference,
        scope: Scope,
    ) -> Result<Option<Confirmation>, MirrorError> {
        let mesh = self.mesh(place).filter(|mesh| scope == Scope::Mesh && !mesh.is_alone());
        let Some(mesh) = mesh else {
            return self.ask_upstream(place, reference).await.map_err(MirrorError::Fill);
        };
        let registry = &place.repository.host;
        let key = key_of(place, reference);
        let candidates = match reference {
            Reference::Digest(_) => mesh.candidates(key, registry),
            Reference::Tag(_) => mesh.fetchers_of(key, registry),
        };
        let (mut failure, mut stale, mut refused) = (None, None, Vec::new());
        // One that lacks credentials may be told that there is nothing: then we go and see, and ask no more peers to.
        let mut may_be_absent = false;
        for candidate in candidates {
            let outcome = match candidate {
                Candidate::Peer(_, Hop::Fetch) if may_be_absent => continue,
                Candidate::Upstream => self.ask_upstream(place, reference).await.map_err(MirrorError::Fill),
                Candidate::Peer(peer, hop) => match self.ask_peer(mesh, &peer, hop, place, reference).await {
                    Ok(Some(ManifestAnswer::Found(found))) => {
                        self.keep_of_peer(place, reference, peer, found).await.map(Some)
                    }
                    Ok(Some(ManifestAnswer::Absent)) => {
                        may_be_absent = true;
                        continue;
                    }
                    Ok(Some(ManifestAnswer::Unable(Unable::Refused))) => {
                        refused.push(peer);
                        continue;
                    }
                    Ok(Some(ManifestAnswer::Unable(Unable::NotMirrored))) => {
                        mesh.are_unable(&[peer], registry);
                        continue;
                    }
                    Ok(Some(ManifestAnswer::Awaited | ManifestAnswer::No) | None) => continue,
                    Err(error) => {
                        tracing::debug!(%peer, %reference, error = %chain(&error), "peer left out");
                        Err(error)
                    }
                },
            };
            match outcome {
                Ok(Some(found)) if found.stale => stale = Some(found),
                Ok(found) => {
                    // They were refused what others were given.
                    if found.is_some() {
                        mesh.are_unable(&refused, registry);
                    }
                    return Ok(found);
                }
                Err(error) => failure = Some(error),
            }
        }
        if stale.is_none() {
            for peer in mesh.holders(key) {
                let answer = self.ask_peer(mesh, &peer, Hop::Held, place, reference).await;
                if let Ok(Some(ManifestAnswer::Found(found))) = answer {
                    stale = Some(self.keep_of_peer(place, reference, peer, found).await?);
                    break;
                }
            }
        }
        match (stale, failure) {
            (Some(found), _) => Ok(Some(found)),
            (None, failure) => failure.map_or(Ok(None), Err),
        }
    }

    async fn ask_peer(
        &self,
        mesh: &Mesh,
        peer: &Peer,
        hop: Hop,
        place: &Place,
        reference: &Reference,
    ) -> Result<Option<ManifestAnswer>, MirrorError> {
        if peer == mesh.us() {
            return Ok(None);
        }
        let key = key_of(place, reference);
        let begun = Instant::now();
        loop {
            match mesh.manifest(peer, hop, &place.joined, reference).await? {
                // Not while somebody else has an older answer.
                ManifestAnswer::Awaited if begun.elapsed() < AWAITED_MAX && mesh.holders(key).is_empty() => {}
                answer => return Ok(Some(answer)),
            }
        }
    }

    async fn keep_of_peer(
        &self,
        place: &Place,
        reference: &Reference,
        peer: Peer,
        found: crate::mirror::mesh::PeerManifest,
    ) -> Result<Confirmation, MirrorError> {
        let at = SystemTime::now().checked_sub(found.age).unwrap_or(SystemTime::UNIX_EPOCH);
        let fetched = Fetched { media_type: None, digest: found.digest, bytes: found.bytes };
        let manifest = self.keep(place, fetched, tag_of(reference)).await?;
        if let Reference::Tag(tag) = reference {
            self.note(place, tag, Confirmed { digest: manifest.digest, at }).await?;
        }
        Ok(Confirmation { manifest, at, stale: found.stale, origin: Origin::Peer(peer) })
    }

    /// What upstream has now. A tag costs a `HEAD`, which registries do not count, and a `GET` if it moved.
    async fn confirm_upstream(
        &self,
        place: &Place,
        reference: &Reference,
    ) -> Result<Option<Confirmation>, MirrorError> {
        if let Some(found) = self.just_confirmed(place, reference).await? {
            return Ok(Some(found));
        }
        let (upstream, name) = (&place.upstream, &place.repository.name);
        let origin = Origin::Upstream(place.repository.host.clone());
        let at = SystemTime::now();
        let confirmed = |manifest| Confirmation { manifest, at, stale: false, origin: origin.clone() };
        let Reference::Tag(tag) = reference else {
            return match upstream.manifest(name, reference).await {
                Ok(Some(fetched)) => self.keep(place, fetched, &[]).await.map(confirmed).map(Some),
                Ok(None) => Ok(None),
                Err(error) => self.of_anybody(place, reference, error.into()).await.map(Some),
            };
        };
        let Some(head) = upstream.head_manifest(name, reference).await? else { return Ok(None) };
        let known = match &head.digest {
            Some(digest) => self.cached(place, digest).await?,
            None => None,
        };
        let manifest = match known {
            Some(manifest) => manifest,
            None => {
                let by = head.digest.map_or(reference.clone(), Reference::Digest);
                let fetched = match upstream.manifest(name, &by).await? {
                    // The tag has just been moved, or a header said what nothing has.
                    None => upstream.manifest(name, reference).await?,
                    found => found,
                };
                let Some(fetched) = fetched else { return Ok(None) };
                self.keep(place, fetched, std::slice::from_ref(tag)).await?
            }
        };
        self.note(place, tag, Confirmed { digest: manifest.digest, at }).await?;
        Ok(Some(confirmed(manifest)))
    }

    /// What another look-up has brought since it was seen to be missing, or too old.
    async fn just_confirmed(
        &self,
        place: &Place,
        reference: &Reference,
    ) -> Result<Option<Confirmation>, MirrorError> {
        let now = SystemTime::now();
        let (digest, at) = match reference {
            Reference::Digest(digest) => (*digest, now),
            Reference::Tag(tag) => {
                let config = place.upstream.config();
                let ttl = config.tag_ttl(&place.repository.name, tag);
                let confirmed = self.0.tags.get(&place.joined, tag).await?;
                let is_fresh = |confirmed: &Confirmed| {
                    freshness::judge(Some(confirmed.at), now, ttl, config.stale_for) == Verdict::Fresh
                };
                let Some(confirmed) = confirmed.filter(is_fresh) else { return Ok(None) };
                (confirmed.digest, confirmed.at)
            }
        };
        let manifest = self.cached(place, &digest).await?;
        Ok(manifest.map(|manifest| Confirmation { manifest, at, stale: false, origin: Origin::Cache }))
    }

    /// A manifest by its digest of whoever announces it, where the registry gave no answer for another reason than who we are.
    async fn of_anybody(
        &self,
        place: &Place,
        reference: &Reference,
        failure: MirrorError,
    ) -> Result<Confirmation, MirrorError> {
        let mesh = self.mesh(place).filter(|_| place.upstream.config().is_public() && !failure.is_refusal());
        let (Some(mesh), Reference::Digest(digest)) = (mesh, reference) else { return Err(failure) };
        let Some((peer, bytes)) = mesh.public_manifest(digest).await else { return Err(failure) };
        tracing::info!(repo.name = %place.repository, %digest, %peer, "the registry gives no answer: the manifest comes from a peer that announces it");
        let fetched = Fetched { media_type: None, digest: *digest, bytes };
        let manifest = self.keep(place, fetched, &[]).await?;
        Ok(Confirmation { manifest, at: SystemTime::now(), stale: false, origin: Origin::Peer(peer) })
    }

    async fn note(&self, place: &Place, tag: &Tag, confirmed: Confirmed) -> Result<(), MirrorError> {
        if let Some(mesh) = self.mesh(place) {
            mesh.hold(Key::of_tag(&place.joined, tag), Some(Held::Whole));
        }
        Ok(self.0.tags.put(&place.joined, tag, confirmed).await?)
    }

    async fn keep(&self, place: &Place, fetched: Fetched, tags: &[Tag]) -> Result<Manifest, MirrorError> {
        let Fetched { digest, bytes, .. } = fetched;
        let put = PutManifest { tags, expected: Some(digest), content_type: None, bytes };
        self.0.cache.put_manifest(&place.joined, put).await?;
        if let Some(mesh) = self.mesh(place) {
            mesh.hold(Key::of_digest(&digest), Some(Held::Whole));
        }
        let kept = self.cached(place, &digest).await?;
        kept.ok_or_else(|| MirrorError::NoImage(format!("{}@{digest}", place.repository)))
    }
}

impl Confirmation {
    fn served(self) -> Served {
        let since_confirmed = SystemTime::now().duration_since(self.at).unwrap_or(Duration::ZERO);
        let age = Some(Age { since_confirmed, stale: self.stale });
        Served { manifest: self.manifest, origin: self.origin, age }
    }
}

/// What peers call it when they tell what they hold.
fn key_of(place: &Place, reference: &Reference) -> Key {
    match reference {
        Reference::Digest(digest) => Key::of_digest(digest),
        Reference::Tag(tag) => Key::of_tag(&place.joined, tag),
    }
}

fn tag_of(reference: &Reference) -> &[Tag] {
    match reference {
        Reference::Tag(tag) => std::slice::from_ref(tag),
        Reference::Digest(_) => &[],
    }
}
