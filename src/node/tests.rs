//! Whole nodes in one process, on loopback: records and providers in the DHT of private addresses, and peers that are
//! remembered.

use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::{NatStats, NodeClient, NodeConfig, Reachability, SwarmKey, start};
use crate::ipfs::{Ipfs, IpfsError, Want};
use crate::ipld::block::RAW;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::{Block, Cid};
use crate::store::{Store, StoreOptions};
use crate::tasks::Tasks;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Node {
    pub(super) client: NodeClient,
    store: Store,
    tasks: Tasks,
    key: Keypair,
    folder: TempDir,
}

impl Node {
    async fn start(bootstrap: &[&Node], followed: &[IpnsName]) -> Self {
        Self::upon(TempDir::new().unwrap(), Keypair::generate_ed25519(), bootstrap, followed).await
    }

    async fn upon(folder: TempDir, key: Keypair, bootstrap: &[&Node], followed: &[IpnsName]) -> Self {
        Self::listening("/ip4/127.0.0.1/tcp/0".parse().unwrap(), folder, key, bootstrap, followed).await
    }

    async fn listening(
        address: Multiaddr,
        folder: TempDir,
        key: Keypair,
        bootstrap: &[&Node],
        followed: &[IpnsName],
    ) -> Self {
        let config = Self::config(address, bootstrap, followed);
        let node = Self::configured(folder, key, config).await;
        let knows_all = || node.client.routable() >= bootstrap.len();
        let is_known = || bootstrap.iter().all(|other| other.is_routable());
        until("the peers know of each other", || knows_all() && is_known()).await;
        node
    }

    pub(super) fn config(address: Multiaddr, bootstrap: &[&Node], followed: &[IpnsName]) -> NodeConfig {
        NodeConfig {
            listen: vec![address],
            bootstrap: bootstrap.iter().map(|node| node.address()).collect(),
            followed: followed.to_vec(),
            pubsub: true,
            ..NodeConfig::alone("shoal/test")
        }
    }

    pub(super) async fn configured(folder: TempDir, key: Keypair, config: NodeConfig) -> Self {
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let tasks = Tasks::new();
        let (client, _) = start(&tasks, &store, key.clone(), config).await.unwrap();
        Self { client, store, tasks, key, folder }
    }

    /// One that looks for a way through NATs, by these relays.
    pub(super) async fn behind_nat(relays: &[&Node], swarm_key: Option<SwarmKey>) -> Self {
        let nowhere = Self::config("/ip4/127.0.0.1/tcp/0".parse().unwrap(), &[], &[]);
        let relays = relays.iter().map(|node| node.address()).collect();
        let config = NodeConfig { nat: true, relays, swarm_key, ..nowhere };
        Self::configured(TempDir::new().unwrap(), Keypair::generate_ed25519(), config).await
    }

    async fn relay(swarm_key: Option<SwarmKey>) -> Self {
        let config = Self::config("/ip4/127.0.0.1/tcp/0".parse().unwrap(), &[], &[]);
        let config = NodeConfig { nat: true, relay: true, swarm_key, ..config };
        Self::configured(TempDir::new().unwrap(), Keypair::generate_ed25519(), config).await
    }

    pub(super) fn nat(&self) -> NatStats {
        self.client.stats().nat
    }

    pub(super) fn address(&self) -> Multiaddr {
        self.client.listen_addresses().swap_remove(0)
    }

    fn is_routable(&self) -> bool {
        self.client.routable() > 0
    }

    async fn stop(self) -> (TempDir, Keypair) {
        assert_eq!(self.tasks.shutdown(PATIENCE).await, 0);
        (self.folder, self.key)
    }

    fn keep(&self, block: &Block) {
        self.store.blocks().put(block.cid().hash(), &[block.bytes().clone()]).unwrap();
    }

    async fn resolve(&self, name: &IpnsName) -> Result<u64, IpfsError> {
        self.client.resolve(name).await.map(|record| record.sequence())
    }
}

pub(super) async fn until(what: &str, reached: impl Fn() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}

/// A place to listen at, more than once: as long as the socket lives, nobody is given its port who asks for any.
pub(super) fn reserved_place() -> (TcpSocket, Multiaddr) {
    let socket = TcpSocket::new_v4().unwrap();
    // Nodes have it beside the socket, which does not listen.
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let place = format!("/ip4/127.0.0.1/tcp/{}", socket.local_addr().unwrap().port());
    (socket, place.parse().unwrap())
}

fn block(text: impl Into<Bytes>) -> Block {
    Block::encode(RAW, text.into())
}

/// Somebody who signs records and runs no node.
struct Author(Keypair);

impl Author {
    fn new() -> Self {
        Self(Keypair::generate_ed25519())
    }

    fn name(&self) -> IpnsName {
        IpnsName::from_peer_id(self.0.public().to_peer_id())
    }

    fn signs(&self, sequence: u64) -> IpnsRecord {
        let until = Timestamp::now() + SignedDuration::from_hours(1);
        let root = *block("root").cid();
        IpnsRecord::sign(&self.0, &root, sequence, until, Duration::from_secs(60)).unwrap()
    }
}

/// Leaves a record with a node that has nobody to give it to.
async fn leave(node: &Node, record: &IpnsRecord) {
    assert!(matches!(node.client.publish(record).await, Err(IpfsError::NoPeers(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_records_the_newest_wins_and_who_was_behind_gets_it() {
    let author = Author::new();
    // A node tells of what it was given of a name that it follows.
    let (old, new) = (Node::start(&[], &[author.name()]).await, Node::start(&[], &[]).await);
    leave(&old, &author.signs(1)).await;
    leave(&new, &author.signs(2)).await;
    let mut told = old.client.record_updates().subscribe();
    let asking = Node::start(&[&old, &new], &[]).await;
    assert_eq!(asking.resolve(&author.name()).await.unwrap(), 2);
    let update = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(update.sequence(), 2);

    new.stop().await;
    asking.stop().await;
    let late = Node::start(&[&old], &[]).await;
    assert_eq!(late.resolve(&author.name()).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_record_replaces_no_newer_one_wherever_it_comes_from() {
    let author = Author::new();
    let holder = Node::start(&[], &[author.name()]).await;
    leave(&holder, &author.signs(5)).await;
    let mut told = holder.client.record_updates().subscribe();
    let peer = Node::start(&[&holder], &[]).await;
    peer.client.publish(&author.signs(4)).await.unwrap();
    // Its own, too: a follower that was away puts again what it last knew.
    let refused = holder.client.publish(&author.signs(3)).await.unwrap_err();
    assert!(matches!(refused, IpfsError::Publish { .. }), "{refused}");
    let late = Node::start(&[&holder], &[]).await;
    assert_eq!(late.resolve(&author.name()).await.unwrap(), 5);

    peer.client.publish(&author.signs(6)).await.unwrap();
    let update = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(update.sequence(), 6, "what was older is not told of");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_puts_an_older_record_is_told_of_the_newer_one() {
    let author = Author::new();
    let holder = Node::start(&[], &[]).await;
    leave(&holder, &author.signs(5)).await;
    let other_writer = Node::start(&[&holder], &[author.name()]).await;
    let mut told = other_writer.client.record_updates().subscribe();
    other_writer.client.publish(&author.signs(4)).await.unwrap();
    let update = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(update.sequence(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_records_of_followed_names_are_told_of() {
    let (followed, other) = (Author::new(), Author::new());
    let reader = Node::start(&[], &[followed.name()]).await;
    let mut told = reader.client.record_updates().subscribe();
    let peer = Node::start(&[&reader], &[]).await;
    peer.client.publish(&other.signs(1)).await.unwrap();
    peer.client.publish(&followed.signs(1)).await.unwrap();
    let update = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(*update.name(), followed.name());
    // But they are kept for others.
    peer.stop().await;
    let late = Node::start(&[&reader], &[]).await;
    assert_eq!(late.resolve(&other.name()).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_learned_by_asking_passes_the_record_on() {
    let author = Author::new();
    let first = Node::start(&[], &[]).await;
    leave(&first, &author.signs(7)).await;
    let follower = Node::start(&[&first], &[author.name()]).await;
    assert_eq!(follower.resolve(&author.name()).await.unwrap(), 7);
    first.stop().await;

    let late = Node::start(&[&follower], &[]).await;
    assert_eq!(late.resolve(&author.name()).await.unwrap(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_ask_is_not_the_same_as_nobody_knows() {
    let (author, alone) = (Author::new(), Node::start(&[], &[]).await);
    assert!(matches!(alone.resolve(&author.name()).await, Err(IpfsError::NoPeers(_))));
    let peer = Node::start(&[&alone], &[]).await;
    assert!(matches!(peer.resolve(&author.name()).await, Err(IpfsError::NoRecord(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_put_too_early_reaches_who_comes() {
    let author = Author::new();
    let hub = Node::start(&[], &[]).await;
    let hub_address = hub.address();
    let early = Node::start(&[], &[]).await;
    let (put, ()) = futures::join!(
        async {
            early.client.dial(hub_address).await.unwrap();
            early.client.publish(&author.signs(1)).await
        },
        until("they are connected", || hub.is_routable())
    );
    put.unwrap();
    let late = Node::start(&[&hub], &[]).await;
    assert_eq!(late.resolve(&author.name()).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_found_through_a_third_and_dialled() {
    let hub = Node::start(&[], &[]).await;
    let provider = Node::start(&[&hub], &[]).await;
    let root = block("provided");
    provider.keep(&root);
    provider.client.provide(&[*root.cid()]).await.unwrap();
    until("it is announced", || provider.client.stats().announcements_waiting == 0).await;

    let fetching = Node::start(&[&hub], &[]).await;
    let fetched = fetch(&fetching, *root.cid()).await;
    assert_eq!(fetched, root);
    let peers = fetching.client.stats().peers;
    assert_eq!(peers, 2, "the provider was dialled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_met_by_every_kind_of_key_over_tcp_and_quic() {
    let rsa = include_bytes!("../../tests/fixtures/keys/rsa.key");
    let kept = block("of another");
    for address in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        for key in [
            Keypair::generate_ed25519(),
            Keypair::generate_secp256k1(),
            Keypair::generate_ecdsa(),
            Keypair::from_protobuf_encoding(rsa).unwrap(),
        ] {
            let kind = key.key_type();
            let folder = TempDir::new().unwrap();
            let theirs = Node::listening(address.parse().unwrap(), folder, key, &[], &[]).await;
            theirs.keep(&kept);
            let ours = Node::start(&[&theirs], &[]).await;
            assert_eq!(fetch(&ours, *kept.cid()).await, kept, "{kind:?} at {address}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_a_filtered_network_is_neither_dialled_nor_let_in() {
    for address in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"] {
        let plain = || Node::config(address.parse().unwrap(), &[], &[]);
        let start = |config| Node::configured(TempDir::new().unwrap(), Keypair::generate_ed25519(), config);
        let closed = start(NodeConfig { filters: vec!["127.0.0.0/8".parse().unwrap()], ..plain() }).await;
        let (open, other) = (start(plain()).await, start(plain()).await);
        for (from, to) in [(&closed, &open), (&open, &closed)] {
            from.client.dial(to.address()).await.unwrap();
            let met = from.client.await_peer("a peer").await;
            assert!(matches!(met, Err(IpfsError::NoPeers(_))), "{met:?} at {address}");
        }
        assert_eq!([&closed, &open].map(|node| node.client.stats().peers), [0, 0]);
        other.client.dial(open.address()).await.unwrap();
        other.client.await_peer("a peer").await.unwrap();
    }
}

/// Fetches as one who tries again: the announcement may still be on its way.
async fn fetch(node: &Node, root: Cid) -> Block {
    let trying = async {
        loop {
            match node.client.fetch(Want { cid: root, root }).await {
                Ok(block) => return block,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_many_roots_are_found_through_others() {
    const ROOTS: usize = 2000;
    let hub = Node::start(&[], &[]).await;
    let provider = Node::start(&[&hub], &[]).await;
    let roots: Vec<Block> = (0..ROOTS).map(|n| block(format!("provided {n}"))).collect();
    roots.iter().step_by(ROOTS / 10).for_each(|root| provider.keep(root));
    let cids: Vec<Cid> = roots.iter().map(|root| *root.cid()).collect();
    provider.client.provide(&cids).await.unwrap();
    until("they are announced", || provider.client.stats().announcements_waiting == 0).await;

    for root in roots.iter().step_by(ROOTS / 10) {
        // Somebody who does not know the provider yet.
        let fetching = Node::start(&[&hub], &[]).await;
        assert_eq!(fetch(&fetching, *root.cid()).await, *root);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_wait_until_there_is_somebody_to_tell() {
    let node = Node::start(&[], &[]).await;
    let roots: Vec<Cid> = ["a", "b", "c"].map(|text| *block(text).cid()).to_vec();
    node.client.provide(&roots).await.unwrap();
    until("they are queued", || node.client.stats().announcements_waiting == 3).await;
    let _peer = Node::start(&[&node], &[]).await;
    until("they are announced", || node.client.stats().announcements_waiting == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_the_last_run_are_found_again() {
    let hub = Node::start(&[], &[]).await;
    let node = Node::start(&[&hub], &[]).await;
    let (folder, key) = node.stop().await;
    let node = Node::upon(folder, key, &[], &[]).await;
    until("they are connected again", || node.is_routable()).await;
    assert_eq!(node.client.stats().peers, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_lost_is_dialled_again() {
    let (_reserved, address) = reserved_place();
    let (folder, key) = (TempDir::new().unwrap(), Keypair::generate_ed25519());
    let hub = Node::listening(address.clone(), folder, key, &[], &[]).await;
    let node = Node::start(&[&hub], &[]).await;
    let (folder, key) = hub.stop().await;
    until("it is noticed", || node.client.stats().peers == 0).await;

    let _hub = Node::listening(address, folder, key, &[], &[]).await;
    until("they are connected again", || node.is_routable()).await;
}

/// Two that know a relay: one is reached by it, and the connection becomes direct, with nothing lost on the way.
async fn meet_by_a_relay(swarm_key: Option<SwarmKey>) {
    let relay = Node::relay(swarm_key).await;
    let holder = Node::behind_nat(&[&relay], swarm_key).await;
    let (holds, grants) = (|| holder.nat().relayed_addresses.len(), || relay.nat().reservations);
    until("the relay passes connections on", || (holds(), grants()) == (1, 1)).await;
    assert_eq!(relay.nat().relayed_addresses.len(), 0);
    assert_eq!(holder.nat().reachability, Reachability::Unknown);

    let root = block("held behind a NAT");
    holder.keep(&root);
    let fetching = Node::behind_nat(&[&relay], swarm_key).await;
    fetching.client.dial(holder.nat().relayed_addresses.swap_remove(0)).await.unwrap();
    assert_eq!(fetch(&fetching, *root.cid()).await, root);
    let is_direct = |node: &Node| (node.nat().direct_peers, node.nat().relayed_peers) == (2, 0);
    until("they are connected directly", || is_direct(&fetching) && is_direct(&holder)).await;
    until("the relay passes nothing on any more", || relay.nat().circuits == 0).await;
    assert!(is_direct(&fetching) && is_direct(&holder));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_reached_by_a_relay_and_then_directly() {
    meet_by_a_relay(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_network_has_relays_too() {
    meet_by_a_relay(Some(SwarmKey(libp2p::pnet::PreSharedKey::new([7; 32])))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_comes_back_is_asked_again() {
    let (_reserved, address) = reserved_place();
    let config = || NodeConfig { nat: true, relay: true, ..Node::config(address.clone(), &[], &[]) };
    let relay = Node::configured(TempDir::new().unwrap(), Keypair::generate_ed25519(), config()).await;
    let holder = Node::behind_nat(&[&relay], None).await;
    until("the relay passes connections on", || holder.nat().relayed_addresses.len() == 1).await;
    let (folder, key) = relay.stop().await;
    until("it is noticed", || holder.nat().relayed_addresses.is_empty()).await;
    let _relay = Node::configured(folder, key, config()).await;
    until("the relay passes connections on again", || holder.nat().relayed_addresses.len() == 1).await;
}
