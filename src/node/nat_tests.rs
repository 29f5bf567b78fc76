//! The way in, over real swarms on loopback: servers that lie about it, and strangers who take what they can of a relay.

use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, noise, relay, tcp, yamux};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;

use super::nat::guests::{GUEST_CIRCUITS_MAX, GUEST_RESERVATIONS_MAX};
use super::nat::probe::testing::{Server, Witness};
use super::tests::{Node, PATIENCE, until};
use super::{NodeConfig, Reachability};
use crate::tasks::Tasks;

/// An address that is not that of any test machine, with the port that a node listens on.
fn seen_at(ip: &str, place: &Multiaddr) -> Multiaddr {
    let port = place.iter().find(|part| matches!(part, Protocol::Tcp(_))).unwrap();
    format!("/ip4/{ip}").parse::<Multiaddr>().unwrap().with(port)
}

/// A node that a liar claims to see at one address, and an honest server at another.
async fn is_told_by_the_honest_alone(liar: Server) {
    let node = Node::behind_nat(&[], None).await;
    let mut place = node.address();
    let Some(Protocol::P2p(id)) = place.pop() else { panic!("{place} has no peer id") };
    let (claimed, real) = (seen_at("8.8.8.8", &place), seen_at("8.8.4.4", &place));
    let meet = async |witness: &Witness| {
        let address = witness.address.clone().with(Protocol::P2p(witness.peer));
        let meeting = async {
            // A dial leaves from where the node listens, and fails where another connection has that port.
            loop {
                node.client.dial(address.clone()).await.unwrap();
                if witness.is_met_by(id).await {
                    return;
                }
            }
        };
        timeout(PATIENCE, meeting).await.unwrap();
    };
    let mut lying = Witness::start(liar, claimed.clone(), place.clone()).await;
    meet(&lying).await;
    assert_eq!(lying.tested().await, claimed);

    let honest = Witness::start(Server::Comes, real.clone(), place.clone()).await;
    meet(&honest).await;
    until(&format!("an address is reached, beside {liar:?}"), || {
        node.nat().reachability == Reachability::Public
    })
    .await;
    let telling = async {
        loop {
            let told = honest.told_by(id).await;
            if told.contains(&real) {
                return told;
            }
        }
    };
    let told = timeout(PATIENCE, telling).await.unwrap();
    assert!(!told.contains(&claimed), "beside {liar:?}: {told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_is_told_by_the_word_of_a_server_that_lies_and_an_honest_one_is_heard_beside_it() {
    let liars = [
        Server::SaysThatItCame,
        Server::StaysWhereItIs,
        Server::BringsAnother,
        Server::SaysThatItCannot,
        Server::WantsMuch,
        Server::WantsMore,
        Server::SaysNothing,
        Server::Refuses,
    ];
    join_all(liars.map(is_told_by_the_honest_alone)).await;
}

/// A relay that trusts `friend`.
async fn relay_of(friend: &Keypair) -> Node {
    let nowhere = "/ip4/127.0.0.1/tcp/1".parse::<Multiaddr>().unwrap();
    let friend = nowhere.with(Protocol::P2p(friend.public().to_peer_id()));
    let config = Node::config("/ip4/127.0.0.1/tcp/0".parse().unwrap(), &[], &[]);
    let config = NodeConfig { nat: true, relay: true, peers: vec![friend], connections_max: 1000, ..config };
    Node::configured(TempDir::new().unwrap(), Keypair::generate_ed25519(), config).await
}

/// Another way to a relay, by which all come from another address: one alone may not ask often enough.
async fn side_door(relay: &Multiaddr, tasks: &Tasks) -> Multiaddr {
    let (mut place, ip) = (relay.clone(), [127, 0, 0, 2]);
    let (Some(id), Some(Protocol::Tcp(port))) = (place.pop(), place.pop()) else { panic!("{relay}") };
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = Protocol::Tcp(door.local_addr().unwrap().port());
    let passing = tasks.clone();
    tasks.spawn_short("door", |stop| async move {
        while let Some(Ok((mut outside, _))) = stop.run_until_cancelled(door.accept()).await {
            let socket = TcpSocket::new_v4().unwrap();
            // Whatever port it gets may be one that a node listens on: which binds it at all addresses when it dials.
            socket.set_reuseaddr(true).unwrap();
            socket.set_reuseport(true).unwrap();
            socket.bind((ip, 0).into()).unwrap();
            let mut inside = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
            passing.spawn_short("passing", |stop| async move {
                let copying = tokio::io::copy_bidirectional(&mut outside, &mut inside);
                stop.run_until_cancelled(copying).await;
            });
        }
    });
    place.with(own).with(id)
}

/// Somebody who wants something of a relay, and has what he got for as long as this lives.
struct Guest {
    id: PeerId,
    swarm: Swarm<relay::client::Behaviour>,
}

impl Guest {
    fn new(key: Keypair) -> Self {
        let id = key.public().to_peer_id();
        let swarm = SwarmBuilder::with_existing_identity(key)
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_, relay| relay)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        Self { id, swarm }
    }

    fn stranger() -> Self {
        Self::new(Keypair::generate_ed25519())
    }

    /// Asks for a reservation; whether it is granted.
    async fn reserves(mut self, relay: &Multiaddr) -> Option<Tasks> {
        self.swarm.listen_on(relay.clone().with(Protocol::P2pCircuit)).unwrap();
        let granted = async {
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::Behaviour(relay::client::Event::ReservationReqAccepted { .. }) => {
                        return true;
                    }
                    SwarmEvent::ListenerClosed { .. } => return false,
                    _ => (),
                }
            }
        };
        timeout(PATIENCE, granted).await.unwrap().then(|| self.stays())
    }

    /// Has a relay connect it to somebody so many times; whether it does so each time.
    async fn calls(mut self, relay: &Multiaddr, whom: PeerId, times: usize) -> Option<Tasks> {
        let circuit = relay.clone().with(Protocol::P2pCircuit).with(Protocol::P2p(whom));
        let connected = async {
            for _ in 0..times {
                let dial = DialOpts::peer_id(whom).condition(PeerCondition::Always);
                self.swarm.dial(dial.addresses(vec![circuit.clone()]).build()).unwrap();
                loop {
                    match self.swarm.select_next_some().await {
                        SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == whom => break,
                        SwarmEvent::OutgoingConnectionError { .. } => return false,
                        _ => (),
                    }
                }
            }
            true
        };
        timeout(PATIENCE, connected).await.unwrap().then(|| self.stays())
    }

    /// Keeps it there until the tasks are shut down.
    fn stays(mut self) -> Tasks {
        let tasks = Tasks::new();
        tasks.spawn_short("guest", |stop| async move {
            let staying = async {
                loop {
                    self.swarm.select_next_some().await;
                }
            };
            stop.run_until_cancelled(staying).await;
        });
        tasks
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_leave_half_of_the_reservations_of_a_relay_to_the_peers_of_the_config() {
    let friend = Keypair::generate_ed25519();
    let relay = relay_of(&friend).await;
    let (door, tasks) = (relay.address(), Tasks::new());
    let side_door = side_door(&door, &tasks).await;
    let doors = [&door, &side_door].into_iter().cycle();
    let asking = doors.take(GUEST_RESERVATIONS_MAX).map(|door| Guest::stranger().reserves(door));
    let mut strangers: Vec<_> = join_all(asking).await.into_iter().flatten().collect();
    assert_eq!(strangers.len(), GUEST_RESERVATIONS_MAX);
    assert!(Guest::stranger().reserves(&side_door).await.is_none(), "strangers have had their half");
    let friend = Guest::new(friend).reserves(&door).await;
    assert!(friend.is_some(), "the other half is for whom the config names");
    let reserved = |count: usize| move |relay: &Node| relay.nat().reservations == count;
    until("all are counted", || reserved(GUEST_RESERVATIONS_MAX + 1)(&relay)).await;

    strangers.swap_remove(0).shutdown(PATIENCE).await;
    until("one has left", || reserved(GUEST_RESERVATIONS_MAX)(&relay)).await;
    assert!(Guest::stranger().reserves(&side_door).await.is_some(), "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_leave_half_of_the_circuits_of_a_relay_to_the_peers_of_the_config() {
    /// Of one peer; a relay allows no more.
    const CALLS: usize = 8;
    let friend = Keypair::generate_ed25519();
    let relay = relay_of(&friend).await;
    let door = relay.address();
    let called = Guest::stranger();
    let whom = called.id;
    let _called = called.reserves(&door).await.unwrap();
    let calling = (0..GUEST_CIRCUITS_MAX / CALLS).map(|_| Guest::stranger().calls(&door, whom, CALLS));
    let strangers: Vec<_> = join_all(calling).await.into_iter().flatten().collect();
    assert_eq!(strangers.len() * CALLS, GUEST_CIRCUITS_MAX);
    until("all are counted", || relay.nat().circuits == GUEST_CIRCUITS_MAX).await;
    assert!(Guest::stranger().calls(&door, whom, 1).await.is_none(), "strangers have had their half");
    let friend = Guest::new(friend).calls(&door, whom, 1).await;
    assert!(friend.is_some(), "the other half is for whom the config names");
}
