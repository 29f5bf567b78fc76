//! The server of AutoNAT version 2 (libp2p specification `autonat-v2`), held to bounds that libp2p leaves open: where a
//! stranger may have us dial, and how often at once.

use std::collections::HashSet;
use std::task::{Context, Poll};

use libp2p::autonat::v2::server;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use super::is_relayed;
use crate::node::routing::is_public;

/// Dials that run at once for peers that want an address tested.
const DIAL_BACKS_MAX: usize = 16;

/// Tests addresses for others. Only public ones: else a stranger could learn by us what answers in our network.
#[derive(Default)]
pub(in crate::node) struct Server {
    inner: server::Behaviour,
    dialling: HashSet<ConnectionId>,
}

#[derive(Debug, thiserror::Error)]
#[error("an address is not tested that is private, or while {DIAL_BACKS_MAX} others are")]
struct NotTested;

impl NetworkBehaviour for Server {
    type ConnectionHandler = <server::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = server::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        _: Option<PeerId>,
        addresses: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let is_test = self.dialling.contains(&id);
        let allowed = addresses.iter().all(|address| is_public(address) && !is_relayed(address));
        if is_test && (!allowed || self.dialling.len() > DIAL_BACKS_MAX) {
            return Err(ConnectionDenied::new(NotTested));
        }
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.dialling.remove(&id);
        self.inner.handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::DialFailure(failure) = &event {
            self.dialling.remove(&failure.connection_id);
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        let event = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &event {
            self.dialling.insert(opts.connection_id());
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: &str, port: usize) -> Multiaddr {
        format!("/ip4/{ip}/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn nobody_has_us_dial_in_our_own_network() {
        let mut server = Server::default();
        let (id, other) = (ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        server.dialling.insert(id);
        let mut dial = |id, address: &str| {
            let addresses = [address.parse().unwrap()];
            server.handle_pending_outbound_connection(id, None, &addresses, Endpoint::Dialer).is_ok()
        };
        assert!(!dial(id, "/ip4/192.168.1.1/tcp/22"));
        assert!(!dial(id, "/ip4/127.0.0.1/tcp/5001"));
        assert!(dial(id, "/ip4/8.8.8.8/tcp/4001"));
        assert!(dial(other, "/ip4/192.168.1.1/tcp/4001"), "our own dials go where they want");
    }

    #[test]
    fn few_tests_run_at_once() {
        let mut server = Server::default();
        server.dialling.extend((0..=DIAL_BACKS_MAX).map(ConnectionId::new_unchecked));
        let addresses = [at("8.8.8.8", 1)];
        let dialled = server.handle_pending_outbound_connection(
            ConnectionId::new_unchecked(0),
            None,
            &addresses,
            Endpoint::Dialer,
        );
        assert!(dialled.is_err());
    }
}
