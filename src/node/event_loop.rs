//! Owns the swarm: takes commands, feeds the routing tables, tells Bitswap who is there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use cid::Cid;
use futures::StreamExt;
use jiff::Timestamp;
use libp2p::core::ConnectedPoint;
use libp2p::kad::{QueryId, RecordKey};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, mdns, ping};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::announcing::Told;
use super::behaviour::{Behaviour, BehaviourEvent};
use super::bitswap::{Exchange, FindProviders};
use super::client::{Crowd, View};
use super::command::Command;
use super::mesh::Mesh;
use super::nat::{self, Nat};
use super::peers::{Book, KNOWN_MAX};
use super::providers::Providers;
use super::providing::Providing;
use super::pubsub::Pubsub;
use super::queries::Waiting;
use super::routing::Dht;
use super::search::Dialled;
use super::valued::Valued;
use super::{NodeConfig, connections, streams};
use crate::ipfs::IpfsError;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::store::{KnownPeer, State, off_thread};
use crate::tasks::Tasks;
use crate::web::{Reach, Web};

/// The loop's own rounds: dialling, announcing, dropping queries that nobody waits for.
const ROUND: Duration = Duration::from_millis(250);
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
const RENEW_INTERVAL: Duration = Duration::from_secs(600);
/// Connects and disconnects that Bitswap may be behind.
const CHANGES_QUEUED_MAX: usize = 4096;
/// Announcements that may be behind in saying how they went.
const TOLD_QUEUED_MAX: usize = 64;

/// Names that are followed, those that others lead to included.
const FOLLOWED_MAX: usize = 4096;
/// Addresses of a peer that are taken in, of those where it was reached and of those that it tells.
const DIALLED_MAX: usize = 8;
const TOLD_MAX: usize = 32;

/// What is known of a connected peer.
#[derive(Default)]
pub(super) struct Connected {
    /// Where it was reached.
    pub(super) dialled: Vec<Multiaddr>,
    /// These, and what it last told.
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) dhts: HashSet<Dht>,
}

pub(super) struct EventLoop {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) control: streams::Control,
    pub(super) changes: mpsc::Sender<(PeerId, bool)>,
    pub(super) book: Book,
    pub(super) mesh: Mesh,
    pub(super) nat: Nat,
    pub(super) pubsub: Pubsub,
    pub(super) state: State,
    pub(super) followed: HashSet<IpnsName>,
    pub(super) announce: Vec<Multiaddr>,
    pub(super) updates: broadcast::Sender<IpnsRecord>,
    pub(super) view: watch::Sender<View>,
    pub(super) waiting: HashMap<(Dht, QueryId), Waiting>,
    pub(super) providing: HashMap<Dht, Providing>,
    pub(super) providers: Providers,
    pub(super) tasks: Tasks,
    pub(super) told: mpsc::Sender<Told>,
    telling: mpsc::Receiver<Told>,
    pub(super) web: Option<Web>,
    pub(super) dialled: Dialled,
    pub(super) peers: HashMap<PeerId, Connected>,
    pub(super) valued: Valued,
    pub(super) listeners: HashSet<libp2p::core::transport::ListenerId>,
}

impl EventLoop {
    #[expect(clippy::too_many_arguments, reason = "called once, where the node is put together")]
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        control: streams::Control,
        exchange: Exchange,
        book: Book,
        mesh: Mesh,
        nat: Nat,
        pubsub: Pubsub,
        state: State,
        config: NodeConfig,
        updates: broadcast::Sender<IpnsRecord>,
        view: watch::Sender<View>,
        web: Option<Web>,
        tasks: &Tasks,
    ) -> Self {
        // Bitswap may wait for the swarm, so the swarm must not wait for Bitswap.
        let (changes, mut inbox) = mpsc::channel(CHANGES_QUEUED_MAX);
        tasks.spawn("connections", |_| async move {
            while let Some((peer, connected)) = inbox.recv().await {
                if connected { exchange.connected(peer).await } else { exchange.disconnected(peer).await }
            }
        });
        let (told, telling) = mpsc::channel(TOLD_QUEUED_MAX);
        Self {
            swarm,
            control,
            changes,
            book,
            mesh,
            nat,
            pubsub,
            state,
            followed: config.followed.into_iter().collect(),
            announce: config.announce,
            updates,
            view,
            waiting: HashMap::new(),
            providing: HashMap::new(),
            providers: Providers::default(),
            tasks: tasks.clone(),
            told,
            telling,
            web,
            dialled: Dialled::default(),
            peers: HashMap::new(),
            valued: Valued::default(),
            listeners: HashSet::new(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut searches: mpsc::Receiver<FindProviders>,
        mut places: watch::Receiver<BTreeSet<Multiaddr>>,
        stop: CancellationToken,
    ) {
        for address in std::mem::take(&mut self.announce) {
            self.add_announced_address(address);
        }
        self.announce_topics();
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut save = tokio::time::interval(SAVE_INTERVAL);
        let mut renew = tokio::time::interval(RENEW_INTERVAL);
        save.reset();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(command) = commands.recv() => self.on_command(command),
                Some(search) = searches.recv() => self.find_providers(search),
                Ok(()) = places.changed() => self.on_places(&places),
                Some(told) = self.telling.recv() => self.on_told(&told),
                Some(fetched) = self.pubsub.fetched() => self.on_fetched(fetched),
                Some(probed) = self.nat.prober.probed() => self.on_probed(probed),
                _ = round.tick() => self.round(),
                _ = save.tick() => self.save_peers().await,
                _ = renew.tick() => {
                    self.providing.values_mut().for_each(|providing| providing.renew(Instant::now()));
                    self.expire_providers();
                }
            }
            self.show();
        }
        self.save_peers().await;
        self.close_ports().await;
    }

    fn show(&self) {
        let peers = self.peers.len();
        let dialling = self.swarm.network_info().connection_counters().num_pending() > 0;
        let crowd = Crowd {
            peers,
            routable: self.peers.values().filter(|peer| !peer.dhts.is_empty()).count(),
            expecting: peers > 0 || dialling || !self.book.is_empty(),
            announcements_waiting: self.announcements_waiting(),
            on_topics: self.pubsub.peers(),
        };
        let nat = self.nat.stats();
        self.view.send_if_modified(|view| {
            let changed = view.crowd != crowd || view.nat != nat;
            view.crowd = crowd;
            view.nat = nat;
            changed
        });
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::GetRecord { name, reply } => {
                for dht in Dht::BOTH {
                    let id =
                        self.swarm.behaviour_mut().kad(dht).get_record(RecordKey::new(&name.routing_key()));
                    self.waiting.insert((dht, id), Waiting::Record(reply.clone()));
                }
            }
            Command::PutRecord { record, reply } => self.put_record(&record, &reply),
            Command::Found { record, behind } => self.on_found(&record, behind),
            Command::Provide(roots) => self.provide(&roots),
            Command::Follow(name) if self.followed.len() < FOLLOWED_MAX => {
                self.followed.insert(name);
            }
            Command::Follow(name) => {
                tracing::warn!(ipns = %name, "too many names are followed: it is polled only")
            }
            Command::DialProvider { root, peer, addresses } => self.dial_provider(root, peer, addresses),
            Command::Dial { address, reply } => {
                let dialled = self.swarm.dial(address.clone());
                let outcome = dialled.map_err(|error| IpfsError::NoPeers(format!("{address}: {error}")));
                // Whoever is answered may rely on it that somebody is expected.
                self.show();
                // Who asked may have gone.
                let _ = reply.send(outcome);
            }
        }
    }

    fn round(&mut self) {
        let gone: Vec<_> =
            self.waiting.iter().filter(|(_, waiting)| waiting.is_gone()).map(|(id, _)| *id).collect();
        for (dht, id) in gone {
            self.waiting.remove(&(dht, id));
            if let Some(mut query) = self.swarm.behaviour_mut().kad(dht).query_mut(&id) {
                query.finish();
            }
        }
        if !self.book.is_empty() {
            let swarm = &self.swarm;
            for (peer, addresses) in self.book.due(Instant::now(), |peer| swarm.is_connected(peer)) {
                self.dial(peer, addresses);
            }
        }
        for place in self.mesh.due(Instant::now()) {
            // From a port of its own: two daemons that dial each other from where they listen would meet in one connection
            // that both have opened.
            let options = DialOpts::unknown_peer_id().address(place).allocate_new_port().build();
            self.swarm.behaviour_mut().admission.needs(options.connection_id());
            if let Err(error) = self.swarm.dial(options) {
                tracing::trace!(%error, "not dialled");
            }
        }
        self.nat_round();
        self.value_peers(Instant::now());
        self.find_company();
        self.announce_some();
    }

    /// The places where trusted peers are have changed.
    fn on_places(&mut self, places: &watch::Receiver<BTreeSet<Multiaddr>>) {
        self.mesh.set_places(&places.borrow(), Instant::now());
        self.peers.keys().for_each(|peer| self.keep(peer));
    }

    /// Keeps a connection open, or no longer.
    fn keep(&self, peer: &PeerId) {
        let is_wanted = self.book.is_wanted(peer) || self.mesh.is_trusted(peer);
        self.control.keep(peer, connections::Reason::Wanted, is_wanted);
    }

    pub(super) fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let options =
            DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).addresses(addresses);
        if let Err(error) = self.swarm.dial(options.extend_addresses_through_behaviour().build()) {
            tracing::trace!(%peer, %error, "not dialled");
        }
    }

    /// Dials a provider of a DAG; if nothing of libp2p is there, it may have gateways.
    pub(super) fn dial_provider(&mut self, root: Cid, peer: PeerId, addresses: Vec<Multiaddr>) {
        if self.web.is_some() {
            self.dialled.note(peer, root);
        }
        self.dial(peer, addresses);
    }

    /// The transports do not know HTTP, and say which addresses they do not know.
    fn on_not_connected(&mut self, peer: Option<PeerId>, error: &DialError) {
        tracing::debug!(?peer, %error, "not connected");
        let root = peer.and_then(|peer| self.dialled.take(&peer));
        if let (Some(web), Some(root), DialError::Transport(tried)) = (&self.web, root, error) {
            let addresses: Vec<Multiaddr> = tried.iter().map(|(address, _)| address.clone()).collect();
            web.provider_at(&root, &addresses, Reach::Public);
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::NewListenAddr { listener_id, address }
                if self.on_relayed_address(listener_id, &address) =>
            {
                tracing::info!(%address, "a relay passes connections on");
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                self.listeners.insert(listener_id);
                tracing::info!(%address, "listening");
                self.add_own_address(address.clone());
                let listeners = self.listeners.len();
                self.view.send_modify(|view| {
                    view.listeners = listeners;
                    view.addresses.push(address);
                });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.swarm.remove_external_address(&address);
                self.on_address_expired(&address);
                self.view.send_modify(|view| view.addresses.retain(|known| *known != address));
            }
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, num_established, ..
            } => {
                self.note_path(peer_id, connection_id, endpoint.is_relayed());
                self.on_connected(peer_id, &endpoint, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                self.note_path_closed(&peer_id, connection_id, num_established == 0);
                if num_established > 0 {
                    return;
                }
                tracing::debug!(peer.id = %peer_id, ?cause, "disconnected");
                self.peers.remove(&peer_id);
                self.mesh.disconnected(&peer_id);
                self.pubsub.disconnected(&peer_id);
                self.tell_bitswap(peer_id, false);
            }
            SwarmEvent::NewExternalAddrCandidate { address } => self.has_tested(&address),
            SwarmEvent::ExternalAddrConfirmed { address } => {
                self.has_tested(&address);
                self.on_address_confirmed(&address);
            }
            SwarmEvent::ExternalAddrExpired { address } => self.on_address_expired(&address),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                self.on_listener_closed(listener_id, &reason);
            }
            SwarmEvent::OutgoingConnectionError { error: DialError::LocalPeerId { address }, .. }
                if !nat::is_relayed(&address) =>
            {
                self.mesh.is_ours(&address);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                self.on_not_connected(peer_id, &error);
            }
            _ => (),
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Wan(event) => self.on_kad(Dht::Wan, event),
            BehaviourEvent::Lan(event) => self.on_kad(Dht::Lan, event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identify(peer_id, info);
            }
            BehaviourEvent::Mdns(event) => self.on_mdns(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(failure) })
                if connections::is_dead(&failure) =>
            {
                // TCP would hold on to it for a quarter of an hour, and nobody dials who is connected.
                tracing::debug!(peer.id = %peer, %failure, "a connection is closed on which a ping had no answer");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Dcutr(event) => nat::on_hole_punch(&event),
            BehaviourEvent::Relay(event) => self.on_relayed(&event),
            BehaviourEvent::Upnp(event) => self.on_gateway(&event),
            _ => (),
        }
    }

    fn on_connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint, first: bool) {
        let dialled = match endpoint {
            ConnectedPoint::Dialer { address, .. } => Some(address),
            ConnectedPoint::Listener { .. } => None,
        };
        if let Some(address) = dialled {
            let known = self.peers.entry(peer).or_default();
            if known.dialled.len() < DIALLED_MAX && !known.dialled.contains(address) {
                known.dialled.push(address.clone());
                known.addresses.push(address.clone());
            }
        }
        // By a relay somebody else answers than who is at the place that the address begins with.
        self.mesh.connected(peer, dialled.filter(|address| !nat::is_relayed(address)));
        self.keep(&peer);
        self.dialled.take(&peer);
        if !first {
            return;
        }
        tracing::debug!(peer.id = %peer, address = %endpoint.get_remote_address(), "connected");
        self.peers.entry(peer).or_default();
        self.tell_bitswap(peer, true);
    }

    /// Peers of the local network. Where they are is told to the swarm by who found them.
    fn on_mdns(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(found) => {
                found.into_iter().for_each(|(peer, _)| self.book.found(peer, Instant::now()));
            }
            mdns::Event::Expired(gone) => {
                let there: HashSet<PeerId> = match self.swarm.behaviour().mdns.as_ref() {
                    Some(mdns) => mdns.discovered_nodes().copied().collect(),
                    None => HashSet::new(),
                };
                gone.iter()
                    .filter(|(peer, _)| !there.contains(peer))
                    .for_each(|(peer, _)| self.book.lost(peer));
            }
        }
    }

    fn tell_bitswap(&self, peer: PeerId, connected: bool) {
        if self.changes.try_send((peer, connected)).is_err() {
            tracing::error!(peer.id = %peer, "bitswap is too far behind to be told of a peer");
        }
    }

    /// The routing tables take in who takes part in their DHT, at the addresses that belong there.
    fn on_identify(&mut self, peer: PeerId, info: identify::Info) {
        self.mesh.identified(&peer, &info.protocols);
        self.notice_services(peer, &info);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let told = info.listen_addrs.into_iter().take(TOLD_MAX);
        let addresses: Vec<Multiaddr> =
            known.dialled.iter().cloned().chain(told).collect::<BTreeSet<_>>().into_iter().collect();
        let before = std::mem::replace(&mut known.addresses, addresses);
        for dht in Dht::BOTH {
            if !info.protocols.iter().any(|protocol| protocol.as_ref() == dht.protocol()) {
                continue;
            }
            let kad = self.swarm.behaviour_mut().kad(dht);
            for address in known.addresses.iter().filter(|address| dht.admits(address)) {
                kad.add_address(&peer, address.clone());
                if known.dhts.insert(dht) {
                    tracing::debug!(peer.id = %peer, ?dht, "takes part in a DHT");
                }
            }
            // A peer that tells other addresses each time must not fill the table.
            for address in before.iter().filter(|address| !known.addresses.contains(address)) {
                kad.remove_address(&peer, address);
            }
        }
    }

    async fn save_peers(&mut self) {
        let now_s = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        let with_address =
            self.peers.iter().filter(|(_, peer)| !peer.dhts.is_empty() && !peer.addresses.is_empty());
        let known: Vec<KnownPeer> = with_address
            .take(KNOWN_MAX)
            .map(|(id, peer)| KnownPeer {
                peer_id: id.to_base58(),
                addresses: peer.addresses.iter().map(Multiaddr::to_string).collect(),
                seen_at_s: now_s,
            })
            .collect();
        if known.is_empty() {
            return;
        }
        let state = self.state.clone();
        if let Err(error) = off_thread(move || state.set_peers(&known)).await {
            tracing::warn!(%error, "peers not remembered");
        }
    }
}
