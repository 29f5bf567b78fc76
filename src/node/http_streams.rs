//! HTTP/1.1 on libp2p streams, as the libp2p HTTP specification and Kubo's gateway over libp2p have it.
//!
//! Each request has a stream of its own: to open one costs a round trip on a connection that stands, a stream kept open
//! for the next would cost its window on both sides. What peers ask is not known here; their streams are handed out.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming as Body};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use libp2p::PeerId;
use libp2p::swarm::{Stream, StreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, timeout, timeout_at};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

use super::metered::Metered;
use super::streams::{Control, Incoming, OpenError, Opened};
use crate::ipfs::{IpfsError, Peer, PeerBody, PeerStream, PeerStreams, Trust};

/// Of the libp2p HTTP specification.
pub(super) const HTTP: StreamProtocol = StreamProtocol::new("/http/1.1");
/// The same for a daemon like this one: identify tells by it who shares pulled-through images with its mesh.
pub(super) const MESH: StreamProtocol = StreamProtocol::new("/shoal/mesh/1");

/// Requests to one peer that are under way; more wait.
const REQUESTS_PER_PEER_MAX: usize = 64;
/// How long a request may wait for its turn and its stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may then wait for the head of the answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(25);
/// How long a body may bring nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// What is read at a time, and the most that the head of an answer may have. All of it is zeroed for each read, so that
/// more costs more than it saves: a frame of yamux has 16 KiB.
const READ_BYTES: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;

/// Sends requests. Cheap to clone.
#[derive(Clone)]
pub(super) struct HttpStreams {
    control: Control,
    turns: Arc<Mutex<HashMap<PeerId, Arc<Semaphore>>>>,
}

impl HttpStreams {
    pub(super) fn new(control: Control) -> Self {
        Self { control, turns: Arc::default() }
    }

    /// Returns with the head of the answer; the body goes on for as long as it is read.
    pub(super) async fn request(
        &self,
        peer: &Peer,
        request: Request<Bytes>,
    ) -> Result<Response<PeerBody>, IpfsError> {
        let Ok(id) = peer.as_str().parse::<PeerId>() else {
            return Err(IpfsError::NotConnected(peer.clone()));
        };
        let deadline = Instant::now() + OPEN_TIMEOUT;
        let turn = timeout_at(deadline, self.turns(id).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(IpfsError::Busy(peer.clone())) };
        let opened = timeout_at(deadline, self.control.open_noted(id, vec![HTTP])).await;
        let opened = opened.map_err(|_| timed_out(peer, OPEN_TIMEOUT))?;
        let Opened { stream, usage, .. } = opened.map_err(|error| not_opened(peer, error))?;
        let stream = Metered::new(stream, usage);
        let asked = timeout(HEAD_TIMEOUT, ask(peer, stream, request, turn)).await;
        asked.map_err(|_| timed_out(peer, HEAD_TIMEOUT))?
    }

    /// Returns when there is a connection to the peer.
    pub(super) async fn connected(&self, peer: &PeerId) {
        self.control.connected(peer).await;
    }

    /// The turns of a peer. Those of peers that nothing is asked of any more go when a new peer comes.
    fn turns(&self, peer: PeerId) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if !turns.contains_key(&peer) {
            turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        turns.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_PER_PEER_MAX))).clone()
    }
}

/// The streams of peers as the rest sees them.
pub(super) fn incoming(
    streams: mpsc::Receiver<Incoming>,
    trusted: watch::Receiver<Arc<HashSet<Peer>>>,
) -> PeerStreams {
    let next = |(mut streams, trusted): (mpsc::Receiver<Incoming>, watch::Receiver<_>)| async move {
        let Incoming { peer, stream, usage, .. } = streams.recv().await?;
        let stream = Metered::new(stream, usage);
        let peer = Peer::new(&peer.to_base58());
        let trust = Trust::new(peer.clone(), trusted.clone());
        Some((PeerStream { peer, trust, io: Box::new(stream.compat()) }, (streams, trusted)))
    };
    futures::stream::unfold((streams, trusted), next).boxed()
}

fn timed_out(peer: &Peer, after: Duration) -> IpfsError {
    IpfsError::Timeout(format!("the request to peer {peer}"), after.as_secs())
}

fn not_opened(peer: &Peer, error: OpenError) -> IpfsError {
    let peer = peer.clone();
    match error {
        OpenError::NotConnected(_) => IpfsError::NotConnected(peer),
        OpenError::Unsupported(_) => IpfsError::NoHttp(peer),
        OpenError::TooMany(_) => IpfsError::Busy(peer),
        OpenError::Timeout(_) | OpenError::Io(..) => IpfsError::Request { peer, source: Box::new(error) },
    }
}

type Connection = http1::Connection<TokioIo<Compat<Metered<Stream>>>, Full<Bytes>>;

async fn ask(
    peer: &Peer,
    stream: Metered<Stream>,
    mut request: Request<Bytes>,
    turn: OwnedSemaphorePermit,
) -> Result<Response<PeerBody>, IpfsError> {
    let failed = |source: hyper::Error| IpfsError::Request { peer: peer.clone(), source: Box::new(source) };
    *request.version_mut() = Version::HTTP_11;
    if let (false, Ok(host)) = (request.headers().contains_key(HOST), HeaderValue::from_str(peer.as_str())) {
        request.headers_mut().insert(HOST, host);
    }
    let mut builder = http1::Builder::new();
    // A stream takes one slice at a time; without this hyper copies slices together to have one.
    builder.read_buf_exact_size(Some(READ_BYTES)).max_headers(HEADERS_MAX).writev(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream.compat())).await.map_err(failed)?;
    let mut connection = Some(Box::pin(connection));
    let response = {
        let mut sending = std::pin::pin!(sender.send_request(request.map(Full::new)));
        // What the connection ends with is told to the request too.
        poll_fn(|cx| {
            drive(&mut connection, cx);
            sending.poll_unpin(cx)
        })
        .await
        .map_err(failed)?
    };
    let peer = peer.clone();
    Ok(response.map(|body| Answer { peer, connection, body, stalled: None, _turn: turn }.boxed()))
}

fn drive(connection: &mut Option<Pin<Box<Connection>>>, cx: &mut Context<'_>) {
    if connection.as_mut().is_some_and(|connection| connection.poll_unpin(cx).is_ready()) {
        *connection = None;
    }
}

/// The body of an answer, with the connection that brings it.
struct Answer {
    peer: Peer,
    connection: Option<Pin<Box<Connection>>>,
    body: Body,
    /// Set while a byte is waited for.
    stalled: Option<Pin<Box<Sleep>>>,
    _turn: OwnedSemaphorePermit,
}

impl futures::Stream for Answer {
    type Item = Result<Bytes, IpfsError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = &mut *self;
        loop {
            drive(&mut answer.connection, cx);
            match Pin::new(&mut answer.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    answer.stalled = None;
                    // Trailers say nothing that is asked for.
                    if let Ok(bytes) = frame.into_data() {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Poll::Ready(Some(Err(source))) => {
                    let (peer, source) = (answer.peer.clone(), Box::new(source));
                    return Poll::Ready(Some(Err(IpfsError::Request { peer, source })));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let stalled =
                        answer.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL_TIMEOUT)));
                    return stalled
                        .poll_unpin(cx)
                        .map(|()| Some(Err(timed_out(&answer.peer, STALL_TIMEOUT))));
                }
            }
        }
    }
}
