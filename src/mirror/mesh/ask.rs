//! Asks a peer of the mesh for a blob or a manifest, in the words of the registry API.

use std::str::FromStr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper::header::{AGE, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, RANGE, WARNING};
use hyper::{Request, Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::Mesh;
use super::fanout::referred;
use crate::ipfs::{IpfsError, Peer, PeerBody};
use crate::mirror::MirrorError;
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Algorithm, Digest, Reference, RepoName};

/// What a peer may do to answer.
pub const HOP: HeaderName = HeaderName::from_static("shoal-hop");
/// The peers that the bytes of a fill come by, nearest first.
pub const PATH: HeaderName = HeaderName::from_static("shoal-path");
/// How many bytes of a blob that is on its way were there when they began to be given: those behind them come as fast as
/// they are got. Left out where that is not known, and of a blob that is whole.
pub const HELD: HeaderName = HeaderName::from_static("shoal-held");
/// Peers to ask instead.
pub const REFER: HeaderName = HeaderName::from_static("shoal-refer");
/// The path that a daemon of the mesh answers at once.
pub const ALIVE_PATH: &str = "/mesh/alive";

/// How long a peer that holds a thing may take to say so …
pub(super) const HELD_TIMEOUT: Duration = Duration::from_secs(1);
/// … and one that may go upstream first, which says after a while that it is still looking: for a blob …
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);
/// … and for a manifest, for which it waits a while longer, since it may have an older answer.
const MANIFEST_FETCH_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a body may bring nothing before its peer is asked whether it is there at all; how long it may take to say so;
/// and how long a body may bring nothing in all before another source takes over. A peer that is there sees itself to a
/// source that stalls.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);
const SILENT_MAX: Duration = Duration::from_secs(12);
/// How often it is noted that a peer sends something.
const NOTED_EVERY: Duration = Duration::from_millis(100);
/// How long a manifest may take in all.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Peers that one may refer to, or that a path may have.
const PEERS_MAX: usize = 64;

/// What a peer may do to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Give what it has, or is about to have.
    Held,
    /// Go upstream for it.
    Fetch,
}

impl Hop {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Fetch => "fetch",
        }
    }
}

impl FromStr for Hop {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "held" => Ok(Self::Held),
            "fetch" => Ok(Self::Fetch),
            _ => Err(()),
        }
    }
}

/// Why a peer cannot go upstream for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mirror) enum Unable {
    /// It does not mirror the registry, or not for us.
    NotMirrored,
    /// The registry refused it: it lacks credentials.
    Refused,
}

impl Unable {
    fn of(status: StatusCode) -> Option<Self> {
        match status {
            StatusCode::MISDIRECTED_REQUEST => Some(Self::NotMirrored),
            StatusCode::FORBIDDEN => Some(Self::Refused),
            _ => None,
        }
    }
}

/// What a peer says when it is asked for a blob.
pub(in crate::mirror) enum Answer {
    Bytes {
        /// Of the whole blob.
        size_bytes: u64,
        at: u64,
        bytes: BoxStream<'static, Result<Bytes, MirrorError>>,
        /// The peers that they come by, the nearest first.
        path: Vec<Peer>,
        /// Up to where it had the blob when it answered, if it says so.
        held_bytes: Option<u64>,
    },
    /// Others have it, to be asked in this order. Nobody: the peer is still looking for it.
    Refer(Vec<Peer>),
    Unable(Unable),
    No,
}

/// A manifest of a peer, which is what it was asked for if that was a digest.
pub(in crate::mirror) struct PeerManifest {
    pub(in crate::mirror) digest: Digest,
    pub(in crate::mirror) bytes: Bytes,
    /// Since upstream confirmed it.
    pub(in crate::mirror) age: Duration,
    pub(in crate::mirror) stale: bool,
}

/// Whether a peer has a manifest.
pub(in crate::mirror) enum ManifestAnswer {
    Found(PeerManifest),
    /// Upstream told it that there is none.
    Absent,
    /// It is still looking for it.
    Awaited,
    Unable(Unable),
    /// It cannot say.
    No,
}

impl Mesh {
    /// Asks a peer for a blob from `from` on, up to `to` if that is given. An error, and a body that stalls, leave it
    /// alone for a while.
    pub(in crate::mirror) async fn blob(
        &self,
        peer: &Peer,
        hop: Hop,
        repo: &RepoName,
        digest: &Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<Answer, MirrorError> {
        if !self.may_be_asked(peer) {
            // A peer may refer to anybody.
            return Ok(Answer::No);
        }
        let mut request = self.request(hop, format!("/v2/{repo}/blobs/{digest}"))?;
        from_byte(&mut request, from, to);
        let waits = match hop {
            Hop::Held => HELD_TIMEOUT,
            Hop::Fetch => FETCH_TIMEOUT,
        };
        let response = self.send(peer, waits, request).await?;
        Ok(self.blob_answer(peer, from, response))
    }

    /// What a peer says that was asked for a blob from `from` on.
    pub(super) fn blob_answer(&self, peer: &Peer, from: u64, response: Response<PeerBody>) -> Answer {
        let headers = response.headers();
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => (),
            StatusCode::SERVICE_UNAVAILABLE => {
                return Answer::Refer(referred(peers(headers, &REFER), self.us()));
            }
            status => return Unable::of(status).map_or(Answer::No, Answer::Unable),
        }
        let Some((at, size_bytes)) = extent(headers).filter(|(at, _)| *at <= from) else {
            self.leave_alone(peer);
            return Answer::No;
        };
        let mut path = vec![peer.clone()];
        path.extend(peers(headers, &PATH));
        let held_bytes = held_bytes(headers);
        let bytes = self.body(peer, response.into_body());
        Answer::Bytes { size_bytes, at, bytes, path, held_bytes }
    }

    /// Asks a peer for a manifest.
    pub(in crate::mirror) async fn manifest(
        &self,
        peer: &Peer,
        hop: Hop,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<ManifestAnswer, MirrorError> {
        let request = self.request(hop, format!("/v2/{repo}/manifests/{reference}"))?;
        let waits = match hop {
            Hop::Held => HELD_TIMEOUT,
            Hop::Fetch => MANIFEST_FETCH_TIMEOUT,
        };
        let response = self.send(peer, waits, request).await?;
        match response.status() {
            StatusCode::OK => (),
            StatusCode::NOT_FOUND => return Ok(ManifestAnswer::Absent),
            StatusCode::SERVICE_UNAVAILABLE => return Ok(ManifestAnswer::Awaited),
            status => return Ok(Unable::of(status).map_or(ManifestAnswer::No, ManifestAnswer::Unable)),
        }
        let age = text(response.headers(), &AGE).and_then(|age| age.parse().ok()).map(Duration::from_secs);
        let stale = response.headers().contains_key(WARNING);
        let mut body = self.body(peer, response.into_body());
        let whole = async {
            let mut bytes = BytesMut::new();
            while let Some(chunk) = body.next().await {
                bytes.extend_from_slice(&chunk?);
                if bytes.len() > MANIFEST_BYTES_MAX {
                    return Err(MirrorError::ManifestTooLarge(MANIFEST_BYTES_MAX));
                }
            }
            Ok(bytes.freeze())
        };
        let late = |_| MirrorError::Peer(IpfsError::Timeout(peer.to_string(), MANIFEST_TIMEOUT.as_secs()));
        let bytes = timeout(MANIFEST_TIMEOUT, whole).await.map_err(late)??;
        let algorithm = match reference {
            Reference::Digest(digest) => digest.algorithm(),
            Reference::Tag(_) => Algorithm::Sha256,
        };
        let digest = Digest::of(algorithm, &bytes);
        if let Reference::Digest(expected) = reference
            && *expected != digest
        {
            self.ban(peer);
            return Err(MirrorError::Forged { expected: *expected, actual: digest });
        }
        Ok(ManifestAnswer::Found(PeerManifest { digest, bytes, age: age.unwrap_or_default(), stale }))
    }

    fn request(&self, hop: Hop, path: String) -> Result<Request<Bytes>, MirrorError> {
        // Repository, tag and digest are made of what a path may have.
        let request = Request::get(path).header(HOP, hop.as_str()).body(Bytes::new());
        request.map_err(|_| MirrorError::Closed)
    }

    async fn send(
        &self,
        peer: &Peer,
        waits: Duration,
        request: Request<Bytes>,
    ) -> Result<Response<PeerBody>, MirrorError> {
        let begun = Instant::now();
        let mut answer = self.0.ipfs.request(peer, request);
        let answer = loop {
            if let Ok(answer) = timeout(waits, answer.as_mut()).await {
                break answer;
            }
            let silent = begun.elapsed();
            if silent >= SILENT_MAX || !self.is_heard(peer) {
                break Err(IpfsError::Timeout(format!("peer {peer}"), silent.as_secs()));
            }
        };
        answer.map_err(|error| {
            self.leave_alone(peer);
            MirrorError::Peer(error)
        })
    }

    /// A body as it comes; counted as under way until it is dropped.
    fn body(&self, peer: &Peer, body: PeerBody) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        let asked = Asked::new(self, peer);
        stream::try_unfold((body, asked), |(mut body, mut asked)| async move {
            match asked.next(&mut body).await {
                Ok(Some(chunk)) => {
                    asked.note();
                    Ok(Some((chunk, (body, asked))))
                }
                Ok(None) => {
                    asked.mesh.delivered(&asked.peer);
                    Ok(None)
                }
                Err(error) => {
                    asked.mesh.leave_alone(&asked.peer);
                    Err(MirrorError::Peer(error))
                }
            }
        })
        .boxed()
    }

    /// Whether a peer sends or answers at all.
    async fn is_alive(&self, peer: &Peer) -> bool {
        if self.is_heard(peer) {
            return true;
        }
        let Ok(request) = Request::get(ALIVE_PATH).body(Bytes::new()) else { return false };
        matches!(timeout(ALIVE_TIMEOUT, self.0.ipfs.request(peer, request)).await, Ok(Ok(_)))
    }
}

/// A request that is under way.
struct Asked {
    mesh: Mesh,
    peer: Peer,
    noted_at: Option<Instant>,
}

impl Asked {
    fn new(mesh: &Mesh, peer: &Peer) -> Self {
        if let Some(known) = mesh.peers().get_mut(peer) {
            known.asked += 1;
        }
        Self { mesh: mesh.clone(), peer: peer.clone(), noted_at: None }
    }

    /// Notes that something came; not each chunk of many.
    fn note(&mut self) {
        if self.noted_at.is_none_or(|at| at.elapsed() > NOTED_EVERY) {
            self.noted_at = Some(Instant::now());
            self.mesh.heard(&self.peer);
        }
    }

    /// What the body brings next. A peer that is there may be waiting for its own source.
    async fn next(&self, body: &mut PeerBody) -> Result<Option<Bytes>, IpfsError> {
        let begun = Instant::now();
        loop {
            if let Ok(next) = timeout(STALL_TIMEOUT, body.next()).await {
                return next.transpose();
            }
            let silent = begun.elapsed();
            if silent >= SILENT_MAX || !self.mesh.is_alive(&self.peer).await {
                return Err(IpfsError::Timeout(format!("peer {}", self.peer), silent.as_secs()));
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(known) = self.mesh.peers().get_mut(&self.peer) {
            known.asked = known.asked.saturating_sub(1);
        }
    }
}

/// Asks for the part from `from` on, up to `to` if that is given.
pub(super) fn from_byte(request: &mut Request<Bytes>, from: u64, to: Option<u64>) {
    let last = to.map(|to| to.saturating_sub(1).to_string()).unwrap_or_default();
    if (from > 0 || to.is_some())
        && let Ok(range) = HeaderValue::try_from(format!("bytes={from}-{last}"))
    {
        request.headers_mut().insert(RANGE, range);
    }
}

/// Where an answer begins, and how large the whole is.
fn extent(headers: &HeaderMap) -> Option<(u64, u64)> {
    let Some(range) = text(headers, &CONTENT_RANGE) else {
        return Some((0, text(headers, &CONTENT_LENGTH)?.parse().ok()?));
    };
    let (range, size_bytes) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, size_bytes.parse().ok()?))
}

/// Up to where a peer says that it had the blob.
fn held_bytes(headers: &HeaderMap) -> Option<u64> {
    text(headers, &HELD)?.parse().ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn peers(headers: &HeaderMap, name: &HeaderName) -> Vec<Peer> {
    let names = text(headers, name).unwrap_or_default().split(',').map(str::trim);
    names.filter(|name| !name.is_empty() && name.len() <= 128).take(PEERS_MAX).map(Peer::new).collect()
}

/// Reads whatever bytes as the headers of an answer: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let names = [CONTENT_LENGTH, CONTENT_RANGE, REFER, PATH, HELD];
    for name in names {
        let headers = HeaderMap::from_iter([(name.clone(), value.clone())]);
        let (_, _, named) = (extent(&headers), held_bytes(&headers), peers(&headers, &name));
        assert!(named.len() <= PEERS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent_of(name: HeaderName, value: &'static str) -> Option<(u64, u64)> {
        extent(&[(name, HeaderValue::from_static(value))].into_iter().collect())
    }

    #[test]
    fn an_answer_says_where_it_begins_and_how_large_the_whole_is() {
        assert_eq!(extent_of(CONTENT_LENGTH, "7"), Some((0, 7)));
        assert_eq!(extent_of(CONTENT_RANGE, "bytes 3-5/7"), Some((3, 7)));
        for malformed in
            ["bytes 3-5/*", "bytes */7", "3-5/7", "bytes -1-5/7", "bytes 3-5/99999999999999999999"]
        {
            assert_eq!(extent_of(CONTENT_RANGE, malformed), None, "{malformed}");
        }
        assert_eq!(extent(&HeaderMap::new()), None);
    }

    #[test]
    fn what_a_peer_held_is_a_number_or_not_known() {
        for (said, expected) in [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("-1", None),
            ("1 MiB", None),
            ("18446744073709551616", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(HELD, HeaderValue::from_static(said))]);
            assert_eq!(held_bytes(&headers), expected, "{said:?}");
        }
        assert_eq!(held_bytes(&HeaderMap::new()), None);
    }
}
