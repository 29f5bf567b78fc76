//! The gateway of the local network, which opens ports on request (UPnP). It may appear after us, be started anew without
//! what it had opened, or change its address outside, and we may move to another network. libp2p looks for it once: so
//! that is made anew for each search, and what was found before serves on until the next has opened a port.
//!
//! Only addresses at the interface that leads to it are passed on: of several, the gateway would be asked for the same port
//! for each, and the last would have it.

mod searches;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use libp2p::core::Endpoint;
use libp2p::core::transport::{ListenerId, PortUse};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, ExpiredListenAddr, FromSwarm, NetworkBehaviour, NewListenAddr, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId, upnp};
use tokio::time::{Instant, Sleep, sleep_until};

use searches::{Searches, Standing};

/// Where gateways are asked who is there (UPnP Device Architecture, section 1.3).
const MULTICAST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// Addresses that are passed on.
const ADDRESSES_MAX: usize = 256;

type Event = ToSwarm<upnp::Event, Infallible>;

/// Has the gateway open the ports that we listen on, as soon as there is one and for as long as there is.
pub(in crate::node) struct Gateway<B = upnp::tokio::Behaviour> {
    /// Begins to look for a gateway.
    search: Box<dyn FnMut() -> B + Send>,
    /// The address of the interface that leads to it.
    way_out: Box<dyn FnMut() -> Option<Ipv4Addr> + Send>,
    listening: HashSet<(ListenerId, Multiaddr)>,
    /// Has opened ports.
    found: Option<Client<B>>,
    /// May find a gateway.
    searching: Option<Client<B>>,
    searches: Searches,
    /// What others are told, by the address at home.
    told: HashMap<Multiaddr, Told>,
    wakes_at: Pin<Box<Sleep>>,
    events: VecDeque<Event>,
}

/// What deals with a gateway.
struct Client<B> {
    behaviour: B,
    ip: Ipv4Addr,
    /// Counted from the first search.
    round: u64,
}

struct Told {
    outside: Multiaddr,
    /// The search whose gateway has last opened it.
    round: u64,
}

impl Default for Gateway {
    fn default() -> Self {
        Self::new(Box::new(upnp::tokio::Behaviour::default), Box::new(way_out))
    }
}

/// The address that what we send by multicast comes from. Nothing is sent, and nothing waited for.
fn way_out() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(MULTICAST).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(ip) => Some(ip),
        std::net::IpAddr::V6(_) => None,
    }
}

/// The address of a private network that a port can be opened for.
fn private_ip(address: &Multiaddr) -> Option<Ipv4Addr> {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) if ip.is_private() => Some(ip),
        _ => None,
    }
}

impl<B: NetworkBehaviour<ToSwarm = upnp::Event>> Client<B> {
    fn listens(&mut self, listener_id: ListenerId, addr: &Multiaddr) {
        if private_ip(addr) == Some(self.ip) {
            self.behaviour.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr }));
        }
    }

    fn listens_no_more(&mut self, listener_id: ListenerId, addr: &Multiaddr) {
        if private_ip(addr) == Some(self.ip) {
            let expired = ExpiredListenAddr { listener_id, addr };
            self.behaviour.on_swarm_event(FromSwarm::ExpiredListenAddr(expired));
        }
    }

    /// What it says next. What others are told is for its owner to decide.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<upnp::Event> {
        loop {
            if let ToSwarm::GenerateEvent(event) = ready!(self.behaviour.poll(cx)) {
                return Poll::Ready(event);
            }
        }
    }
}

impl<B: NetworkBehaviour<ToSwarm = upnp::Event>> Gateway<B> {
    fn new(
        search: Box<dyn FnMut() -> B + Send>,
        way_out: Box<dyn FnMut() -> Option<Ipv4Addr> + Send>,
    ) -> Self {
        let now = Instant::now();
        Self {
            search,
            way_out,
            listening: HashSet::new(),
            found: None,
            searching: None,
            searches: Searches::new(now),
            told: HashMap::new(),
            wakes_at: Box::pin(sleep_until(now)),
            events: VecDeque::new(),
        }
    }

    fn clients(&mut self) -> impl Iterator<Item = &mut Client<B>> {
        self.found.iter_mut().chain(&mut self.searching)
    }

    fn listens(&mut self, listener: ListenerId, address: &Multiaddr) {
        if private_ip(address).is_none() || self.listening.len() >= ADDRESSES_MAX {
            return;
        }
        self.listening.insert((listener, address.clone()));
        self.clients().for_each(|client| client.listens(listener, address));
        if self.searching.as_ref().is_none_or(|client| private_ip(address) != Some(client.ip)) {
            self.searches.hurry(Instant::now());
        }
    }

    fn listens_no_more(&mut self, listener: ListenerId, address: &Multiaddr) {
        if !self.listening.remove(&(listener, address.clone())) {
            return;
        }
        self.clients().for_each(|client| client.listens_no_more(listener, address));
        self.take_back(address);
    }

    /// Begins a search, if there is what a port is to be opened for.
    fn begin(&mut self, now: Instant) {
        let addresses =
            |ip| self.listening.iter().filter(move |(_, address)| private_ip(address) == Some(ip));
        let round = self.searches.begun(now);
        let Some(ip) = (self.way_out)().filter(|ip| addresses(*ip).next().is_some()) else {
            return self.missed(now);
        };
        let mut client = Client { behaviour: (self.search)(), ip, round };
        addresses(ip).for_each(|(listener, address)| client.listens(*listener, address));
        self.searching = Some(client);
        // What the gateway of the search before has not opened again.
        let current = self.found.as_ref().map_or(0, |found| found.round);
        let old =
            self.told.iter().filter(|(_, told)| told.round < current).map(|(address, _)| address.clone());
        old.collect::<Vec<_>>().iter().for_each(|address| self.take_back(address));
    }

    /// A search has found nothing. One may be in vain though the gateway is there; after some it is not.
    fn missed(&mut self, now: Instant) {
        self.searching = None;
        if self.searches.missed(now) == Standing::Gone {
            self.found = None;
            let all: Vec<_> = self.told.keys().cloned().collect();
            all.iter().for_each(|address| self.take_back(address));
        }
    }

    fn opened(&mut self, address: Multiaddr, outside: Multiaddr) {
        let round = self.found.as_ref().map_or(0, |found| found.round);
        if let Some(told) = self.told.get_mut(&address)
            && told.outside == outside
        {
            // Tests may have shown by now that nobody comes in by it.
            told.round = round;
            return;
        }
        self.take_back(&address);
        self.told.insert(address.clone(), Told { outside: outside.clone(), round });
        self.events.push_back(ToSwarm::ExternalAddrConfirmed(outside.clone()));
        let (local_addr, external_addr) = (address, outside);
        self.events
            .push_back(ToSwarm::GenerateEvent(upnp::Event::NewExternalAddr { local_addr, external_addr }));
    }

    /// Others are told no longer where an address of ours is outside.
    fn take_back(&mut self, address: &Multiaddr) {
        let Some(Told { outside, .. }) = self.told.remove(address) else { return };
        if self.told.values().all(|told| told.outside != outside) {
            self.events.push_back(ToSwarm::ExternalAddrExpired(outside));
        }
    }

    /// What a gateway says that was found before.
    fn on_found(&mut self, event: upnp::Event) {
        match event {
            upnp::Event::NewExternalAddr { local_addr, external_addr } => {
                self.opened(local_addr, external_addr);
            }
            upnp::Event::ExpiredExternalAddr { local_addr, .. } => self.take_back(&local_addr),
            upnp::Event::GatewayNotFound | upnp::Event::NonRoutableGateway => (),
        }
    }

    fn on_searching(&mut self, event: upnp::Event, now: Instant) {
        match event {
            upnp::Event::NewExternalAddr { local_addr, external_addr } => {
                self.found = self.searching.take();
                self.searches.found(now);
                self.opened(local_addr, external_addr);
            }
            upnp::Event::ExpiredExternalAddr { .. } => (),
            event @ (upnp::Event::GatewayNotFound | upnp::Event::NonRoutableGateway) => {
                self.missed(now);
                self.events.push_back(ToSwarm::GenerateEvent(event));
            }
        }
    }

    /// Waits for whatever is next to do, and does it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(Poll::Ready(event)) = self.found.as_mut().map(|client| client.poll(cx)) {
            self.on_found(event);
            return Poll::Ready(());
        }
        if let Some(Poll::Ready(event)) = self.searching.as_mut().map(|client| client.poll(cx)) {
            self.on_searching(event, Instant::now());
            return Poll::Ready(());
        }
        if self.listening.is_empty() {
            return Poll::Pending;
        }
        let next = self.searches.next();
        if self.wakes_at.deadline() != next {
            self.wakes_at.as_mut().reset(next);
        }
        ready!(self.wakes_at.poll_unpin(cx));
        let now = Instant::now();
        match &self.searching {
            // A gateway that does not do what it is asked is none.
            Some(_) => self.missed(now),
            None => self.begin(now),
        }
        Poll::Ready(())
    }
}

impl<B: NetworkBehaviour<ToSwarm = upnp::Event>> NetworkBehaviour for Gateway<B> {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = upnp::Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
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
            FromSwarm::NewListenAddr(new) => self.listens(new.listener_id, new.addr),
            FromSwarm::ExpiredListenAddr(old) => self.listens_no_more(old.listener_id, old.addr),
            _ => (),
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<upnp::Event, THandlerInEvent<Self>>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            ready!(self.poll_next(cx));
        }
    }
}
