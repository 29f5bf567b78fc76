//! Reads a blob from several peers at once, in the pieces that `pieces.rs` decides on.

use std::collections::HashMap;
use std::ops::Range;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, AbortHandle, Abortable, BoxStream, SelectAll};
use futures::{StreamExt, TryStreamExt};

use super::pieces::{Act, Outlook, Pieces, RequestId};
use super::{Answer, Hop, Mesh};
use crate::ipfs::{IpfsError, Peer};
use crate::mirror::MirrorError;
use crate::oci::{Digest, RepoName};

/// What a request brought; `None`: it has ended.
type Event = (RequestId, Option<Result<Bytes, MirrorError>>);

struct Reader {
    mesh: Mesh,
    peers: Vec<Peer>,
    repo: RepoName,
    digest: Digest,
    size_bytes: u64,
    pieces: Pieces,
    answers: SelectAll<Abortable<BoxStream<'static, Event>>>,
    under_way: HashMap<RequestId, (Peer, AbortHandle)>,
    failure: Option<MirrorError>,
}

impl Mesh {
    /// The bytes of `range`, which ends where the blob does, from peers that hold it whole, in their order. Returns when
    /// the first came. An error, here or in the stream: none of them is left.
    pub(in crate::mirror) async fn blob_together(
        &self,
        peers: &[Peer],
        repo: &RepoName,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, MirrorError>>, MirrorError> {
        let size_bytes = range.end;
        let mut reader = Reader {
            mesh: self.clone(),
            peers: peers.to_vec(),
            repo: repo.clone(),
            digest: *digest,
            size_bytes,
            pieces: Pieces::new(range, self.usually_begin_within(peers)),
            answers: SelectAll::new(),
            under_way: HashMap::new(),
            failure: None,
        };
        let first = reader.next().await?;
        let rest = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|bytes| (bytes, reader)))
        });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }

    fn usually_begin_within(&self, peers: &[Peer]) -> Vec<std::time::Duration> {
        let known = self.peers();
        let p90 = |peer| known.get(peer).map(|known| known.latencies.p90()).unwrap_or_default();
        peers.iter().map(p90).collect()
    }
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, MirrorError> {
        loop {
            // What came while nobody read goes first, lest its source be taken for one that stalls.
            while let Poll::Ready(Some((id, event))) = futures::poll!(self.answers.next()) {
                self.hear(id, event);
            }
            let bytes = self.pieces.take();
            let now = Instant::now();
            while let Some(act) = self.pieces.poll(now) {
                self.act(act);
            }
            if bytes.is_some() {
                return Ok(bytes);
            }
            match self.pieces.outlook(now) {
                Outlook::Complete => return Ok(None),
                Outlook::Failed => return Err(self.failure.take().unwrap_or_else(|| self.refused(None))),
                Outlook::UnderWay => (),
            }
            let wakes_at = self.pieces.wakes_at(now).unwrap_or(now + super::PENALTY);
            tokio::select! {
                Some((id, event)) = self.answers.next() => self.hear(id, event),
                () = tokio::time::sleep_until(wakes_at.into()) => (),
            }
        }
    }

    fn hear(&mut self, id: RequestId, event: Option<Result<Bytes, MirrorError>>) {
        match event {
            Some(Ok(bytes)) => {
                let first_after = self.pieces.arrived(id, bytes, Instant::now());
                if let (Some(took), Some((peer, _))) = (first_after, self.under_way.get(&id))
                    && let Some(known) = self.mesh.peers().get_mut(peer)
                {
                    known.latencies.note(took);
                }
            }
            Some(Err(error)) => {
                self.pieces.failed(id);
                self.failure = Some(error);
            }
            // If it brought all it was asked for, this is not heard.
            None => self.pieces.failed(id),
        }
    }

    fn act(&mut self, act: Act) {
        let (id, source, range) = match act {
            Act::Ask { id, source, range } => (id, source, range),
            Act::Drop(id) => {
                if let Some((_, answer)) = self.under_way.remove(&id) {
                    answer.abort();
                }
                return;
            }
        };
        let Some(peer) = self.peers.get(source.0).cloned() else { return };
        let (handle, registration) = AbortHandle::new_pair();
        let (mesh, repo, digest, size_bytes) =
            (self.mesh.clone(), self.repo.clone(), self.digest, self.size_bytes);
        let refused = self.refused(Some(&peer));
        self.under_way.insert(id, (peer.clone(), handle));
        let answer = stream::once(async move {
            match mesh.blob(&peer, Hop::Held, &repo, &digest, range.start, Some(range.end)).await? {
                Answer::Bytes { size_bytes: stated, at, bytes, .. }
                    if at == range.start && stated == size_bytes =>
                {
                    Ok(bytes)
                }
                _ => Err(refused),
            }
        });
        let events = answer.try_flatten().map(Some).chain(stream::iter([None]));
        self.answers.push(Abortable::new(events.map(move |event| (id, event)).boxed(), registration));
    }

    fn refused(&self, peer: Option<&Peer>) -> MirrorError {
        let peer = peer.or(self.peers.first());
        let name = peer.map(Peer::to_string).unwrap_or_default();
        MirrorError::Peer(IpfsError::NoPeers(format!("blob {} (peer {name} refused)", self.digest)))
    }
}
