use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use super::*;

const HOME: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
const BRIDGE: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

/// The network, as a search finds it.
#[derive(Default)]
struct Network {
    /// The address outside of its gateway, if there is one.
    gateway: Option<Ipv4Addr>,
    /// The gateway answers nothing.
    is_silent: bool,
    searches: usize,
    closed: Vec<Multiaddr>,
}

/// What libp2p has for one search, whose gateway opens each port that it is asked for.
struct Search {
    network: Arc<Mutex<Network>>,
    gateway: Option<Ipv4Addr>,
    events: VecDeque<upnp::Event>,
}

impl Search {
    fn new(network: &Arc<Mutex<Network>>) -> Self {
        let mut there = network.lock().unwrap();
        there.searches += 1;
        let is_found = there.gateway.is_some() || there.is_silent;
        let events = (!is_found).then_some(upnp::Event::GatewayNotFound).into_iter().collect();
        Self { network: network.clone(), gateway: there.gateway.filter(|_| !there.is_silent), events }
    }
}

impl NetworkBehaviour for Search {
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
            FromSwarm::NewListenAddr(new) => {
                let Some(gateway) = self.gateway else { return };
                let (local_addr, external_addr) = (new.addr.clone(), at(gateway, new.addr));
                self.events.push_back(upnp::Event::NewExternalAddr { local_addr, external_addr });
            }
            FromSwarm::ExpiredListenAddr(old) => self.network.lock().unwrap().closed.push(old.addr.clone()),
            _ => (),
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<upnp::Event, THandlerInEvent<Self>>> {
        self.events.pop_front().map_or(Poll::Pending, |event| Poll::Ready(ToSwarm::GenerateEvent(event)))
    }
}

/// The same address at another host.
fn at(ip: Ipv4Addr, address: &Multiaddr) -> Multiaddr {
    address.replace(0, |_| Some(Protocol::Ip4(ip))).unwrap()
}

fn outside(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(5, 0, 0, n)
}

/// A daemon at home, and its network.
struct Home {
    network: Arc<Mutex<Network>>,
    way_out: Arc<Mutex<Ipv4Addr>>,
    gateway: Gateway<Search>,
    listener: ListenerId,
    /// What others are told.
    told: Vec<Multiaddr>,
}

impl Home {
    fn new(gateway: Option<Ipv4Addr>) -> Self {
        let network = Arc::new(Mutex::new(Network { gateway, ..Network::default() }));
        let way_out = Arc::new(Mutex::new(HOME));
        let (searched, leads) = (network.clone(), way_out.clone());
        let search = Box::new(move || Search::new(&searched));
        let gateway = Gateway::new(search, Box::new(move || Some(*leads.lock().unwrap())));
        Self { network, way_out, gateway, listener: ListenerId::next(), told: Vec::new() }
    }

    fn ports(ip: Ipv4Addr) -> [Multiaddr; 2] {
        let ports = ["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"];
        ports.map(|port| at(ip, &port.parse().unwrap()))
    }

    fn listens(&mut self, ip: Ipv4Addr) {
        let listener_id = self.listener;
        Self::ports(ip).iter().for_each(|addr| {
            self.gateway.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr }));
        });
    }

    fn listens_no_more(&mut self, ip: Ipv4Addr) {
        let listener_id = self.listener;
        Self::ports(ip).iter().for_each(|addr| {
            let expired = ExpiredListenAddr { listener_id, addr };
            self.gateway.on_swarm_event(FromSwarm::ExpiredListenAddr(expired));
        });
    }

    fn finds(&self, gateway: Option<Ipv4Addr>) {
        self.network.lock().unwrap().gateway = gateway;
    }

    fn searches(&self) -> usize {
        self.network.lock().unwrap().searches
    }

    async fn passes(&mut self, seconds: u64) {
        for _ in 0..=seconds {
            let mut context = Context::from_waker(Waker::noop());
            while let Poll::Ready(event) = self.gateway.poll(&mut context) {
                match event {
                    ToSwarm::ExternalAddrConfirmed(address) => {
                        assert!(!self.told.contains(&address), "{address} is told of again");
                        self.told.push(address);
                    }
                    ToSwarm::ExternalAddrExpired(address) => self.told.retain(|told| *told != address),
                    _ => (),
                }
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    fn tells(&self, outside: &[Ipv4Addr]) -> bool {
        let expected: Vec<Multiaddr> = outside.iter().flat_map(|ip| Self::ports(*ip)).collect();
        self.told.len() == expected.len() && expected.iter().all(|address| self.told.contains(address))
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_appears_later_is_found() {
    let mut home = Home::new(None);
    home.listens(HOME);
    home.passes(600).await;
    assert!(home.tells(&[]) && home.searches() < 10, "{}", home.searches());
    home.finds(Some(outside(1)));
    home.passes(300).await;
    assert!(home.tells(&[outside(1)]), "{:?}", home.told);
}

#[tokio::test(start_paused = true)]
async fn a_new_address_has_the_gateway_looked_for_at_once() {
    let mut home = Home::new(None);
    home.listens(BRIDGE);
    home.passes(1000).await;
    assert_eq!(home.searches(), 0, "nothing that a port could be opened for lies on the way out");
    home.finds(Some(outside(1)));
    home.listens(HOME);
    home.passes(1).await;
    assert!(home.tells(&[outside(1)]), "{:?}", home.told);
    assert_eq!(home.searches(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_moves_to_another_network_asks_its_gateway() {
    let mut home = Home::new(Some(outside(1)));
    home.listens(HOME);
    home.passes(60).await;
    home.listens_no_more(HOME);
    home.passes(1).await;
    assert!(home.tells(&[]), "where we were nobody finds us");
    assert_eq!(home.network.lock().unwrap().closed, Home::ports(HOME));
    home.finds(Some(outside(2)));
    *home.way_out.lock().unwrap() = ELSEWHERE;
    home.listens(ELSEWHERE);
    home.passes(1).await;
    assert!(home.tells(&[outside(2)]), "{:?}", home.told);
}

#[tokio::test(start_paused = true)]
async fn the_same_address_in_another_network_is_new_too() {
    let mut home = Home::new(Some(outside(1)));
    home.listens(HOME);
    home.passes(60).await;
    home.listens_no_more(HOME);
    home.finds(Some(outside(2)));
    home.listens(HOME);
    home.passes(10).await;
    assert!(home.tells(&[outside(2)]), "{:?}", home.told);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_has_another_address_outside_or_forgot_us_is_asked_again() {
    let mut home = Home::new(Some(outside(1)));
    home.listens(HOME);
    home.passes(10).await;
    assert!(home.tells(&[outside(1)]));
    home.finds(Some(outside(2)));
    home.passes(300).await;
    assert!(home.tells(&[outside(2)]), "{:?}", home.told);
    assert_eq!(home.searches(), 2);
    assert!(home.network.lock().unwrap().closed.is_empty(), "what is opened again is not closed");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_is_gone_when_it_is_looked_for_in_vain_some_times() {
    let mut home = Home::new(Some(outside(1)));
    home.listens(HOME);
    home.passes(10).await;
    home.finds(None);
    home.passes(294).await;
    assert_eq!((home.searches(), home.tells(&[outside(1)])), (2, true), "an answer may be lost");
    home.passes(30).await;
    assert!(home.tells(&[]), "{:?}", home.told);
    home.finds(Some(outside(1)));
    home.passes(60).await;
    assert!(home.tells(&[outside(1)]));
}

#[tokio::test(start_paused = true)]
async fn other_interfaces_are_none_of_its_business() {
    let mut home = Home::new(Some(outside(1)));
    home.listens(BRIDGE);
    home.listens(HOME);
    home.passes(10).await;
    assert!(home.tells(&[outside(1)]), "{:?}", home.told);
    home.listens_no_more(BRIDGE);
    home.passes(10).await;
    assert!(home.tells(&[outside(1)]) && home.network.lock().unwrap().closed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_answers_nothing_is_not_waited_for_for_ever() {
    let mut home = Home::new(None);
    home.network.lock().unwrap().is_silent = true;
    home.listens(HOME);
    home.passes(20).await;
    assert_eq!(home.searches(), 1);
    home.passes(20).await;
    assert_eq!(home.searches(), 2);
    home.network.lock().unwrap().is_silent = false;
    home.finds(Some(outside(1)));
    home.passes(60).await;
    assert!(home.tells(&[outside(1)]), "{:?}", home.told);
}
