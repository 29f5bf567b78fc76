//! The keepers of roots and records against a scripted network, on a clock that moves only when everybody waits.

mod commit;
mod elsewhere;
mod follow;
mod publish;
mod rotate;
mod writers;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use hyper::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use libp2p::identity::Keypair;
use tempfile::TempDir;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::commit::{Changes, Commits};
use super::leases::Leases;
use super::publish::{Publisher, first_root};
use super::roots::{Follow, Following};
use super::signer::{Signer, SigningKey};
use crate::config::{FollowMode, NamingConfig};
use crate::dag::{Blocks, Tree};
use crate::ipfs::{Ipfs, IpfsError, Peer, PeerBody, Want};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::{Block, TreeName};
use crate::naming::Naming;
use crate::store::{OwnRecord, State, Store, StoreOptions};
use crate::tasks::Tasks;

/// How long a test waits, on the paused clock.
const PATIENCE: Duration = Duration::from_secs(600);
const VALIDITY: Duration = Duration::from_secs(48 * 3600);

fn leases() -> Arc<Leases> {
    Arc::new(Leases::new(std::time::Instant::now()))
}

thread_local! {
    /// What a clock on the wall showed at some moment of the paused one.
    static WALL: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
}

/// A clock on the wall that goes with the paused one.
fn now() -> Timestamp {
    let (then, at) = WALL.get().unwrap_or_else(|| (Timestamp::now(), Instant::now()));
    WALL.set(Some((then, at)));
    then + SignedDuration::try_from(at.elapsed()).unwrap()
}

/// What the network says when it is asked for the record of a name.
#[derive(Clone)]
enum Knows {
    Record(IpnsRecord),
    Nothing,
    /// There is nobody to ask.
    Nobody,
}

/// A record that was to be put.
#[derive(Clone)]
struct Put {
    /// Since the network was made.
    after: Duration,
    record: IpnsRecord,
    taken: bool,
    /// The row of the own name at that moment.
    on_disk: Option<OwnRecord>,
}

/// A network that does what it is told to, and remembers what it was asked to keep. Like Kubo, it refuses a record that
/// is older than what it knows.
struct Network {
    made: Instant,
    state: State,
    far: Store,
    script: Mutex<Script>,
    /// No record is put while somebody has it.
    turn: tokio::sync::Mutex<()>,
}

struct Script {
    knows: Knows,
    /// Of other names than that one.
    others: HashMap<IpnsName, IpnsRecord>,
    takes: bool,
    reachable: bool,
    hidden: HashSet<Cid>,
    puts: Vec<Put>,
}

impl Network {
    fn knows(&self, knows: Knows) {
        self.script.lock().unwrap().knows = knows;
    }

    /// A record of another name than the one it is made for.
    fn knows_also(&self, record: IpnsRecord) {
        self.script.lock().unwrap().others.insert(*record.name(), record);
    }

    fn takes_records(&self, takes: bool) {
        self.script.lock().unwrap().takes = takes;
    }

    /// Whether blocks can be fetched at all.
    fn is_reachable(&self, reachable: bool) {
        self.script.lock().unwrap().reachable = reachable;
    }

    fn hides(&self, blocks: &[Cid]) {
        self.script.lock().unwrap().hidden = blocks.iter().copied().collect();
    }

    fn puts(&self) -> Vec<Put> {
        self.script.lock().unwrap().puts.clone()
    }

    fn taken(&self) -> Vec<IpnsRecord> {
        self.puts().into_iter().filter(|put| put.taken).map(|put| put.record).collect()
    }

    /// Waits until so many records were taken, and returns the last one.
    async fn takes(&self, count: usize) -> IpnsRecord {
        until("a record was taken", || self.taken().len() >= count).await;
        self.taken().swap_remove(count - 1)
    }
}

#[async_trait]
impl Ipfs for Network {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        let script = self.script.lock().unwrap();
        if !script.reachable {
            return Err(IpfsError::NoPeers(want.cid.to_string()));
        }
        let bytes = self.far.blocks().get(want.cid.hash()).unwrap();
        let found = bytes.filter(|_| !script.hidden.contains(&want.cid));
        let found = found.map(|bytes| Block::from_store(want.cid, bytes));
        found.ok_or_else(|| IpfsError::NoProvider(Box::new(want.cid)))
    }

    async fn provide(&self, _: &[Cid]) -> Result<(), IpfsError> {
        Ok(())
    }

    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        let script = self.script.lock().unwrap();
        match &script.knows {
            Knows::Nobody => Err(IpfsError::NoPeers(name.to_string())),
            _ if script.others.contains_key(name) => Ok(script.others[name].clone()),
            Knows::Record(record) if record.name() == name => Ok(record.clone()),
            Knows::Record(_) | Knows::Nothing => Err(IpfsError::NoRecord(Box::new(*name))),
        }
    }

    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        let _turn = self.turn.lock().await;
        let mut script = self.script.lock().unwrap();
        let newest = match (&script.knows, script.others.get(record.name())) {
            (_, Some(known)) => !known.is_better_than(record),
            (Knows::Record(known), _) if known.name() == record.name() => !known.is_better_than(record),
            (Knows::Record(_) | Knows::Nothing | Knows::Nobody, None) => true,
        };
        let taken = script.takes && newest;
        let on_disk = self.state.own_record(record.name()).unwrap();
        script.puts.push(Put { after: self.made.elapsed(), record: record.clone(), taken, on_disk });
        if taken {
            let is_other = matches!(&script.knows, Knows::Record(known) if known.name() != record.name());
            match is_other || script.others.contains_key(record.name()) {
                true => drop(script.others.insert(*record.name(), record.clone())),
                false => script.knows = Knows::Record(record.clone()),
            }
            return Ok(());
        }
        Err(IpfsError::Publish { name: Box::new(*record.name()), stored: 0, wanted: 1 })
    }

    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        watch::Sender::default().subscribe()
    }

    async fn request(&self, _: &Peer, _: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        Err(IpfsError::Closed)
    }
}

/// A key, a store and a network; what runs upon them is started by the test.
struct Desk {
    network: Arc<Network>,
    store: Store,
    tree: Tree,
    /// Makes trees that are to be fetched.
    far: Tree,
    key: Keypair,
    tasks: Tasks,
    updates: broadcast::Sender<IpnsRecord>,
    _folders: [TempDir; 2],
}

impl Desk {
    fn new(knows: Knows) -> Self {
        let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let [store, far] = [0, 1].map(|n| Store::open(folders[n].path(), StoreOptions::default()).unwrap());
        let script = Script {
            knows,
            others: HashMap::new(),
            takes: true,
            reachable: true,
            hidden: HashSet::new(),
            puts: Vec::new(),
        };
        let network = Arc::new(Network {
            made: Instant::now(),
            state: store.state().clone(),
            far: far.clone(),
            script: Mutex::new(script),
            turn: tokio::sync::Mutex::default(),
        });
        Self {
            tree: Tree::new(Blocks::new(store.blocks().clone(), network.clone())),
            far: Tree::new(Blocks::new(far.blocks().clone(), network.clone())),
            network,
            store,
            key: Keypair::generate_ed25519(),
            tasks: Tasks::new(),
            updates: broadcast::channel(16).0,
            _folders: folders,
        }
    }

    fn name(&self) -> IpnsName {
        IpnsName::from_peer_id(self.key.public().to_peer_id())
    }

    fn state(&self) -> &State {
        self.store.state()
    }

    /// Starts what keeps the own root and its record.
    async fn publisher(&self, fresh: bool) -> (Commits, Publisher) {
        self.publisher_with(self.key.clone(), Vec::new(), fresh).await
    }

    async fn publisher_with(&self, key: Keypair, former: Vec<Keypair>, fresh: bool) -> (Commits, Publisher) {
        let ipfs: Arc<dyn Ipfs> = self.network.clone();
        let signer =
            Signer { key: SigningKey::Ours(Box::new(key)), fresh, record_validity: VALIDITY, former };
        let (tree, state) = (self.tree.clone(), self.state().clone());
        let (root, known) = first_root(&ipfs, &tree, &state, &signer).await.unwrap();
        let commits = Commits::start(&self.tasks, tree, state.clone(), leases(), signer.name(), root);
        let told = self.updates.subscribe();
        let publisher = Publisher::start(&self.tasks, ipfs, state, signer, known, commits.clone(), told);
        (commits, publisher)
    }

    /// Starts following the name of the key.
    async fn follow(&self) -> Follow {
        self.follow_by(&NamingConfig::default(), self.name().into()).await
    }

    async fn follow_by(&self, naming: &NamingConfig, name: TreeName) -> Follow {
        let naming = Naming::new(naming).unwrap();
        let (ipfs, tree, state) = (self.network.clone(), self.tree.clone(), self.state().clone());
        let following = Following::new(ipfs, naming, tree, state, now);
        let followed = (name, FollowMode::Tags);
        Follow::start(&self.tasks, following, followed, self.updates.subscribe()).await.unwrap()
    }

    /// Stops what runs, as at the end of a daemon; what is started next finds what is on disk.
    async fn stop(&mut self) {
        assert_eq!(self.tasks.shutdown(Duration::from_secs(10)).await, 0);
        self.tasks = Tasks::new();
    }

    /// A record of the key that is valid for so many hours from now, or was until so many hours ago.
    fn record(&self, sequence: u64, root: &Cid, hours: i64) -> IpnsRecord {
        let until = Timestamp::now() + SignedDuration::from_hours(hours);
        IpnsRecord::sign(&self.key, root, sequence, until, Duration::from_secs(60)).unwrap()
    }

    /// Leaves on disk what a daemon of this key would have.
    fn remember(&self, root: &Cid, record: &IpnsRecord) {
        let signed = record.root().unwrap();
        let row = OwnRecord { sequence: record.sequence(), root: signed, bytes: record.bytes().to_vec() };
        self.state().set_own_record(&self.name(), &row).unwrap();
        self.state().set_root(self.name(), root).unwrap();
    }
}

/// A tree with these files, each of which has its path as content, in the store of `tree`.
async fn grow(tree: &Tree, paths: &[&str]) -> Cid {
    let tasks = Tasks::new();
    let empty = tree.empty().await.unwrap().cid;
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let nobody = IpnsName::from_peer_id(libp2p::PeerId::random());
    let commits = Commits::start(&tasks, tree.clone(), store.state().clone(), leases(), nobody, empty);
    for path in paths {
        push(&commits, path).await;
    }
    tasks.shutdown(Duration::from_secs(10)).await;
    commits.root()
}

/// Commits a file at `path` that has its path as content.
async fn push(commits: &Commits, path: &str) {
    commits.apply(file(path)).await.unwrap();
}

fn file(path: &str) -> Changes {
    let mut changes = Changes::default();
    changes.write(path.to_owned(), path.to_owned().into_bytes().into());
    changes
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    until_within(PATIENCE, what, reached).await;
}

async fn until_within(patience: Duration, what: &str, reached: impl Fn() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < patience, "never: {what}");
        // Each look takes real time: hours are looked at less often.
        tokio::time::sleep(patience / 60_000).await;
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
