//! Which peer is asked for a want next.

use std::time::{Duration, Instant};

use libp2p::PeerId;

use super::{Ask, Asked, FetchId, Sessions};
use crate::ipld::{Cid, Multihash};
use crate::node::bitswap::message::{Entry, WantType};

/// Peers asked for one block by broadcast.
const BROADCAST_MAX: usize = 64;
/// Wants that are well under way with which each stranger is tried, in case it is a source too.
const TRIALS_MAX: u32 = 8;
/// Queued wants that are tried again when something changed.
const FILL_MAX: usize = 32;
/// How soon a second peer is asked when the first was only a guess, and the bounds when it was not.
const HEDGE_GUESS: Duration = Duration::from_millis(300);
const HEDGE_MIN: Duration = Duration::from_secs(1);
const HEDGE_MAX: Duration = Duration::from_secs(10);

enum Routed {
    Asked,
    /// Somebody has it, or should, but may not be asked for more now.
    NoRoom,
    Nobody,
}

impl Sessions {
    /// Makes sure that a want is under way as far as it can be: a want-block to the best peer, else want-haves to all,
    /// else a search.
    pub(super) fn advance(&mut self, key: Multihash, now: Instant) {
        let Some(want) = self.wants.get(&key) else { return };
        if want.asks.values().any(|ask| ask.state == Asked::Block) {
            return;
        }
        match self.route(key, now) {
            Routed::Asked => return,
            Routed::NoRoom => return self.enqueue(key),
            Routed::Nobody => (),
        }
        self.broadcast(key, now);
        if let Some(want) = self.wants.get(&key)
            && !want.asks.values().any(|ask| ask.state.is_open())
        {
            self.search(want.root, now);
        }
    }

    fn enqueue(&mut self, key: Multihash) {
        if let Some(want) = self.wants.get_mut(&key)
            && !std::mem::replace(&mut want.queued, true)
        {
            self.queued.push_back(key);
        }
    }

    /// Asks a second peer when the first is late; whoever is first wins.
    pub(super) fn hedge(&mut self, key: Multihash, now: Instant) {
        let Some(want) = self.wants.get(&key) else { return };
        let mut open = want.asks.values().filter(|ask| ask.state == Asked::Block);
        if let (Some(ask), None) = (open.next(), open.next())
            && now >= ask.due
        {
            self.route(key, now);
        }
    }

    /// Sends the want-block to the peer that has the block, or should, and will have sent it soonest.
    fn route(&mut self, key: Multihash, now: Instant) -> Routed {
        let Some((want, session)) = self.want_and_session(&key) else { return Routed::Nobody };
        let members = session.members.iter().filter(|(_, member)| member.is_good()).map(|(peer, _)| peer);
        let havers = want.asks.iter().filter(|(_, ask)| ask.state == Asked::Has).map(|(peer, _)| peer);
        let (mut best, mut no_room) = (None, false);
        for peer in members.chain(havers) {
            let Some(source) = self.sources.get(peer) else { continue };
            let penalty = match want.asks.get(peer).map(|ask| ask.state) {
                Some(Asked::Block | Asked::Lacks | Asked::Silent) => continue,
                Some(Asked::Has) => Duration::ZERO,
                Some(Asked::Have) | None => session.penalty(peer),
            };
            if !source.has_room(session.block_bytes) {
                no_room |= !source.stalled;
                continue;
            }
            let cost = source.expected(session.block_bytes) + penalty;
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((*peer, cost));
            }
        }
        match best {
            Some((peer, _)) => {
                self.ask(key, peer, WantType::Block, now);
                Routed::Asked
            }
            None if no_room => Routed::NoRoom,
            None => Routed::Nobody,
        }
    }

    /// Asks those who were not asked: the most promising for the block, the others whether they have it.
    fn broadcast(&mut self, key: Multihash, now: Instant) {
        let Some((want, session)) = self.want_and_session(&key) else { return };
        let mut peers: Vec<(u64, Duration, PeerId)> = self
            .sources
            .iter()
            .filter(|(peer, source)| {
                source.takes_wants() && !session.is_dropped(peer) && !want.asks.contains_key(peer)
            })
            .map(|(peer, source)| (source.delivered, source.expected(session.block_bytes), *peer))
            .collect();
        peers.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        peers.truncate(BROADCAST_MAX.saturating_sub(want.asks.len()));
        let block_bytes = session.block_bytes;
        let guess = peers.iter().position(|(_, _, peer)| {
            self.sources.get(peer).is_some_and(|source| source.has_room(block_bytes))
        });
        for (position, (_, _, peer)) in peers.into_iter().enumerate() {
            let want_type = if Some(position) == guess { WantType::Block } else { WantType::Have };
            self.ask(key, peer, want_type, now);
        }
    }

    /// Asks strangers whether they have what members are asked for.
    pub(super) fn try_strangers(&mut self, key: Multihash, now: Instant) {
        let Some((want, session)) = self.want_and_session(&key) else { return };
        let strangers: Vec<PeerId> = self
            .sources
            .iter()
            .filter(|(peer, source)| {
                let tried = session.trials.get(peer).is_some_and(|trials| *trials >= TRIALS_MAX);
                let known = session.is_good(peer) || session.is_dropped(peer);
                source.takes_wants() && !tried && !known && !want.asks.contains_key(peer)
            })
            .map(|(peer, _)| *peer)
            .take(BROADCAST_MAX.saturating_sub(want.asks.len()))
            .collect();
        let root = want.root;
        for peer in strangers {
            self.ask(key, peer, WantType::Have, now);
            if let Some(session) = self.sessions.get_mut(&root) {
                *session.trials.entry(peer).or_default() += 1;
            }
        }
    }

    fn ask(&mut self, key: Multihash, peer: PeerId, want_type: WantType, now: Instant) {
        let Some(want) = self.wants.get_mut(&key) else { return };
        let (Some(source), Some(session)) = (self.sources.get_mut(&peer), self.sessions.get(&want.root))
        else {
            return;
        };
        let (mut state, mut due) = (Asked::Have, now + HEDGE_MAX);
        if want_type == WantType::Block {
            state = Asked::Block;
            due = now + HEDGE_GUESS;
            if session.is_good(&peer) {
                due = now + (4 * source.expected(session.block_bytes)).clamp(HEDGE_MIN, HEDGE_MAX);
            }
            source.asked(key, now);
        } else if want.asks.contains_key(&peer) {
            return;
        }
        want.asks.insert(peer, Ask { state, at: now, due });
        source.post(entry(want.cid, want_type));
        self.effects.wake.insert(peer);
    }

    /// Gives queued wants to peers that have room again, the oldest first.
    pub(super) fn fill(&mut self, now: Instant) {
        // Wants of one session are alike: some that find no room speak for those behind them.
        let mut queued = std::mem::take(&mut self.queued);
        for _ in 0..FILL_MAX {
            let Some(key) = queued.pop_front() else { break };
            if let Some(want) = self.wants.get_mut(&key) {
                want.queued = false;
                self.advance(key, now); // Queues it again if there is still no room.
            }
        }
        self.queued.append(&mut queued);
    }

    /// Takes a want out and tells those who were asked, but for `winner`.
    pub(super) fn remove(&mut self, key: &Multihash, winner: Option<&PeerId>, now: Instant) -> Vec<FetchId> {
        let Some(want) = self.wants.remove(key) else { return Vec::new() };
        if want.queued {
            self.queued.retain(|queued| queued != key);
        }
        for (peer, ask) in &want.asks {
            let Some(source) = self.sources.get_mut(peer) else { continue };
            source.released(key);
            // Whoever said HAVE has struck the want off; who said DONT_HAVE keeps it in case the block comes.
            if Some(peer) != winner && ask.state != Asked::Has {
                source.post(Entry::Cancel(want.cid));
                self.effects.wake.insert(*peer);
            }
        }
        if let Some(session) = self.sessions.get_mut(&want.root) {
            session.wants -= 1;
            session.used = now;
        }
        want.fetches
    }
}

pub(super) fn entry(cid: Cid, want_type: WantType) -> Entry {
    Entry::Want { cid, want_type, priority: 1, send_dont_have: true }
}
