//! A behaviour that hands every negotiated stream of some protocols to tasks outside the swarm.
//!
//! Protocols can so be plain async code on streams. No stream is lost between negotiation and the task: inbound ones
//! wait in a bounded queue of their connection until the channel of their protocol has room, and an opened one is given
//! to whoever asked. A taker that is slow holds back nobody's streams but its own. What is said on a stream is not known
//! here.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::PollSender;

pub use super::connections::Reason;
use super::connections::{Connection, Peers, Usage};

/// Inbound streams of one connection that may wait for one channel; those above it are reset.
const INBOUND_WAITING_MAX: usize = 256;
/// Outbound streams of one connection that may be in negotiation, and as many more that may wait for it.
const OPENING_MAX: usize = 32;
/// How long a negotiation may take.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// An inbound stream.
#[derive(Debug)]
pub struct Incoming {
    pub peer: PeerId,
    pub protocol: StreamProtocol,
    pub stream: Stream,
    /// Of the connection that it came over: what it is for, and who we are on it.
    pub(super) usage: Usage,
    pub(super) role: Endpoint,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no connection to {0}")]
    NotConnected(PeerId),
    #[error("{0} speaks none of the protocols offered")]
    Unsupported(PeerId),
    #[error("too many streams to {0} are being opened")]
    TooMany(PeerId),
    #[error("{0} did not answer the offer of a stream in time")]
    Timeout(PeerId),
    #[error("cannot open a stream to {0}")]
    Io(PeerId, #[source] io::Error),
}

/// The part of it that lives in the swarm.
pub struct Behaviour {
    peers: Peers,
    takers: Vec<Taker>,
    to_handlers: VecDeque<(PeerId, ConnectionId, Requests)>,
}

/// Who takes the inbound streams of some protocols.
#[derive(Clone)]
struct Taker {
    protocols: Vec<StreamProtocol>,
    incoming: mpsc::Sender<Incoming>,
}

/// Opens streams from anywhere. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    peers: Peers,
}

impl Behaviour {
    /// Accepts streams of the protocols `inbound` and sends them to `incoming`. When that is full, each connection
    /// holds back up to 256 streams and resets what comes above it.
    pub fn new(inbound: Vec<StreamProtocol>, incoming: mpsc::Sender<Incoming>) -> (Self, Control) {
        let peers = Peers::default();
        let control = Control { peers: peers.clone() };
        let takers = vec![Taker { protocols: inbound, incoming }];
        (Self { peers, takers, to_handlers: VecDeque::new() }, control)
    }

    /// Accepts streams of further protocols too, which come out of a channel of their own.
    pub fn accepting(mut self, inbound: Vec<StreamProtocol>, incoming: mpsc::Sender<Incoming>) -> Self {
        self.takers.push(Taker { protocols: inbound, incoming });
        self
    }

    fn handler(&self, peer: PeerId, role: Endpoint) -> Handler {
        Handler {
            peer,
            role,
            queues: self.takers.iter().map(Queue::new).collect(),
            requests: None,
            opening: 0,
            usage: Usage::new(Instant::now()),
        }
    }
}

impl Control {
    /// Opens a stream with the first of `protocols` that the peer speaks, over the oldest direct connection to it. Where
    /// there is none but one through a relay, a direct one is awaited for the first 3 s of that.
    ///
    /// Never dials, and ends within some 10 s. When dropped midway, a stream that still comes is reset.
    pub async fn open(
        &self,
        peer: PeerId,
        protocols: Vec<StreamProtocol>,
    ) -> Result<(StreamProtocol, Stream), OpenError> {
        let Opened { protocol, stream, .. } = self.open_noted(peer, protocols).await?;
        Ok((protocol, stream))
    }

    /// The same, with what its connection is for.
    pub(super) async fn open_noted(
        &self,
        peer: PeerId,
        protocols: Vec<StreamProtocol>,
    ) -> Result<Opened, OpenError> {
        let protocols = Offer(protocols);
        self.peers.await_direct(&peer).await;
        for connection in self.peers.connections(&peer) {
            let (reply, opened) = oneshot::channel();
            match connection.try_send(OpenRequest { protocols: protocols.clone(), reply }) {
                Ok(()) => (),
                Err(mpsc::error::TrySendError::Full(_)) => return Err(OpenError::TooMany(peer)),
                Err(mpsc::error::TrySendError::Closed(_)) => continue,
            }
            // A request may wait for those before it, so the limit here is wider than that of one negotiation.
            match tokio::time::timeout(2 * NEGOTIATION_TIMEOUT, opened).await {
                Ok(Ok(result)) => return result,
                Ok(Err(_closed)) => (), // The connection ended; another may be left.
                Err(_elapsed) => return Err(OpenError::Timeout(peer)),
            }
        }
        Err(OpenError::NotConnected(peer))
    }

    /// Returns when there is a connection to the peer.
    pub async fn connected(&self, peer: &PeerId) {
        self.peers.await_any(peer).await;
    }

    /// Whether the present connections to the peer are of use for this reason.
    pub fn keep(&self, peer: &PeerId, reason: Reason, holds: bool) {
        self.peers.keep(peer, reason, holds);
    }

    pub(super) fn peers(&self) -> Peers {
        self.peers.clone()
    }
}

pub(super) struct OpenRequest {
    protocols: Offer,
    reply: oneshot::Sender<Result<Opened, OpenError>>,
}

/// A stream that was opened.
#[derive(Debug)]
pub struct Opened {
    protocol: StreamProtocol,
    pub(super) stream: Stream,
    /// Of the connection that it goes over: one of several, perhaps not the first.
    pub(super) usage: Usage,
}

/// What a handler gets once its connection counts as established.
pub struct Requests {
    requests: mpsc::Receiver<OpenRequest>,
    usage: Usage,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").finish_non_exhaustive()
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, Endpoint::Listener))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer, Endpoint::Dialer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            // Not earlier: a connection that another behaviour denies is never reported as closed.
            FromSwarm::ConnectionEstablished(established) => {
                let (peer, id) = (established.peer_id, established.connection_id);
                let (sender, requests) = mpsc::channel(OPENING_MAX);
                let now = Instant::now();
                let usage = Usage::new(now);
                let relayed_since = established.endpoint.is_relayed().then_some(now);
                let connection = Connection { id, relayed_since, requests: sender, usage: usage.clone() };
                self.peers.insert(peer, connection);
                self.to_handlers.push_back((peer, id, Requests { requests, usage }));
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.peers.remove(&closed.peer_id, closed.connection_id);
                self.to_handlers.retain(|(_, id, _)| *id != closed.connection_id);
            }
            _ => (),
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Filled by swarm events only, and the swarm polls after each.
        match self.to_handlers.pop_front() {
            Some((peer_id, id, event)) => {
                Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(id), event })
            }
            None => Poll::Pending,
        }
    }
}

/// The part of it that lives with one connection.
pub struct Handler {
    peer: PeerId,
    role: Endpoint,
    queues: Vec<Queue>,
    requests: Option<mpsc::Receiver<OpenRequest>>,
    /// Streams in negotiation.
    opening: usize,
    usage: Usage,
}

/// The inbound streams of a connection that one taker has not taken yet.
struct Queue {
    protocols: Vec<StreamProtocol>,
    incoming: PollSender<Incoming>,
    waiting: VecDeque<Incoming>,
}

impl Queue {
    fn new(taker: &Taker) -> Self {
        Self {
            protocols: taker.protocols.clone(),
            incoming: PollSender::new(taker.incoming.clone()),
            waiting: VecDeque::new(),
        }
    }

    fn push(&mut self, incoming: Incoming) {
        if self.waiting.len() < INBOUND_WAITING_MAX {
            self.waiting.push_back(incoming);
        } else {
            let Incoming { peer, protocol, .. } = incoming;
            tracing::debug!(peer.id = %peer, %protocol, "reset a stream: too many wait");
        }
    }

    fn hand_over(&mut self, cx: &mut Context<'_>) {
        while !self.waiting.is_empty() {
            match self.incoming.poll_reserve(cx) {
                Poll::Ready(Ok(())) => {
                    if let Some(incoming) = self.waiting.pop_front() {
                        let _closed = self.incoming.send_item(incoming);
                    }
                }
                Poll::Ready(Err(_closed)) => self.waiting.clear(),
                Poll::Pending => return,
            }
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Requests;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Result<Opened, OpenError>>;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        let protocols = self.queues.iter().flat_map(|queue| queue.protocols.iter().cloned());
        SubstreamProtocol::new(Offer(protocols.collect()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.usage.is_kept()
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.requests = Some(event.requests);
        self.usage = event.usage;
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        self.queues.iter_mut().for_each(|queue| queue.hand_over(cx));
        while self.opening < OPENING_MAX
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_recv(cx) {
                Poll::Ready(Some(request)) if request.reply.is_closed() => (),
                Poll::Ready(Some(OpenRequest { protocols, reply })) => {
                    self.opening += 1;
                    let protocol = SubstreamProtocol::new(protocols, reply).with_timeout(NEGOTIATION_TIMEOUT);
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                }
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream),
                ..
            }) => {
                if let Some(queue) = self.queues.iter_mut().find(|queue| queue.protocols.contains(&protocol))
                {
                    self.usage.used(Instant::now());
                    let (peer, role, usage) = (self.peer, self.role, self.usage.clone());
                    queue.push(Incoming { peer, protocol, stream, usage, role });
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (protocol, stream),
                info,
            }) => {
                self.opening -= 1;
                self.usage.used(Instant::now());
                let _dropped = info.send(Ok(Opened { protocol, stream, usage: self.usage.clone() }));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                self.opening -= 1;
                let _dropped = info.send(Err(match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported(self.peer),
                    StreamUpgradeError::Timeout => OpenError::Timeout(self.peer),
                    StreamUpgradeError::Io(error) => OpenError::Io(self.peer, error),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => (),
        }
    }
}

/// Protocols in order of preference; negotiated, it is a plain stream.
#[derive(Clone)]
pub struct Offer(Vec<StreamProtocol>);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = (StreamProtocol, Stream);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((protocol, stream)))
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::node::bitswap::testing::{Bare, open};

    const ONE: StreamProtocol = StreamProtocol::new("/test/1");
    const TWO: StreamProtocol = StreamProtocol::new("/test/2");

    /// Two connected nodes; the second takes `incoming_max` streams at a time, of protocol one.
    async fn pair(incoming_max: usize) -> (Bare, Bare) {
        let (opener, taker) =
            (Bare::speaking(vec![], 1).await, Bare::speaking(vec![ONE], incoming_max).await);
        opener.dial(&taker.address).await;
        (opener, taker)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_stream_is_lost_while_the_taker_is_slow() {
        const STREAMS: usize = 200;
        let (opener, mut taker) = pair(1).await;
        let mut kept = Vec::new();
        for number in 0..STREAMS {
            let (protocol, mut stream) = opener.control.open(taker.peer, vec![TWO, ONE]).await.unwrap();
            assert_eq!(protocol, ONE);
            stream.write_all(&[number as u8]).await.unwrap();
            stream.flush().await.unwrap();
            kept.push(stream);
        }
        let mut seen = Vec::new();
        for _ in 0..STREAMS {
            let Incoming { peer, mut stream, .. } = taker.incoming.recv().await.unwrap();
            assert_eq!(peer, opener.peer);
            let mut number = [0];
            stream.read_exact(&mut number).await.unwrap();
            seen.extend(number);
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..STREAMS as u8));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_counts_for_the_connection_that_it_goes_over() {
        let (opener, taker) = (Bare::speaking(vec![], 1).await, Bare::speaking(vec![ONE], 1).await);
        // One that is about to end: it takes no streams any more.
        let (usage, (requests, _)) = (Usage::new(Instant::now()), mpsc::channel(1));
        let id = ConnectionId::new_unchecked(usize::MAX);
        let ending = Connection { id, relayed_since: None, requests, usage: usage.clone() };
        opener.control.peers().insert(taker.peer, ending);
        opener.dial(&taker.address).await;
        let opened = opener.control.open_noted(taker.peer, vec![ONE]).await.unwrap();
        opened.usage.moved(1 << 20, Instant::now());
        assert!(!usage.is_of_use(Instant::now()));
        let in_use = opener.control.peers().usages().into_values();
        assert_eq!(in_use.filter(|usage| usage.is_of_use(Instant::now())).count(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_speaks_another_protocol_or_is_not_there_is_told_at_once() {
        let (opener, taker) = pair(1).await;
        let unsupported = opener.control.open(taker.peer, vec![TWO]).await;
        assert!(matches!(unsupported, Err(OpenError::Unsupported(_))));
        let stranger = opener.control.open(PeerId::random(), vec![ONE]).await;
        assert!(matches!(stranger, Err(OpenError::NotConnected(_))));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn opening_never_hangs_while_connections_come_and_go() {
        let (opener, mut taker) = pair(1).await;
        let (peer, address) = (taker.peer, taker.address.clone());
        taker
            .tasks
            .clone()
            .spawn_short("take", |_| async move { while taker.incoming.recv().await.is_some() {} });
        for _ in 0..30 {
            let opening = (0..40).map(|_| opener.control.open(peer, vec![ONE]));
            let (opened, ()) = futures::join!(futures::future::join_all(opening), opener.hang_up(peer));
            let expected = |error: &OpenError| {
                matches!(error, OpenError::NotConnected(_) | OpenError::TooMany(_) | OpenError::Io(..))
            };
            assert!(opened.iter().all(|opened| opened.as_ref().err().is_none_or(expected)), "{opened:?}");
            opener.dial(&address).await;
            open(&opener.control, peer, &[ONE]).await;
        }
    }
}
