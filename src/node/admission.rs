//! Who gets a place. Newcomers do while there is room, in all and for their subnet; then one for whom the least valued makes
//! room, and peers that the config names always.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::task::{Context, Poll};

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::ConnectionEstablished;
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::connections::Peers;
use super::room::{Full, Place, least_valued};
use super::subnets::{Counts, Subnet, share};

/// Connections in their handshake, in each direction.
pub(super) const PENDING_MAX: u32 = 256;
/// Connections that have given up their place and are not closed yet.
const CLOSING_MAX: usize = 64;

/// How many connections there may be beside those with peers that the config names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Opened by others.
    pub(super) incoming_max: u32,
    /// Opened by us.
    pub(super) outgoing_max: u32,
}

/// Whom the config names.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    /// Always connected, whoever dials.
    pub(super) peers: HashSet<PeerId>,
    /// Dialled by us: relays, and who is there to begin with.
    pub(super) dialled: HashSet<PeerId>,
}

/// Admits connections, and has others closed for them.
pub(super) struct Admission {
    places: Places,
    peers: Peers,
    named: Named,
    /// Dials whose peer the config wants, though it does not say who it is.
    needed: HashSet<ConnectionId>,
    accepting: Table,
    dialling: HashSet<ConnectionId>,
    incoming: Table,
    outgoing: Table,
    closing: HashSet<ConnectionId>,
    to_close: VecDeque<(PeerId, ConnectionId)>,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("all places for connections are taken, and none can be given up yet")]
    All,
    #[error("{0:?} has its share of connections")]
    Share(Subnet),
    #[error("{PENDING_MAX} dials are under way")]
    Dialling,
}

/// Who has opened a connection: others, or we.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Incoming,
    Outgoing,
}

/// Connections of one direction that have their place.
#[derive(Default)]
struct Table {
    standing: HashMap<ConnectionId, Standing>,
    counts: Counts,
}

#[derive(Clone, Copy)]
struct Standing {
    /// `None`: it is in its handshake.
    peer: Option<PeerId>,
    subnet: Subnet,
    share: u32,
}

impl Table {
    fn add(&mut self, id: ConnectionId, standing: Standing) {
        if self.standing.insert(id, standing).is_none() {
            self.counts.add(standing.subnet);
        }
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Standing> {
        let standing = self.standing.remove(&id)?;
        self.counts.remove(standing.subnet);
        Some(standing)
    }

    fn full(&self, newcomer: &Standing, max: u32) -> Option<Full> {
        if self.counts.get(newcomer.subnet) >= newcomer.share {
            Some(Full::Subnet)
        } else {
            (self.standing.len() >= max as usize).then_some(Full::All)
        }
    }

    fn least_valued(
        &self,
        peers: &Peers,
        newcomer: Subnet,
        full: Full,
        now: Instant,
    ) -> Option<ConnectionId> {
        let usages = peers.usages();
        let places = self.standing.iter().filter_map(|(id, standing)| {
            let usage = usages.get(id)?;
            Some(Place {
                id: *id,
                subnet: standing.subnet,
                share: standing.share,
                since: usage.since(),
                used: usage.last_used(),
                is_of_use: usage.is_of_use(now),
            })
        });
        least_valued(places, &self.counts, newcomer, full, now)
    }
}

impl Admission {
    /// `peers`: the connections, of which it says what they are for. `named`: who always has a place.
    pub(super) fn new(places: Places, peers: Peers, named: Named) -> Self {
        Self {
            places,
            peers,
            named,
            needed: HashSet::new(),
            accepting: Table::default(),
            dialling: HashSet::new(),
            incoming: Table::default(),
            outgoing: Table::default(),
            closing: HashSet::new(),
            to_close: VecDeque::new(),
        }
    }

    /// A dial is about to begin that must find a place.
    pub(super) fn needs(&mut self, dial: ConnectionId) {
        self.needed.insert(dial);
    }

    fn incoming_from(&self, peer: Option<PeerId>, local: &Multiaddr, remote: &Multiaddr) -> Standing {
        let share = share(self.places.incoming_max, remote);
        Standing { peer, subnet: Subnet::of(local, remote), share }
    }

    /// Where we dial is our choice: no subnet has a share of that.
    fn outgoing_to(&self, peer: PeerId) -> Standing {
        Standing { peer: Some(peer), subnet: Subnet::Unknown, share: u32::MAX }
    }

    fn is_named(&self, peer: &PeerId, direction: Direction) -> bool {
        self.named.peers.contains(peer)
            || direction == Direction::Outgoing && self.named.dialled.contains(peer)
    }

    /// Whether somebody who is to be connected may be about to come.
    fn awaits_named(&self) -> bool {
        let connected = |peer: &PeerId| self.peers.usage(peer).is_some();
        !self.named.peers.iter().all(connected)
    }

    /// Has a place given up, if need be.
    fn make_room(&mut self, newcomer: Standing, direction: Direction) -> Result<(), ConnectionDenied> {
        let is_named = newcomer.peer.is_some_and(|peer| self.is_named(&peer, direction));
        let (table, max) = match direction {
            Direction::Incoming => (&mut self.incoming, self.places.incoming_max),
            Direction::Outgoing => (&mut self.outgoing, self.places.outgoing_max),
        };
        let Some(full) = table.full(&newcomer, max) else { return Ok(()) };
        let leaving = (self.closing.len() < CLOSING_MAX)
            .then(|| table.least_valued(&self.peers, newcomer.subnet, full, Instant::now()))
            .flatten();
        let left = leaving.and_then(|id| Some((id, table.remove(id)?.peer?)));
        match left {
            Some((id, peer)) => {
                tracing::debug!(peer.id = %peer, "an idle connection makes room for another");
                self.closing.insert(id);
                self.to_close.push_back((peer, id));
                Ok(())
            }
            None if is_named => Ok(()),
            None => Err(refused(full, newcomer.subnet)),
        }
    }
}

fn refused(full: Full, subnet: Subnet) -> ConnectionDenied {
    ConnectionDenied::new(match full {
        Full::All => Refused::All,
        Full::Subnet => Refused::Share(subnet),
    })
}

impl NetworkBehaviour for Admission {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    /// Who cannot have a place is spared the handshake, unless it may be somebody who must have one.
    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let newcomer = self.incoming_from(None, local, remote);
        let handshake = Standing { share: share(PENDING_MAX, remote), ..newcomer };
        if let Some(full) = self.accepting.full(&handshake, PENDING_MAX) {
            return Err(refused(full, newcomer.subnet));
        }
        if let Some(full) = self.incoming.full(&newcomer, self.places.incoming_max)
            && self.incoming.least_valued(&self.peers, newcomer.subnet, full, Instant::now()).is_none()
            && !self.awaits_named()
        {
            return Err(refused(full, newcomer.subnet));
        }
        self.accepting.add(id, handshake);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.accepting.remove(id);
        self.make_room(self.incoming_from(Some(peer), local, remote), Direction::Incoming)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let is_needed =
            self.needed.contains(&id) || peer.is_some_and(|peer| self.is_named(&peer, Direction::Outgoing));
        if !is_needed && self.dialling.len() >= PENDING_MAX as usize {
            return Err(ConnectionDenied::new(Refused::Dialling));
        }
        self.dialling.insert(id);
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.dialling.remove(&id);
        let is_needed = self.needed.remove(&id);
        let admitted = self.make_room(self.outgoing_to(peer), Direction::Outgoing);
        if !is_needed {
            admitted?;
        }
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                connection_id,
                peer_id,
                endpoint,
                ..
            }) => match endpoint {
                ConnectedPoint::Listener { local_addr, send_back_addr } => {
                    let standing = self.incoming_from(Some(peer_id), local_addr, send_back_addr);
                    self.incoming.add(connection_id, standing);
                }
                ConnectedPoint::Dialer { .. } => {
                    self.outgoing.add(connection_id, self.outgoing_to(peer_id));
                }
            },
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.incoming.remove(connection_id);
                self.outgoing.remove(connection_id);
                self.closing.remove(&connection_id);
                self.to_close.retain(|(_, id)| *id != connection_id);
            }
            FromSwarm::ListenFailure(failure) => {
                self.accepting.remove(failure.connection_id);
            }
            FromSwarm::DialFailure(failure) => {
                self.dialling.remove(&failure.connection_id);
                self.needed.remove(&failure.connection_id);
            }
            _ => (),
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Filled while the swarm is being polled, which polls this again after each connection.
        match self.to_close.pop_front() {
            Some((peer_id, id)) => {
                Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) })
            }
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
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
                || admission
                    .handle_established_outbound_connection(id, peer, &address, role, port_use)
                    .is_err()
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
}
