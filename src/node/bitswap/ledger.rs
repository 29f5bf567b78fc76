//! What each peer wants of us, and what it gets next. Pure: look-ups and sending are the caller's.
//!
//! A want waits in its peer's queue until it is taken, and is forgotten when it was answered with the block (or HAVE).
//! What we lack stays noted, unanswered or answered by DONT_HAVE, in case it is stored later; a want of a peer never
//! makes us fetch. All of it is bounded per peer and in all, and gone when the peer is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use libp2p::PeerId;

use super::message::{Entry, WantType};
use crate::ipld::Cid;

/// Wants noted of one peer; what comes above it pushes out what we lack, or is ignored.
pub const WANTS_PER_PEER_MAX: usize = 1024;
/// Wants noted of all peers together.
pub const WANTS_MAX: usize = 64 * 1024;

/// The wants of all peers.
#[derive(Default)]
pub struct Ledgers {
    peers: HashMap<PeerId, Ledger>,
    wants: usize,
}

/// A want that is being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub cid: Cid,
    pub want_type: WantType,
    pub send_dont_have: bool,
    turn: u64,
    place: Place,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer has its answer.
    Served,
    /// We do not have the block.
    Missing,
    /// Not looked up: it goes back to its place.
    NotReached,
}

/// Presences first, since they are small and somebody waits to decide; then by priority, then in order.
type Place = (WantTypeOrder, Reverse<i32>, u64);
type WantTypeOrder = Reverse<WantType>;

#[derive(Default)]
struct Ledger {
    wants: HashMap<Cid, Wanted>,
    queue: BTreeMap<Place, Cid>,
    turn: u64,
}

struct Wanted {
    want_type: WantType,
    priority: i32,
    send_dont_have: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Queued(Place),
    Taken(u64),
    Missing,
}

impl Ledgers {
    /// Notes a wantlist.
    pub fn receive(&mut self, peer: PeerId, full: bool, entries: Vec<Entry>) {
        if entries.is_empty() && !(full && self.peers.contains_key(&peer)) {
            return;
        }
        let ledger = self.peers.entry(peer).or_default();
        let before = ledger.wants.len();
        if full {
            ledger.wants.clear();
            ledger.queue.clear();
        }
        let room_elsewhere = WANTS_MAX.saturating_sub(self.wants - before);
        for entry in entries {
            match entry {
                Entry::Cancel(cid) => ledger.cancel(&cid),
                Entry::Want { cid, want_type, priority, send_dont_have } => {
                    let known = ledger.wants.contains_key(&cid);
                    if known || (ledger.wants.len() < room_elsewhere && ledger.make_room()) {
                        ledger.want(cid, want_type, priority, send_dont_have);
                    }
                }
            }
        }
        self.wants = self.wants - before + ledger.wants.len();
        if ledger.wants.is_empty() {
            self.peers.remove(&peer);
        }
    }

    /// Takes up to `max` wants off the peer's queue. Each must be given back by [`Ledgers::finish`].
    pub fn take(&mut self, peer: &PeerId, max: usize) -> Vec<Task> {
        let Some(ledger) = self.peers.get_mut(peer) else { return Vec::new() };
        let mut tasks = Vec::new();
        while tasks.len() < max
            && let Some((place, cid)) = ledger.queue.pop_first()
        {
            let Some(wanted) = ledger.wants.get_mut(&cid) else { continue };
            ledger.turn += 1;
            wanted.state = State::Taken(ledger.turn);
            let (want_type, send_dont_have) = (wanted.want_type, wanted.send_dont_have);
            tasks.push(Task { cid, want_type, send_dont_have, turn: ledger.turn, place });
        }
        tasks
    }

    /// Ends a task. A want that was cancelled or renewed meanwhile stays as the peer left it.
    pub fn finish(&mut self, peer: &PeerId, task: &Task, outcome: Outcome) {
        let Some(ledger) = self.peers.get_mut(peer) else { return };
        let Some(wanted) = ledger.wants.get_mut(&task.cid) else { return };
        if wanted.state != State::Taken(task.turn) {
            return;
        }
        match outcome {
            Outcome::Missing => wanted.state = State::Missing,
            Outcome::NotReached => {
                wanted.state = State::Queued(task.place);
                ledger.queue.insert(task.place, task.cid);
            }
            Outcome::Served => {
                ledger.wants.remove(&task.cid);
                self.wants -= 1;
                if ledger.wants.is_empty() {
                    self.peers.remove(peer);
                }
            }
        }
    }

    /// A block came into the store: queues it for those who lacked an answer, and names them.
    pub fn stored(&mut self, cid: &Cid) -> Vec<PeerId> {
        let mut waiting = Vec::new();
        for (peer, ledger) in &mut self.peers {
            let Some(wanted) = ledger.wants.get(cid) else { continue };
            if wanted.state == State::Missing {
                let (want_type, priority, send_dont_have) =
                    (wanted.want_type, wanted.priority, wanted.send_dont_have);
                ledger.want(*cid, want_type, priority, send_dont_have);
                waiting.push(*peer);
            }
        }
        waiting
    }

    /// Whether something waits to be taken.
    pub fn owes(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|ledger| !ledger.queue.is_empty())
    }

    pub fn forget(&mut self, peer: &PeerId) {
        if let Some(ledger) = self.peers.remove(peer) {
            self.wants -= ledger.wants.len();
        }
    }

    /// Wants noted, of all peers.
    pub fn len(&self) -> usize {
        self.wants
    }

    pub fn is_empty(&self) -> bool {
        self.wants == 0
    }
}

impl Ledger {
    fn want(&mut self, cid: Cid, want_type: WantType, priority: i32, send_dont_have: bool) {
        self.cancel(&cid);
        self.turn += 1;
        let place = (Reverse(want_type), Reverse(priority), self.turn);
        self.queue.insert(place, cid);
        self.wants.insert(cid, Wanted { want_type, priority, send_dont_have, state: State::Queued(place) });
    }

    fn cancel(&mut self, cid: &Cid) {
        if let Some(Wanted { state: State::Queued(place), .. }) = self.wants.remove(cid) {
            self.queue.remove(&place);
        }
    }

    /// Makes room for one more want, at the cost of one that we could not serve.
    fn make_room(&mut self) -> bool {
        if self.wants.len() < WANTS_PER_PEER_MAX {
            return true;
        }
        // Nothing is missing while all of them wait, so that a flood of new wants costs one comparison each.
        if self.queue.len() == self.wants.len() {
            return false;
        }
        let missing =
            self.wants.iter().find(|(_, wanted)| wanted.state == State::Missing).map(|(cid, _)| *cid);
        missing.is_some_and(|cid| self.wants.remove(&cid).is_some())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::ipld::block::{Block, RAW};

    fn cid(name: u32) -> Cid {
        *Block::encode(RAW, Bytes::copy_from_slice(&name.to_be_bytes())).cid()
    }

    fn want(name: u32, want_type: WantType, priority: i32) -> Entry {
        Entry::Want { cid: cid(name), want_type, priority, send_dont_have: true }
    }

    fn taken(ledgers: &mut Ledgers, peer: &PeerId) -> Vec<Cid> {
        let tasks = ledgers.take(peer, usize::MAX);
        tasks.iter().for_each(|task| ledgers.finish(peer, task, Outcome::Served));
        tasks.iter().map(|task| task.cid).collect()
    }

    #[test]
    fn presences_go_first_then_blocks_by_priority_then_in_order() {
        let (mut ledgers, peer) = (Ledgers::default(), PeerId::random());
        let entries = vec![
            want(1, WantType::Block, 1),
            want(2, WantType::Block, 9),
            want(3, WantType::Have, 0),
            want(4, WantType::Block, 9),
        ];
        ledgers.receive(peer, false, entries);
        assert_eq!(taken(&mut ledgers, &peer), [cid(3), cid(2), cid(4), cid(1)]);
        assert!(ledgers.is_empty());
    }

    #[test]
    fn a_block_served_is_served_again_when_wanted_again() {
        let (mut ledgers, peer) = (Ledgers::default(), PeerId::random());
        for _ in 0..3 {
            ledgers.receive(peer, false, vec![want(1, WantType::Block, 1)]);
            assert_eq!(taken(&mut ledgers, &peer), [cid(1)]);
        }
    }

    #[test]
    fn a_want_renewed_while_it_is_answered_is_answered_again() {
        let (mut ledgers, peer) = (Ledgers::default(), PeerId::random());
        ledgers.receive(peer, false, vec![want(1, WantType::Have, 1)]);
        let task = ledgers.take(&peer, 1)[0];
        ledgers.receive(peer, false, vec![want(1, WantType::Block, 1)]);
        ledgers.finish(&peer, &task, Outcome::Served);
        let task = ledgers.take(&peer, 1)[0];
        assert_eq!(task.want_type, WantType::Block);
    }

    #[test]
    fn a_cancelled_want_is_not_taken_and_a_full_wantlist_replaces() {
        let (mut ledgers, peer) = (Ledgers::default(), PeerId::random());
        ledgers.receive(peer, false, vec![want(1, WantType::Block, 1), want(2, WantType::Block, 1)]);
        ledgers.receive(peer, false, vec![Entry::Cancel(cid(1))]);
        ledgers.receive(peer, true, vec![want(3, WantType::Block, 1)]);
        assert_eq!(taken(&mut ledgers, &peer), [cid(3)]);
    }

    #[test]
    fn what_we_lack_is_sent_when_it_is_stored() {
        let (mut ledgers, peer) = (Ledgers::default(), PeerId::random());
        ledgers.receive(peer, false, vec![want(1, WantType::Block, 1)]);
        let task = ledgers.take(&peer, 1)[0];
        ledgers.finish(&peer, &task, Outcome::Missing);
        assert!(!ledgers.owes(&peer));
        assert_eq!(ledgers.stored(&cid(1)), [peer]);
        assert_eq!(taken(&mut ledgers, &peer), [cid(1)]);
        assert!(ledgers.stored(&cid(1)).is_empty());
    }

    #[test]
    fn a_task_not_reached_goes_back_to_its_place() {
        let (mut ledgers, peer) = (Ledgers::default(), PeerId::random());
        ledgers.receive(peer, false, vec![want(1, WantType::Block, 5), want(2, WantType::Block, 1)]);
        let task = ledgers.take(&peer, 1)[0];
        ledgers.finish(&peer, &task, Outcome::NotReached);
        assert_eq!(taken(&mut ledgers, &peer), [cid(1), cid(2)]);
    }

    #[test]
    fn a_wantlist_without_end_is_cut_and_missing_wants_make_room() {
        let (mut ledgers, peer) = (Ledgers::default(), PeerId::random());
        for name in 0..3000 {
            ledgers.receive(peer, false, vec![want(name, WantType::Block, 1)]);
        }
        assert_eq!(ledgers.len(), WANTS_PER_PEER_MAX);
        for task in ledgers.take(&peer, usize::MAX) {
            ledgers.finish(&peer, &task, Outcome::Missing);
        }
        ledgers.receive(peer, false, vec![want(5000, WantType::Block, 1)]);
        assert_eq!(taken(&mut ledgers, &peer), [cid(5000)]);
        ledgers.forget(&peer);
        assert!(ledgers.is_empty());
    }

    #[test]
    fn many_peers_share_one_bound() {
        let mut ledgers = Ledgers::default();
        for _ in 0..WANTS_MAX / WANTS_PER_PEER_MAX + 3 {
            let entries = (0..WANTS_PER_PEER_MAX as u32).map(|name| want(name, WantType::Have, 1)).collect();
            ledgers.receive(PeerId::random(), false, entries);
        }
        assert_eq!(ledgers.len(), WANTS_MAX);
    }

    proptest! {
        #[test]
        fn the_counts_agree_whatever_peers_do(steps in proptest::collection::vec((0..4u8, 0..3usize, 0..6u32), 0..200)) {
            let peers = [PeerId::random(), PeerId::random(), PeerId::random()];
            let mut ledgers = Ledgers::default();
            let mut tasks = Vec::new();
            for (step, peer, name) in steps {
                let peer = peers[peer];
                match step {
                    0 => ledgers.receive(peer, name == 0, vec![want(name, WantType::Block, name as i32)]),
                    1 => ledgers.receive(peer, false, vec![Entry::Cancel(cid(name))]),
                    2 => tasks.extend(ledgers.take(&peer, 2).into_iter().map(|task| (peer, task))),
                    _ => for (peer, task) in tasks.drain(..) {
                        let outcome = [Outcome::Served, Outcome::Missing, Outcome::NotReached][name as usize % 3];
                        ledgers.finish(&peer, &task, outcome);
                    },
                }
                let wants: usize = ledgers.peers.values().map(|ledger| ledger.wants.len()).sum();
                prop_assert_eq!(wants, ledgers.len());
                for ledger in ledgers.peers.values() {
                    prop_assert!(ledger.queue.values().all(|cid| ledger.wants.contains_key(cid)));
                }
            }
        }
    }
}
