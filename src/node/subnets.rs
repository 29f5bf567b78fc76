//! How many connections may come from one neighbourhood: a /24 of IPv4, a /56 of IPv6, or through one relay. Whoever has
//! many peer ids seldom has many networks, so that it cannot take all places of strangers. Private networks, where a whole
//! cluster may be, have a larger share.

use std::collections::HashMap;
use std::convert::Infallible;
use std::task::{Context, Poll};

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::ConnectionEstablished;
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::behaviour::PENDING_MAX;
use super::routing::is_public;

/// The shares of one subnet, in percent of what all may have.
const PUBLIC_SHARE_PERCENT: u32 = 25;
const PRIVATE_SHARE_PERCENT: u32 = 75;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subnet {
    V4([u8; 3]),
    V6([u8; 7]),
    Relay(PeerId),
    Unknown,
}

/// Refuses inbound connections from a subnet that has its share.
pub(super) struct Subnets {
    established_max: u32,
    pending: Counted,
    established: Counted,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} has its share of connections")]
struct Full(Subnet);

impl Subnets {
    /// `established_max`: the connections that all may open together.
    pub(super) fn new(established_max: u32) -> Self {
        Self { established_max, pending: Counted::default(), established: Counted::default() }
    }
}

/// Connections by the subnet that they come from.
#[derive(Default)]
struct Counted {
    subnets: HashMap<ConnectionId, Subnet>,
    counts: HashMap<Subnet, u32>,
}

impl Counted {
    fn check(&self, subnet: Subnet, max: u32) -> Result<(), ConnectionDenied> {
        let count = self.counts.get(&subnet).copied().unwrap_or_default();
        if count < max { Ok(()) } else { Err(ConnectionDenied::new(Full(subnet))) }
    }

    fn add(&mut self, id: ConnectionId, subnet: Subnet) {
        if self.subnets.insert(id, subnet).is_none() {
            *self.counts.entry(subnet).or_default() += 1;
        }
    }

    fn remove(&mut self, id: ConnectionId) {
        let Some(subnet) = self.subnets.remove(&id) else { return };
        if let Some(count) = self.counts.get_mut(&subnet) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&subnet);
            }
        }
    }
}

/// `local`: our end, which names the relay if there is one.
fn subnet_of(local: &Multiaddr, remote: &Multiaddr) -> Subnet {
    if local.iter().any(|part| part == Protocol::P2pCircuit) {
        let relay = local.iter().find_map(|part| match part {
            Protocol::P2p(peer) => Some(peer),
            _ => None,
        });
        return relay.map_or(Subnet::Unknown, Subnet::Relay);
    }
    match remote.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            let [a, b, c, _] = ip.octets();
            Subnet::V4([a, b, c])
        }
        Some(Protocol::Ip6(ip)) => match ip.to_ipv4_mapped().map(|ip| ip.octets()) {
            Some([a, b, c, _]) => Subnet::V4([a, b, c]),
            None => {
                let [a, b, c, d, e, f, g, ..] = ip.octets();
                Subnet::V6([a, b, c, d, e, f, g])
            }
        },
        _ => Subnet::Unknown,
    }
}

fn share(of: u32, remote: &Multiaddr) -> u32 {
    let is_private =
        remote.iter().any(|part| matches!(part, Protocol::Ip4(_) | Protocol::Ip6(_))) && !is_public(remote);
    let percent = if is_private { PRIVATE_SHARE_PERCENT } else { PUBLIC_SHARE_PERCENT };
    (of * percent / 100).max(1)
}

impl NetworkBehaviour for Subnets {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let subnet = subnet_of(local, remote);
        self.pending.check(subnet, share(PENDING_MAX, remote))?;
        self.established.check(subnet, share(self.established_max, remote))?;
        self.pending.add(id, subnet);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(id);
        self.established.check(subnet_of(local, remote), share(self.established_max, remote))?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                connection_id,
                endpoint: ConnectedPoint::Listener { local_addr, send_back_addr },
                ..
            }) => self.established.add(connection_id, subnet_of(local_addr, send_back_addr)),
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.established.remove(connection_id);
            }
            FromSwarm::ListenFailure(failure) => self.pending.remove(failure.connection_id),
            _ => (),
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = 100;

    fn ours() -> Multiaddr {
        "/ip4/0.0.0.0/tcp/4001".parse().unwrap()
    }

    /// Connections that may be in their handshake at once, of `remotes` in turn.
    fn admitted(subnets: &mut Subnets, first: usize, remotes: impl Iterator<Item = String>) -> usize {
        let tried = remotes.enumerate().filter(|(n, remote)| {
            let id = ConnectionId::new_unchecked(first + n);
            subnets.handle_pending_inbound_connection(id, &ours(), &remote.parse().unwrap()).is_ok()
        });
        tried.count()
    }

    fn establish(subnets: &mut Subnets, n: usize, remote: &str) -> bool {
        let (id, remote) = (ConnectionId::new_unchecked(n), remote.parse().unwrap());
        let established =
            subnets.handle_established_inbound_connection(id, PeerId::random(), &ours(), &remote).is_ok();
        if established {
            subnets.established.add(id, subnet_of(&ours(), &remote));
        }
        established
    }

    #[test]
    fn a_subnet_has_a_share_and_others_have_theirs() {
        let mut subnets = Subnets::new(ALL);
        let from = |net: &str| {
            let net = net.to_owned();
            (0..).map(move |n: u32| format!("/ip4/{net}.{}/tcp/{}", n % 250, 1000 + n % 9000))
        };
        let count = |subnets: &mut Subnets, net: &str| {
            from(net).take(300).filter(|a| establish(subnets, a.len() * 1000 + rand(a), a)).count()
        };
        assert_eq!(count(&mut subnets, "8.8.8"), 25);
        assert_eq!(count(&mut subnets, "8.8.9"), 25);
        assert_eq!(count(&mut subnets, "10.0.0"), 75);
        assert_eq!(admitted(&mut subnets, 1_000_000, from("8.8.8").take(10)), 0, "it is full already");
        assert_eq!(admitted(&mut subnets, 2_000_000, from("8.8.10").take(300)), 64);
        let v6 = |n: u32| format!("/ip6/2001:db8:0:{:x}::1/tcp/1", n % 256);
        assert_eq!(admitted(&mut subnets, 3_000_000, (0..300).map(v6)), 64, "a /56 is one");
        assert_eq!(
            admitted(&mut subnets, 4_000_000, ["/ip6/2001:db8:0:100::1/tcp/1".to_owned()].into_iter()),
            1
        );
    }

    /// A number that an address stands for.
    fn rand(address: &str) -> usize {
        address
            .bytes()
            .fold(7, |hash: usize, byte| hash.wrapping_mul(31).wrapping_add(byte.into()) % 1_000_003)
    }

    #[test]
    fn what_ends_makes_room() {
        let mut subnets = Subnets::new(4);
        assert!(establish(&mut subnets, 1, "/ip4/8.8.8.8/tcp/1"));
        assert!(!establish(&mut subnets, 2, "/ip4/8.8.8.9/tcp/1"));
        subnets.established.remove(ConnectionId::new_unchecked(1));
        assert!(subnets.established.counts.is_empty());
        assert!(establish(&mut subnets, 3, "/ip4/8.8.8.9/tcp/1"));
    }

    #[test]
    fn connections_through_a_relay_count_for_the_relay() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let local = format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap();
        let remote = format!("/p2p/{peer}").parse().unwrap();
        assert_eq!(subnet_of(&local, &remote), Subnet::Relay(relay));
    }
}
