use std::time::Duration;

use libp2p::swarm::{ConnectionError, DialError, DialFailure};
use tokio::sync::mpsc;

use super::*;
use crate::node::connections::{Connection, Reason, Usage};
use crate::node::room::GRACE;

const ALL: u32 = 100;

/// A node, of which only its connections are there.
struct Node {
    admission: Admission,
    peers: Peers,
    connections: usize,
}

impl Node {
    fn new(named: Named) -> Self {
        let (peers, places) = (Peers::default(), Places { incoming_max: ALL, outgoing_max: ALL });
        Self { admission: Admission::new(places, peers.clone(), named), peers, connections: 0 }
    }

    fn next(&mut self) -> ConnectionId {
        self.connections += 1;
        ConnectionId::new_unchecked(self.connections)
    }

    /// Somebody dials us. `false`: he has no place.
    fn is_dialled(&mut self, peer: PeerId, from: &str) -> bool {
        let (id, local) = (self.next(), "/ip4/0.0.0.0/tcp/4001".parse::<Multiaddr>().unwrap());
        let from: Multiaddr = from.parse().unwrap();
        let admission = &mut self.admission;
        if admission.handle_pending_inbound_connection(id, &local, &from).is_err()
            || admission.handle_established_inbound_connection(id, peer, &local, &from).is_err()
        {
            return false;
        }
        self.stands(id, peer, ConnectedPoint::Listener { local_addr: local, send_back_addr: from });
        true
    }

    fn dials(&mut self, peer: PeerId, is_needed: bool) -> bool {
        let (id, address) = (self.next(), "/ip4/8.8.8.8/tcp/1".parse::<Multiaddr>().unwrap());
        if is_needed {
            self.admission.needs(id);
        }
        let (role, port_use) = (Endpoint::Dialer, PortUse::New);
        let admission = &mut self.admission;
        if admission.handle_pending_outbound_connection(id, None, &[], role).is_err()
            || admission.handle_established_outbound_connection(id, peer, &address, role, port_use).is_err()
        {
            return false;
        }
        self.stands(id, peer, ConnectedPoint::Dialer { address, role_override: role, port_use });
        true
    }

    fn stands(&mut self, id: ConnectionId, peer: PeerId, endpoint: ConnectedPoint) {
        self.admission.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: id,
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
        let (requests, _) = mpsc::channel(1);
        let usage = Usage::new(Instant::now());
        self.peers.insert(peer, Connection { id, relayed_since: None, requests, usage });
    }

    /// Closes what has given up its place; returns whose it was.
    fn closed(&mut self) -> Vec<PeerId> {
        let closed: Vec<_> = std::mem::take(&mut self.admission.to_close).into();
        let endpoint = ConnectedPoint::Dialer {
            address: Multiaddr::empty(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        for (peer_id, connection_id) in &closed {
            self.peers.remove(peer_id, *connection_id);
            self.admission.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id: *peer_id,
                connection_id: *connection_id,
                endpoint: &endpoint,
                cause: None::<&ConnectionError>,
                remaining_established: 0,
            }));
        }
        closed.into_iter().map(|(peer, _)| peer).collect()
    }

    /// As many strangers as come in, of `tried` from one subnet.
    fn flooded(&mut self, net: &str, tried: usize) -> usize {
        let come = (0..tried).filter(|n| {
            self.is_dialled(PeerId::random(), &format!("/ip4/{net}.{}/tcp/{}", n % 250, 1000 + n))
        });
        come.count()
    }
}

#[tokio::test(start_paused = true)]
async fn a_subnet_has_a_share_and_others_have_theirs() {
    let mut node = Node::new(Named::default());
    assert_eq!(node.flooded("10.0.0", 300), 75);
    assert_eq!(node.flooded("8.8.8", 300), 25);
    assert!(node.closed().is_empty(), "all have come just now, and none gives way to its own kind");
}

#[tokio::test(start_paused = true)]
async fn handshakes_have_a_share_too() {
    let mut node = Node::new(Named::default());
    let local: Multiaddr = "/ip4/0.0.0.0/tcp/4001".parse().unwrap();
    let mut begun = |net: &str| {
        let begin = |n: &usize| {
            let (id, from) = (node.next(), format!("/ip4/{net}.{}/tcp/1", n % 250).parse().unwrap());
            node.admission.handle_pending_inbound_connection(id, &local, &from).is_ok()
        };
        (0..300).filter(begin).count()
    };
    assert_eq!((begun("8.8.8"), begun("8.8.9"), begun("10.0.0")), (64, 64, 128));
}

#[tokio::test(start_paused = true)]
async fn for_a_newcomer_an_idle_one_makes_room_and_nobody_of_use() {
    let mut node = Node::new(Named::default());
    let of_use = [PeerId::random(), PeerId::random(), PeerId::random()];
    of_use.iter().for_each(|peer| assert!(node.is_dialled(*peer, "/ip4/10.0.0.1/tcp/1")));
    node.peers.keep(&of_use[0], Reason::Exchange, true);
    node.peers.keep(&of_use[1], Reason::Near, true);
    assert_eq!(node.flooded("10.0.0", 300), 72);
    tokio::time::advance(GRACE).await;
    node.peers.usage(&of_use[2]).unwrap().moved(1 << 20, Instant::now());
    assert_eq!(node.flooded("10.0.0", 300), 64, "so many close at once");
    let gone = node.closed();
    assert_eq!(gone.len(), CLOSING_MAX);
    assert!(of_use.iter().all(|peer| !gone.contains(peer)));
    assert_eq!(node.flooded("10.0.0", 300), 8, "then all are new again");
    assert!(of_use.iter().all(|peer| !node.closed().contains(peer)));
    assert_eq!(node.admission.incoming.standing.len(), 75);
}

#[tokio::test(start_paused = true)]
async fn connections_that_hang_while_they_close_stop_nobody_for_long() {
    let mut node = Node::new(Named::default());
    assert_eq!(node.flooded("10.0.0", 300), 75);
    tokio::time::advance(GRACE).await;
    assert_eq!(node.flooded("10.0.0", 300), CLOSING_MAX);
    tokio::time::advance(GRACE).await;
    assert_eq!(node.flooded("10.0.0", 300), CLOSING_MAX, "none of those before has closed");
    assert_eq!(node.admission.closing.len(), CLOSING_MAX);
    let (local, from) = ("/ip4/0.0.0.0/tcp/4001".parse().unwrap(), "/ip4/10.0.0.9/tcp/1".parse().unwrap());
    let id = node.next();
    let begun = node.admission.handle_pending_inbound_connection(id, &local, &from);
    assert!(begun.is_err(), "who will find no place is spared the handshake");
    node.closed();
    assert!(node.admission.closing.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_a_few_subnets_gives_way_to_others_at_once() {
    let mut node = Node::new(Named::default());
    for net in ["10.0.0", "8.8.8"] {
        node.flooded(net, 300);
    }
    assert_eq!(node.flooded("8.8.9", 300), 25, "it makes itself as wide as the others");
    node.closed();
    let honest = PeerId::random();
    assert!(node.is_dialled(honest, "/ip4/9.9.9.9/tcp/1"));
    assert!(!node.closed().contains(&honest));
    tokio::time::advance(GRACE * 2).await;
    for _ in 0..10 {
        for net in ["10.0.0", "8.8.8", "8.8.9"] {
            node.flooded(net, 30);
        }
        assert!(!node.closed().contains(&honest), "a flood pushes out its own");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_named_comes_in_though_nobody_can_go() {
    let named = PeerId::random();
    let mut node = Node::new(Named { peers: [named].into(), dialled: HashSet::new() });
    node.flooded("10.0.0", 300);
    node.flooded("8.8.8", 300);
    assert!(!node.is_dialled(PeerId::random(), "/ip4/10.0.0.9/tcp/1"));
    assert!(node.is_dialled(named, "/ip4/10.0.0.9/tcp/1"));
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_needed_finds_a_place() {
    let bootstrap = PeerId::random();
    let mut node = Node::new(Named { peers: HashSet::new(), dialled: [bootstrap].into() });
    (0..ALL).for_each(|_| assert!(node.dials(PeerId::random(), false)));
    assert!(!node.dials(PeerId::random(), false), "all are new");
    assert!(node.dials(bootstrap, false) && node.dials(PeerId::random(), true));
    tokio::time::advance(GRACE).await;
    assert!(node.dials(PeerId::random(), false));
    assert_eq!(node.closed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_needed_does_not_wait_for_others() {
    let mut node = Node::new(Named::default());
    let mut begin = |is_needed: bool| {
        let id = node.next();
        if is_needed {
            node.admission.needs(id);
        }
        let begun = node.admission.handle_pending_outbound_connection(id, None, &[], Endpoint::Dialer);
        (id, begun.is_ok())
    };
    assert_eq!((0..2 * PENDING_MAX).filter(|_| begin(false).1).count(), PENDING_MAX as usize);
    let (id, begun) = begin(true);
    assert!(begun);
    let failure = DialFailure { peer_id: None, error: &DialError::Aborted, connection_id: id };
    node.admission.on_swarm_event(FromSwarm::DialFailure(failure));
    assert!(node.admission.needed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_ends_makes_room() {
    let mut node = Node::new(Named::default());
    node.flooded("8.8.8", 30);
    tokio::time::advance(Duration::from_secs(1)).await;
    let ended: Vec<_> = node.admission.incoming.standing.keys().copied().collect();
    let peer = PeerId::random();
    node.admission.to_close.extend(ended.into_iter().map(|id| (peer, id)));
    node.closed();
    assert_eq!(node.flooded("8.8.8", 30), 25);
}
