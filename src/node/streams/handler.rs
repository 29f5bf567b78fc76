//! What negotiates the streams of one connection, holds back those that nobody has taken yet, and opens others.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::core::Endpoint;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::PollSender;

use super::{Incoming, OPENING_MAX, OpenError, OpenRequest, Opened, Requests, Taker};
use crate::node::connections::Usage;

/// Inbound streams of one connection that may wait for one channel; those above it are reset.
const INBOUND_WAITING_MAX: usize = 256;
/// How long a negotiation may take.
pub(super) const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of the behaviour that lives with one connection.
pub struct Handler {
    peer: PeerId,
    role: Endpoint,
    queues: Vec<Queue>,
    requests: Option<mpsc::Receiver<OpenRequest>>,
    /// Streams in negotiation.
    opening: usize,
    usage: Usage,
}

impl Handler {
    pub(super) fn new(peer: PeerId, role: Endpoint, takers: &[Taker]) -> Self {
        Self {
            peer,
            role,
            queues: takers.iter().map(Queue::new).collect(),
            requests: None,
            opening: 0,
            usage: Usage::new(Instant::now()),
        }
    }
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
pub struct Offer(pub(super) Vec<StreamProtocol>);

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
