//! IPNS over pubsub: records pushed over gossipsub as they change, and fetched from who comes to a topic.
//!
//! What Kubo has as its IPNS PubSub router (<https://specs.ipfs.tech/ipns/ipns-pubsub-router/>). `Pubsub` owns what is
//! known: the names, the newest record of each, who has come to which topic, and how much each peer may still say. Pure
//! but for its owner's clock; what is done with it is in `events`.

mod events;
mod fetch;
mod gossip;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use libp2p::PeerId;
use libp2p::gossipsub::TopicHash;
use tokio::sync::{mpsc, watch};

use super::streams::Incoming;
use crate::ipld::ipns::{IpnsError, IpnsName, IpnsRecord};
use crate::tasks::Tasks;
pub(super) use fetch::FETCH;
#[doc(hidden)]
pub use fetch::fuzz;
use fetch::{FetchError, Newest};
pub(super) use gossip::{Gossip, build};

/// Names that have a topic. Further ones are followed by the DHT alone.
pub(super) const TOPICS_MAX: usize = 256;
/// Records that a peer may bring at once, and further ones in each second. Kubo says all of its topics again every ten
/// minutes.
const BURST_PER_PEER_MAX: u32 = 512;
const PER_PEER_PER_SECOND: u32 = 8;
/// Who is to be found on a topic; with fewer, more are looked for.
const PEERS_WANTED: usize = 4;
/// Pauses between searches for them: doubled from the first to the second.
const SEARCH_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));

/// The answer of a peer that was asked for a record.
type Fetched = (PeerId, IpnsName, Result<Option<Bytes>, FetchError>);

/// What is known of the topics. Without names nothing ever happens here.
pub(super) struct Pubsub {
    topics: HashMap<TopicHash, IpnsName>,
    newest: watch::Sender<Newest>,
    members: HashMap<PeerId, Member>,
    searches: HashMap<IpnsName, Search>,
    /// One at a time of each peer.
    fetching: FuturesUnordered<BoxFuture<'static, Fetched>>,
}

/// A connected peer that has come to a topic, or said something there.
struct Member {
    topics: HashSet<IpnsName>,
    /// Names that it is still to be asked for.
    to_ask: VecDeque<IpnsName>,
    is_asked: bool,
    allowance: Allowance,
}

/// What a peer may still say.
struct Allowance {
    left: u32,
    /// When it was last filled up.
    at: Instant,
}

/// When others are looked for on a topic.
struct Search {
    next: Instant,
    pause: Duration,
}

/// What a record is worth that somebody brings.
#[derive(Debug)]
pub(super) enum Worth {
    /// Better than what was known.
    Newer(IpnsRecord),
    /// Known, older, or over.
    Nothing,
    Bad(IpnsError),
}

impl Pubsub {
    /// The names that get a topic: the first ones, each once.
    pub(super) fn names(followed: &[IpnsName]) -> Vec<IpnsName> {
        let mut seen = HashSet::new();
        let names: Vec<IpnsName> = followed.iter().filter(|name| seen.insert(**name)).copied().collect();
        if names.len() > TOPICS_MAX {
            tracing::warn!(names = names.len() - TOPICS_MAX, "names without pubsub: they are polled only");
        }
        names.into_iter().take(TOPICS_MAX).collect()
    }

    /// `names`: as given to [`build`].
    pub(super) fn new(names: &[IpnsName], now: Instant) -> Self {
        Self {
            topics: names.iter().map(|name| (gossip::topic(name).hash(), *name)).collect(),
            newest: watch::Sender::default(),
            members: HashMap::new(),
            searches: names.iter().map(|name| (*name, Search { next: now, pause: SEARCH_PAUSE.0 })).collect(),
            fetching: FuturesUnordered::new(),
        }
    }

    /// Starts answering those who ask for records.
    pub(super) fn serve(&self, tasks: &Tasks, asked: mpsc::Receiver<Incoming>) {
        let newest = self.newest.subscribe();
        tasks.spawn("fetch", |stop| fetch::serve(asked, newest, stop));
    }

    /// The next answer of a peer that was asked; `None` while none is. May be dropped midway.
    pub(super) async fn fetched(&mut self) -> Option<Fetched> {
        self.fetching.next().await
    }

    /// Peers that have come to a topic.
    pub(super) fn peers(&self) -> usize {
        self.members.values().filter(|member| !member.topics.is_empty()).count()
    }

    fn any_on(&self, name: &IpnsName) -> Option<PeerId> {
        let on = self.members.iter().find(|(_, member)| member.topics.contains(name));
        on.map(|(peer, _)| *peer)
    }

    fn has(&self, name: &IpnsName) -> bool {
        self.searches.contains_key(name)
    }

    /// Weighs what somebody brings for a name against the clock and what is known.
    fn weigh(&self, name: &IpnsName, value: &[u8], now: Timestamp) -> Worth {
        let newest = self.newest.borrow();
        let known = newest.get(name).filter(|known| known.check_validity(now).is_ok());
        if known.is_some_and(|known| known.bytes() == value) {
            return Worth::Nothing;
        }
        match IpnsRecord::decode(name, value) {
            Err(error) => Worth::Bad(error),
            // Its bringer's clock may differ.
            Ok(record) if record.check_validity(now).is_err() => Worth::Nothing,
            Ok(record) if known.is_none_or(|known| record.is_better_than(known)) => Worth::Newer(record),
            Ok(_) => Worth::Nothing,
        }
    }

    /// Remembers a valid record of a name that has a topic; whether it is better than what was known.
    fn learn(&self, record: &IpnsRecord, now: Timestamp) -> bool {
        if !self.has(record.name()) {
            return false;
        }
        let newest = self.newest.borrow().clone();
        let known = newest.get(record.name()).filter(|known| known.check_validity(now).is_ok());
        let newer = known.is_none_or(|known| record.is_better_than(known));
        if newer {
            let mut next = HashMap::clone(&newest);
            next.insert(*record.name(), record.clone());
            self.newest.send_replace(Arc::new(next));
        }
        newer
    }

    /// A connected peer says something: whether it still may.
    fn admits(&mut self, peer: PeerId, now: Instant) -> bool {
        self.member(peer, now).allowance.take(now)
    }

    fn member(&mut self, peer: PeerId, now: Instant) -> &mut Member {
        self.members.entry(peer).or_insert_with(|| Member {
            topics: HashSet::new(),
            to_ask: VecDeque::new(),
            is_asked: false,
            allowance: Allowance { left: BURST_PER_PEER_MAX, at: now },
        })
    }

    /// A connected peer has come to a topic: it is to be asked what it knows.
    fn joined(&mut self, peer: PeerId, topic: &TopicHash, now: Instant) {
        let Some(name) = self.topics.get(topic).copied() else { return };
        let member = self.member(peer, now);
        member.topics.insert(name);
        if !member.to_ask.contains(&name) {
            member.to_ask.push_back(name);
        }
    }

    fn parted(&mut self, peer: &PeerId, topic: &TopicHash) {
        if let (Some(name), Some(member)) = (self.topics.get(topic), self.members.get_mut(peer)) {
            member.topics.remove(name);
        }
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId) {
        self.members.remove(peer);
    }

    /// What a peer is to be asked for next, unless it is being asked already.
    fn next_to_ask(&mut self, peer: &PeerId) -> Option<IpnsName> {
        let member = self.members.get_mut(peer).filter(|member| !member.is_asked)?;
        let name = member.to_ask.pop_front()?;
        member.is_asked = true;
        Some(name)
    }

    fn answered(&mut self, peer: &PeerId) {
        if let Some(member) = self.members.get_mut(peer) {
            member.is_asked = false;
        }
    }

    /// The names on whose topics there are too few, and for which others are to be looked for now.
    fn lonely(&mut self, now: Instant) -> Vec<IpnsName> {
        let members = &self.members;
        let due = self.searches.iter_mut().filter(|(_, search)| search.next <= now);
        due.filter_map(|(name, search)| {
            let there = members.values().filter(|member| member.topics.contains(name)).count();
            if there >= PEERS_WANTED {
                *search = Search { next: now + SEARCH_PAUSE.0, pause: SEARCH_PAUSE.0 };
                return None;
            }
            search.next = now + search.pause;
            search.pause = (search.pause * 2).min(SEARCH_PAUSE.1);
            Some(*name)
        })
        .collect()
    }
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let seconds = u32::try_from(now.saturating_duration_since(self.at).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.left =
                self.left.saturating_add(seconds.saturating_mul(PER_PEER_PER_SECOND)).min(BURST_PER_PEER_MAX);
            self.at = now;
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or_default();
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use libp2p::identity::Keypair;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn name_of(key: &Keypair) -> IpnsName {
        IpnsName::from_peer_id(key.public().to_peer_id())
    }

    fn record(key: &Keypair, sequence: u64, hours: i64) -> IpnsRecord {
        let root = "bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra".parse().unwrap();
        let until = now() + SignedDuration::from_hours(hours);
        IpnsRecord::sign(key, &root, sequence, until, Duration::from_secs(60)).unwrap()
    }

    fn on(key: &Keypair) -> Pubsub {
        Pubsub::new(&[name_of(key)], Instant::now())
    }

    #[test]
    fn only_what_is_better_than_the_newest_is_news() {
        let (key, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let (pubsub, name) = (on(&key), name_of(&key));
        let weigh = |value: &[u8]| pubsub.weigh(&name, value, now());
        let known = record(&key, 5, 24);
        assert!(matches!(weigh(known.bytes()), Worth::Newer(_)));
        assert!(pubsub.learn(&known, now()));
        assert!(!pubsub.learn(&known, now()) && !pubsub.learn(&record(&key, 4, 24), now()));
        for nothing in [known.clone(), record(&key, 4, 24), record(&key, 9, -1)] {
            assert!(matches!(weigh(nothing.bytes()), Worth::Nothing), "{}", nothing.sequence());
        }
        for bad in [b"junk".to_vec(), Vec::new(), record(&other, 9, 24).bytes().to_vec(), vec![0; 20_000]] {
            assert!(matches!(weigh(&bad), Worth::Bad(_)));
        }
        assert!(matches!(weigh(record(&key, u64::MAX, 24).bytes()), Worth::Newer(_)));
        assert!(!pubsub.learn(&record(&other, 9, 24), now()), "a name without a topic");
        // What is over stands in the way of nothing.
        let later = now() + SignedDuration::from_hours(30);
        assert!(matches!(pubsub.weigh(&name, record(&key, 1, 48).bytes(), later), Worth::Newer(_)));
    }

    #[test]
    fn a_peer_may_say_so_much_and_no_more() {
        let (mut pubsub, peer, start) = (on(&Keypair::generate_ed25519()), PeerId::random(), Instant::now());
        let mut admitted = |after_s: u64| {
            let now = start + Duration::from_secs(after_s);
            (0..2 * BURST_PER_PEER_MAX).filter(|_| pubsub.admits(peer, now)).count()
        };
        assert_eq!(admitted(0), BURST_PER_PEER_MAX as usize);
        assert_eq!(admitted(1), PER_PEER_PER_SECOND as usize);
        assert_eq!(admitted(1), 0);
        assert_eq!(admitted(1_000_000_000), BURST_PER_PEER_MAX as usize);
    }

    #[test]
    fn a_newcomer_is_asked_for_one_name_at_a_time_and_each_once() {
        let keys: Vec<Keypair> = (0..3).map(|_| Keypair::generate_ed25519()).collect();
        let names: Vec<IpnsName> = keys.iter().map(name_of).collect();
        let (now, peer) = (Instant::now(), PeerId::random());
        let mut pubsub = Pubsub::new(&names, now);
        for name in names.iter().chain(&names) {
            pubsub.joined(peer, &gossip::topic(name).hash(), now);
        }
        pubsub.joined(peer, &gossip::topic(&name_of(&Keypair::generate_ed25519())).hash(), now);
        for name in &names {
            assert_eq!(pubsub.next_to_ask(&peer), Some(*name));
            assert_eq!(pubsub.next_to_ask(&peer), None, "it has not answered yet");
            pubsub.answered(&peer);
        }
        assert_eq!(pubsub.next_to_ask(&peer), None);
        assert_eq!(pubsub.peers(), 1);
        names.iter().for_each(|name| pubsub.parted(&peer, &gossip::topic(name).hash()));
        assert_eq!(pubsub.peers(), 0);
        pubsub.disconnected(&peer);
        assert!(pubsub.members.is_empty());
    }

    #[test]
    fn company_is_looked_for_ever_less_often_until_there_is_enough() {
        let (key, start) = (Keypair::generate_ed25519(), Instant::now());
        let (mut pubsub, topic) = (on(&key), gossip::topic(&name_of(&key)).hash());
        let searches = |pubsub: &mut Pubsub, from_s: u64, to_s: u64| {
            let due = (from_s..to_s).filter(|s| !pubsub.lonely(start + Duration::from_secs(*s)).is_empty());
            due.collect::<Vec<u64>>()
        };
        assert_eq!(searches(&mut pubsub, 1, 100), [1, 6, 16, 36, 76]);
        let peers: Vec<PeerId> = (0..PEERS_WANTED).map(|_| PeerId::random()).collect();
        peers.iter().for_each(|peer| pubsub.joined(*peer, &topic, start));
        assert_eq!(searches(&mut pubsub, 100, 1000), [] as [u64; 0]);
        pubsub.disconnected(&peers[0]);
        assert_eq!(searches(&mut pubsub, 1000, 1030).len(), 3, "soon again when somebody left");
    }

    #[test]
    fn the_topics_are_bounded() {
        let key = Keypair::generate_ed25519();
        let names: Vec<IpnsName> =
            (0..2 * TOPICS_MAX).map(|_| IpnsName::from_peer_id(PeerId::random())).collect();
        assert_eq!(Pubsub::names(&names), names[..TOPICS_MAX]);
        assert_eq!(Pubsub::names(&[name_of(&key), name_of(&key)]), [name_of(&key)]);
    }
}
