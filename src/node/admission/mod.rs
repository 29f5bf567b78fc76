//! Who gets a place. Newcomers do while there is room, in all and for their subnet; then one for whom the least valued makes
//! room, and peers that the config names always.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::ConnectionEstablished;
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use crate::node::connections::Peers;
use crate::node::room::{Full, Place, least_valued};
use crate::node::subnets::{Counts, Subnet, share};

/// Connections in their handshake, in each direction.
pub(in crate::node) const PENDING_MAX: u32 = 256;
/// Connections that have given up their place and are not closed yet …
const CLOSING_MAX: usize = 64;
/// … of which one that hangs counts no longer than this. The transports drop it before.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections there may be beside those with peers that the config names.
#[derive(Clone, Copy, Debug)]
pub(in crate::node) struct Places {
    /// Opened by others.
    pub(in crate::node) incoming_max: u32,
    /// Opened by us.
    pub(in crate::node) outgoing_max: u32,
}

/// Whom the config names.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct Named {
    /// Always connected, whoever dials.
    pub(in crate::node) peers: HashSet<PeerId>,
    /// Dialled by us: relays, and who is there to begin with.
    pub(in crate::node) dialled: HashSet<PeerId>,
}

/// Admits connections, and has others closed for them.
pub(in crate::node) struct Admission {
    places: Places,
    peers: Peers,
    named: Named,
    /// Dials whose peer the config wants, though it does not say who it is.
    needed: HashSet<ConnectionId>,
    accepting: Table,
    dialling: HashSet<ConnectionId>,
    incoming: Table,
    outgoing: Table,
    /// Since when each is to close.
    closing: HashMap<ConnectionId, Instant>,
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
    pub(in crate::node) fn new(places: Places, peers: Peers, named: Named) -> Self {
        Self {
            places,
            peers,
            named,
            needed: HashSet::new(),
            accepting: Table::default(),
            dialling: HashSet::new(),
            incoming: Table::default(),
            outgoing: Table::default(),
            closing: HashMap::new(),
            to_close: VecDeque::new(),
        }
    }

    /// A dial is about to begin that must find a place.
    pub(in crate::node) fn needs(&mut self, dial: ConnectionId) {
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

    /// The connections of one direction, and how many there may be.
    fn table(&self, direction: Direction) -> (&Table, u32) {
        match direction {
            Direction::Incoming => (&self.incoming, self.places.incoming_max),
            Direction::Outgoing => (&self.outgoing, self.places.outgoing_max),
        }
    }

    /// The connection that gives up its place for a newcomer. Not too many do at once.
    fn leaving(
        &self,
        direction: Direction,
        newcomer: Subnet,
        full: Full,
        now: Instant,
    ) -> Option<ConnectionId> {
        let closing = self.closing.values().filter(|since| !hangs(**since, now)).count();
        let (table, _) = self.table(direction);
        (closing < CLOSING_MAX).then(|| table.least_valued(&self.peers, newcomer, full, now)).flatten()
    }

    /// Has a place given up, if need be.
    fn make_room(&mut self, newcomer: Standing, direction: Direction) -> Result<(), ConnectionDenied> {
        let is_named = newcomer.peer.is_some_and(|peer| self.is_named(&peer, direction));
        let (table, max) = self.table(direction);
        let Some(full) = table.full(&newcomer, max) else { return Ok(()) };
        let now = Instant::now();
        let leaving = self.leaving(direction, newcomer.subnet, full, now);
        let table = match direction {
            Direction::Incoming => &mut self.incoming,
            Direction::Outgoing => &mut self.outgoing,
        };
        let left = leaving.and_then(|id| Some((id, table.remove(id)?.peer?)));
        match left {
            Some((id, peer)) => {
                tracing::debug!(peer.id = %peer, "an idle connection makes room for another");
                self.closing.retain(|_, since| !hangs(*since, now));
                self.closing.insert(id, now);
                self.to_close.push_back((peer, id));
                Ok(())
            }
            None if is_named => Ok(()),
            None => Err(refused(full, newcomer.subnet)),
        }
    }
}

/// Whether a connection that is to close since then should have by now.
fn hangs(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= CLOSING_TIMEOUT
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
            && self.leaving(Direction::Incoming, newcomer.subnet, full, Instant::now()).is_none()
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
