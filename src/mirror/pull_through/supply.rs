//! Where the bytes of a fill come from: peers of the mesh that have them, or one of us that goes upstream.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::super::mesh::{Answer, Candidate, Followers, Held, Hop, Key, Mesh, Unable};
use super::super::{MirrorError, Origin, chain};
use super::pace::{Pace, Paces};
use crate::ipfs::Peer;
use crate::oci::{Digest, RepoName, Repository};
use crate::upstream::Upstream;

/// Whoever is asked for one blob before it is given up.
const CANDIDATES_MAX: usize = 24;
/// From as many bytes on it is worth it to ask several peers at once.
const TOGETHER_BYTES_MIN: u64 = 4 << 20;
/// Fills that had other bytes than the digest says, after which only upstream is asked.
const FORGERIES_MAX: usize = 2;
/// How long one that is meant for a blob may look for it before we go upstream too, and the pause before it is asked again.
const LOOKED_FOR: Duration = Duration::from_secs(5);
const LOOKING_PAUSE: Duration = Duration::from_millis(50);
/// Peers that one fill leaves because others are faster.
const SHUNNED_MAX: usize = 1;

/// Whom to ask for one blob. Cheap to clone.
#[derive(Clone)]
pub(super) struct Supply {
    pub(super) digest: Digest,
    pub(super) repository: Repository,
    /// Its name in the cache, here and at peers.
    pub(super) joined: RepoName,
    /// If a manifest has told it.
    pub(super) size_bytes: Option<u64>,
    pub(super) upstream: Upstream,
    /// `None`: peers are left out.
    pub(super) mesh: Option<Mesh>,
    /// It is for a peer: no other is asked, unless it has the blob whole by now.
    pub(super) is_for_peer: bool,
    paces: Paces,
    /// What is being read, and how fast it comes. `None`: from one that has it whole.
    pace: Option<(Source, Pace)>,
    /// Peers that were left because others are faster.
    shunned: Vec<Peer>,
    /// The registry refused us.
    pub(super) refused: Arc<AtomicBool>,
    /// The peers that follow the fill.
    pub(super) followers: Arc<Mutex<Followers>>,
    /// The peers whose bytes are in the fill.
    served_by: HashSet<Peer>,
    /// Some of them had the bytes from others.
    relayed: bool,
    forgeries: usize,
    /// Several peers were asked at once: if they break off, one after the other is.
    tried_together: bool,
}

/// One that has a blob from upstream as it goes.
#[derive(Clone, Debug)]
enum Source {
    Peer(Peer),
    Upstream,
}

/// What came of asking all once.
enum Tried {
    Opened(Opened),
    /// One of us is about to have it.
    Coming,
    Absent,
}

/// Bytes on their way.
pub(super) struct Opened {
    /// Of the whole blob, if the source tells it.
    pub(super) size_bytes: Option<u64>,
    /// Where they begin.
    pub(super) at: u64,
    pub(super) from: Origin,
    /// The peers that they come by, the nearest first.
    pub(super) path: Vec<Peer>,
    /// Up to where the source had the blob, if that is known.
    pub(super) held_bytes: Option<u64>,
    pub(super) bytes: BoxStream<'static, Result<Bytes, MirrorError>>,
}

impl Supply {
    pub(super) fn new(
        digest: Digest,
        repository: Repository,
        joined: RepoName,
        upstream: Upstream,
        mesh: Option<Mesh>,
        paces: Paces,
    ) -> Self {
        Self {
            is_for_peer: false,
            paces,
            pace: None,
            shunned: Vec::new(),
            digest,
            repository,
            joined,
            size_bytes: None,
            upstream,
            mesh,
            refused: Arc::default(),
            followers: Arc::default(),
            served_by: HashSet::new(),
            relayed: false,
            forgeries: 0,
            tried_together: false,
        }
    }

    /// Opens the blob at `at`, or before it where a source knows no ranges. `None`: upstream says that there is none.
    pub(super) async fn open(&mut self, at: u64) -> Result<Option<Opened>, MirrorError> {
        self.pace = None;
        self.hold(Held::Filling);
        if let Some(opened) = self.open_together(at).await {
            return Ok(Some(opened));
        }
        let begun = Instant::now();
        loop {
            match self.ask_all(at, begun.elapsed() < LOOKED_FOR).await? {
                Tried::Opened(opened) => return Ok(Some(opened)),
                Tried::Coming => tokio::time::sleep(LOOKING_PAUSE).await,
                Tried::Absent => return Ok(None),
            }
        }
    }

    /// Asks one after the other. `waits`: not upstream, if one that is meant for it more than we are is there already.
    async fn ask_all(&mut self, at: u64, waits: bool) -> Result<Tried, MirrorError> {
        let mut queue: VecDeque<Candidate> = match self.askable() {
            Some(mesh) => mesh.candidates(self.key(), &self.repository.host).into(),
            None => [Candidate::Upstream].into(),
        };
        let (mut asked, mut failure, mut refused) = (Vec::new(), None, Vec::new());
        let (mut others_ask, mut is_coming) = (false, false);
        while let Some(candidate) = queue.pop_front() {
            if asked.contains(&candidate) || asked.len() >= CANDIDATES_MAX {
                continue;
            }
            asked.push(candidate.clone());
            match candidate {
                Candidate::Upstream if waits && (is_coming || self.others_may_go().await) => {
                    return Ok(Tried::Coming);
                }
                Candidate::Upstream => match self.part(at, None).await {
                    Ok(Some(opened)) => {
                        self.are_unable(&refused);
                        self.pace = Some((Source::Upstream, Pace::of_registry(Instant::now())));
                        self.hold(Held::Fetching);
                        return Ok(Tried::Opened(opened));
                    }
                    Ok(None) => (),
                    Err(error) => {
                        self.refused.fetch_or(error.is_refusal(), Ordering::AcqRel);
                        failure = Some(error);
                    }
                },
                Candidate::Peer(peer, _) if self.shunned.contains(&peer) => (),
                Candidate::Peer(peer, hop) => match self.ask(&peer, hop, at).await {
                    Ok(Answer::Bytes { size_bytes, .. })
                        if self.size_bytes.is_some_and(|known| known != size_bytes) =>
                    {
                        tracing::debug!(%peer, digest = %self.digest, size_bytes, "peer has another size of the blob: left alone");
                        if let Some(mesh) = &self.mesh {
                            mesh.suspect(&peer);
                        }
                    }
                    // It follows one that began to wait for us meanwhile.
                    Ok(Answer::Bytes { path, .. }) if self.would_follow_itself(&path) => {
                        tracing::debug!(%peer, digest = %self.digest, "peer has the blob by way of ourselves: left out");
                    }
                    Ok(Answer::Bytes { size_bytes, at: begins, bytes, path, held_bytes }) => {
                        self.are_unable(&refused);
                        let (from, size_bytes) = (Origin::Peer(peer.clone()), Some(size_bytes));
                        let opened = Opened { size_bytes, at: begins, from, path, held_bytes, bytes };
                        self.note_peer(peer, at, &opened);
                        return Ok(Tried::Opened(opened));
                    }
                    Ok(Answer::Refer(peers)) => {
                        others_ask |= peers.is_empty();
                        is_coming |= self.askable().is_some_and(|mesh| mesh.is_meant_more(&peer, self.key()));
                        let held = peers.into_iter().map(|peer| Candidate::Peer(peer, Hop::Held));
                        held.rev().for_each(|candidate| queue.push_front(candidate));
                    }
                    Ok(Answer::Unable(Unable::NotMirrored)) => self.are_unable(&[peer]),
                    Ok(Answer::Unable(Unable::Refused)) => refused.push(peer),
                    Ok(Answer::No) => (),
                    Err(error) => {
                        tracing::debug!(%peer, digest = %self.digest, error = %chain(&error), "peer left out");
                    }
                },
            }
        }
        self.ask_no_more(at, failure, others_ask).await
    }

    /// What is left when all were asked, of whom nobody gives the blob. `others_ask`: one of them is looking for it.
    async fn ask_no_more(
        &mut self,
        at: u64,
        failure: Option<MirrorError>,
        others_ask: bool,
    ) -> Result<Tried, MirrorError> {
        match failure {
            Some(source) if others_ask => {
                Err(MirrorError::Awaited { digest: self.digest, source: Box::new(source) })
            }
            Some(failure) => self.open_public(at, failure).await.map(Tried::Opened),
            None => Ok(Tried::Absent),
        }
    }

    /// Whether it has just shown that upstream is back: who found out goes there, and tells the others.
    async fn others_may_go(&self) -> bool {
        self.askable().is_some() && self.upstream.settles().await
    }

    /// Opens the blob at whoever announces it, where the registry gave no answer for another reason than who we are.
    async fn open_public(&mut self, at: u64, failure: MirrorError) -> Result<Opened, MirrorError> {
        let is_public = self.upstream.config().is_public() && !failure.is_refusal();
        let Some(mesh) = self.mesh.as_ref().filter(|_| is_public) else { return Err(failure) };
        match mesh.public_blob(&self.digest, at).await {
            Some((peer, Answer::Bytes { size_bytes, at: begins, bytes, path, held_bytes }))
                if self.size_bytes.is_none_or(|known| known == size_bytes) =>
            {
                tracing::info!(digest = %self.digest, %peer, "the registry gives no answer: the blob comes from a peer that announces it");
                let (from, size_bytes) = (Origin::Peer(peer.clone()), Some(size_bytes));
                let opened = Opened { size_bytes, at: begins, from, path, held_bytes, bytes };
                self.note_peer(peer, at, &opened);
                Ok(opened)
            }
            _ => Err(failure),
        }
    }

    /// The blob is opened at a peer, of which the bytes from `at` on are wanted.
    fn note_peer(&mut self, peer: Peer, at: u64, opened: &Opened) {
        let is_whole = self.mesh.as_ref().is_some_and(|mesh| mesh.holds_whole(&peer, self.key()));
        let pace = Pace::of_peer(at, opened.held_bytes, Instant::now());
        self.pace = (!is_whole).then(|| (Source::Peer(peer.clone()), pace));
        self.relayed |= opened.path.len() > 1;
        self.served_by.insert(peer);
    }

    /// Whether what is being read is to be left for another source, which is opened next, now that so many bytes came and
    /// `left_bytes` are missing: a peer has the blob whole by now, or another one brings it much faster.
    pub(super) fn is_to_be_left(&mut self, came_bytes: u64, left_bytes: u64) -> bool {
        let (Some(mesh), Some((source, pace))) = (&self.mesh, &mut self.pace) else { return false };
        let paces = (&self.repository.host, &self.paces);
        let Some(verdict) = pace.came(came_bytes, left_bytes, paces, Instant::now()) else { return false };
        if !verdict.is_worth_it {
            return false;
        }
        let holders = mesh.holders(Key::of_digest(&self.digest));
        if holders.iter().any(|holder| !self.shunned.contains(holder)) {
            tracing::debug!(digest = %self.digest, "a peer has the blob whole: it is read from there");
            self.is_for_peer = false;
            return true;
        }
        match source {
            Source::Peer(peer) if verdict.is_slow && self.shunned.len() < SHUNNED_MAX => {
                tracing::info!(digest = %self.digest, %peer, "peer is too slow; another takes over");
                self.shunned.push(peer.clone());
                true
            }
            Source::Peer(_) | Source::Upstream => false,
        }
    }

    /// Peers were refused what others were given, or do not mirror the registry at all.
    fn are_unable(&self, peers: &[Peer]) {
        if let Some(mesh) = &self.mesh {
            mesh.are_unable(peers, &self.repository.host);
        }
    }

    fn would_follow_itself(&self, path: &[Peer]) -> bool {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).include_any(path)
    }

    /// Tells peers how the blob comes.
    fn hold(&self, held: Held) {
        if let Some(mesh) = &self.mesh {
            mesh.hold(self.key(), Some(held));
        }
    }

    fn key(&self) -> Key {
        Key::of_digest(&self.digest)
    }

    /// The mesh, if it is to be asked.
    fn askable(&self) -> Option<&Mesh> {
        self.mesh.as_ref().filter(|_| !self.is_for_peer)
    }

    /// Opens the blob at several peers that hold it, each of which brings pieces. Once in a fill, and not after a forgery:
    /// who sends wrong bytes shows when each is asked alone.
    async fn open_together(&mut self, at: u64) -> Option<Opened> {
        let (mesh, size_bytes) = (self.askable()?.clone(), self.size_bytes?);
        if self.tried_together || self.forgeries > 0 || size_bytes.saturating_sub(at) < TOGETHER_BYTES_MIN {
            return None;
        }
        let peers = mesh.holders(Key::of_digest(&self.digest));
        let nearest = peers.first().filter(|_| peers.len() > 1)?.clone();
        self.tried_together = true;
        match mesh.blob_together(&peers, &self.joined, &self.digest, at..size_bytes).await {
            Ok(bytes) => {
                tracing::debug!(digest = %self.digest, peers = peers.len(), "peers give the blob together");
                self.served_by.extend(peers.iter().cloned());
                let (from, path) = (Origin::Peer(nearest), peers);
                Some(Opened { size_bytes: Some(size_bytes), at, from, path, held_bytes: None, bytes })
            }
            Err(error) => {
                tracing::debug!(digest = %self.digest, error = %chain(&error), "peers do not give the blob together");
                None
            }
        }
    }

    async fn ask(&self, peer: &Peer, hop: Hop, at: u64) -> Result<Answer, MirrorError> {
        match &self.mesh {
            Some(mesh) if peer != mesh.us() => {
                mesh.blob(peer, hop, &self.joined, &self.digest, at, None).await
            }
            _ => Ok(Answer::No),
        }
    }

    /// A part of the blob straight from upstream.
    pub(super) async fn part(&self, from: u64, to: Option<u64>) -> Result<Option<Opened>, MirrorError> {
        let upstream = match &self.mesh {
            Some(mesh) if !mesh.is_alone() && mesh.are_meant_most(self.key(), &self.repository.host) => {
                self.upstream.clone().for_mesh()
            }
            _ => self.upstream.clone(),
        };
        let body = upstream.blob(&self.repository.name, &self.digest, from, to).await?;
        Ok(body.map(|body| Opened {
            size_bytes: body.size_bytes,
            at: body.at,
            from: Origin::Upstream(self.repository.host.clone()),
            path: Vec::new(),
            held_bytes: Some(0),
            bytes: body.bytes.map(|chunk| chunk.map_err(MirrorError::from)).boxed(),
        }))
    }

    /// The whole did not have its digest. Whoever sent all of it is not asked again; `true`: others may do better.
    pub(super) fn blame(&mut self) -> bool {
        let Some(mesh) = &self.mesh else { return false };
        if self.served_by.is_empty() {
            return false;
        }
        // One that passed on what others sent knew no better.
        let alone = self.served_by.len() == 1 && !self.relayed;
        self.served_by.iter().for_each(|peer| if alone { mesh.ban(peer) } else { mesh.suspect(peer) });
        self.served_by.clear();
        self.relayed = false;
        self.forgeries += 1;
        if self.forgeries >= FORGERIES_MAX {
            self.mesh = None;
        }
        true
    }
}
