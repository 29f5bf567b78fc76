//! Where the bytes of a fill come from: peers of the mesh that have them, or one of us that goes upstream.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::super::mesh::{Answer, Candidate, Hop, Key, Mesh, Unable};
use super::super::{MirrorError, Origin, chain};
use crate::ipfs::Peer;
use crate::oci::{Digest, RepoName, Repository};
use crate::upstream::Upstream;

/// Whoever is asked for one blob before it is given up.
const CANDIDATES_MAX: usize = 24;
/// From as many bytes on it is worth it to ask several peers at once.
const TOGETHER_BYTES_MIN: u64 = 4 << 20;
/// Fills that had other bytes than the digest says, after which only upstream is asked.
const FORGERIES_MAX: usize = 2;

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
    /// The registry refused us.
    pub(super) refused: Arc<AtomicBool>,
    /// The peers whose bytes are in the fill.
    served_by: HashSet<Peer>,
    /// Some of them had the bytes from others.
    relayed: bool,
    forgeries: usize,
    /// Several peers were asked at once: if they break off, one after the other is.
    tried_together: bool,
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
    pub(super) bytes: BoxStream<'static, Result<Bytes, MirrorError>>,
}

impl Supply {
    pub(super) fn new(
        digest: Digest,
        repository: Repository,
        joined: RepoName,
        upstream: Upstream,
        mesh: Option<Mesh>,
    ) -> Self {
        Self {
            digest,
            repository,
            joined,
            size_bytes: None,
            upstream,
            mesh,
            refused: Arc::default(),
            served_by: HashSet::new(),
            relayed: false,
            forgeries: 0,
            tried_together: false,
        }
    }

    /// Opens the blob at `at`, or before it where a source knows no ranges. `None`: upstream says that there is none.
    pub(super) async fn open(&mut self, at: u64) -> Result<Option<Opened>, MirrorError> {
        if let Some(opened) = self.open_together(at).await {
            return Ok(Some(opened));
        }
        let mut queue: VecDeque<Candidate> = match &self.mesh {
            Some(mesh) => mesh.candidates(Key::of_digest(&self.digest), &self.repository.host).into(),
            None => [Candidate::Upstream].into(),
        };
        let (mut asked, mut failure, mut others_ask, mut refused) = (Vec::new(), None, false, Vec::new());
        while let Some(candidate) = queue.pop_front() {
            if asked.contains(&candidate) || asked.len() >= CANDIDATES_MAX {
                continue;
            }
            asked.push(candidate.clone());
            match candidate {
                Candidate::Upstream => match self.part(at, None).await {
                    Ok(Some(opened)) => {
                        self.are_unable(&refused);
                        return Ok(Some(opened));
                    }
                    Ok(None) => (),
                    Err(error) => {
                        self.refused.fetch_or(error.is_refusal(), Ordering::AcqRel);
                        failure = Some(error);
                    }
                },
                Candidate::Peer(peer, hop) => match self.ask(&peer, hop, at).await {
                    Ok(Answer::Bytes { size_bytes, .. })
                        if self.size_bytes.is_some_and(|known| known != size_bytes) =>
                    {
                        tracing::debug!(%peer, digest = %self.digest, size_bytes, "peer has another size of the blob: left alone");
                        self.leave_alone(&peer);
                    }
                    Ok(Answer::Bytes { size_bytes, at, bytes, path }) => {
                        self.are_unable(&refused);
                        self.served_by.insert(peer.clone());
                        self.relayed |= path.len() > 1;
                        let from = Origin::Peer(peer);
                        return Ok(Some(Opened { size_bytes: Some(size_bytes), at, from, path, bytes }));
                    }
                    Ok(Answer::Refer(peers)) => {
                        others_ask |= peers.is_empty();
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
        match failure {
            Some(source) if others_ask => {
                Err(MirrorError::Awaited { digest: self.digest, source: Box::new(source) })
            }
            failure => failure.map_or(Ok(None), Err),
        }
    }

    fn leave_alone(&self, peer: &Peer) {
        if let Some(mesh) = &self.mesh {
            mesh.leave_alone(peer);
        }
    }

    /// Peers were refused what others were given, or do not mirror the registry at all.
    fn are_unable(&self, peers: &[Peer]) {
        if let Some(mesh) = &self.mesh {
            mesh.are_unable(peers, &self.repository.host);
        }
    }

    /// Opens the blob at several peers that hold it, each of which brings pieces. Once in a fill, and not after a forgery:
    /// who sends wrong bytes shows when each is asked alone.
    async fn open_together(&mut self, at: u64) -> Option<Opened> {
        let (mesh, size_bytes) = (self.mesh.as_ref()?, self.size_bytes?);
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
                Some(Opened { size_bytes: Some(size_bytes), at, from, path, bytes })
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
        let body = self.upstream.blob(&self.repository.name, &self.digest, from, to).await?;
        Ok(body.map(|body| Opened {
            size_bytes: body.size_bytes,
            at: body.at,
            from: Origin::Upstream(self.repository.host.clone()),
            path: Vec::new(),
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
        self.served_by.iter().for_each(|peer| if alone { mesh.ban(peer) } else { mesh.leave_alone(peer) });
        self.served_by.clear();
        self.relayed = false;
        self.forgeries += 1;
        if self.forgeries >= FORGERIES_MAX {
            self.mesh = None;
        }
        true
    }
}
