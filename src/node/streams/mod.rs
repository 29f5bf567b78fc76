//! A behaviour that hands every negotiated stream of some protocols to tasks outside the swarm.
//!
//! Protocols can so be plain async code on streams. No stream is lost between negotiation and the task: inbound ones
//! wait in a bounded queue of their connection until the channel of their protocol has room, and an opened one is given
//! to whoever asked. A taker that is slow holds back nobody's streams but its own. What is said on a stream is not known
//! here.

mod handler;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::task::{Context, Poll};
use std::{fmt, io};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, Stream, StreamProtocol,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub use super::connections::Reason;
use super::connections::{Connection, Peers, Usage};
use handler::{Handler, NEGOTIATION_TIMEOUT, Offer};

/// Outbound streams of one connection that may be in negotiation, and as many more that may wait for it.
const OPENING_MAX: usize = 32;

/// An inbound stream.
#[derive(Debug)]
pub struct Incoming {
    pub peer: PeerId,
    pub protocol: StreamProtocol,
    pub stream: Stream,
    /// Of the connection that it came over: what it is for, and who we are on it.
    pub(in crate::node) usage: Usage,
    pub(in crate::node) role: Endpoint,
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
        Handler::new(peer, role, &self.takers)
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
    pub(in crate::node) async fn open_noted(
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

    pub(in crate::node) fn peers(&self) -> Peers {
        self.peers.clone()
    }
}

pub(in crate::node) struct OpenRequest {
    protocols: Offer,
    reply: oneshot::Sender<Result<Opened, OpenError>>,
}

/// A stream that was opened.
#[derive(Debug)]
pub struct Opened {
    protocol: StreamProtocol,
    pub(in crate::node) stream: Stream,
    /// Of the connection that it goes over: one of several, perhaps not the first.
    pub(in crate::node) usage: Usage,
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
