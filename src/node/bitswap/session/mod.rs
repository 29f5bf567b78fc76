//! Whom to ask for what. Pure: time is a parameter, messages go out through each peer's outbox.
//!
//! A session holds the wants below one root and the peers that proved useful for it. Its rules:
//! - A first want goes to everybody: want-block to the most promising peer, want-have to the others.
//! - A later want goes straight, as want-block, to the member of the session that will have it soonest.
//! - DONT_HAVE, silence, a disconnect or bad blocks send the want to the next; whoever sends the block first wins,
//!   and the others get a CANCEL.
//! - When nobody is left, or nobody answers soon, providers of the root are looked for; peers that appear are asked at
//!   once. Only when those that were asked said no, and the search found nobody, a want fails.

mod membership;
mod routing;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use libp2p::PeerId;

use self::membership::{Search, Session};
use self::routing::entry;
use self::source::Source;
use super::message::{Entry, WantType};
use crate::ipfs::Want;
use crate::ipld::{Cid, Multihash};

/// Sessions remembered after their last want.
const SESSIONS_MAX: usize = 512;
/// Peers remembered as left.
const LEFT_MAX: usize = 1024;
/// How long a peer that sent bad blocks is asked for nothing.
const LEFT_FOR: Duration = Duration::from_secs(600);
/// Silence that counts as DONT_HAVE.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a want may be without a peer that has it before providers are looked for.
const SEARCH_AFTER: Duration = Duration::from_millis(500);
/// What a search may take, dials included, before a want that nobody has fails.
const SEARCH_BUDGET: Duration = Duration::from_secs(10);
/// How long a provider found may take to connect.
const DIAL_BUDGET: Duration = Duration::from_secs(5);
/// Peers that were silent are asked again after this.
const REBROADCAST: Duration = Duration::from_secs(10);
/// A want fails when its session brought nothing for this long.
const PROGRESS: Duration = Duration::from_secs(60);

/// Names a waiter of a want.
pub(super) type FetchId = u64;

/// Why a want failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    NoProvider,
    NoPeers,
    /// After so many seconds without progress.
    Timeout(u64),
}

/// What is to be done outside after a change.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Peers whose outbox has got something.
    pub(super) wake: HashSet<PeerId>,
    /// Roots whose providers are to be looked for.
    pub(super) find: Vec<Cid>,
    pub(super) failed: Vec<(FetchId, Failure)>,
}

#[derive(Default)]
pub(super) struct Sessions {
    sources: HashMap<PeerId, Source>,
    sessions: HashMap<Cid, Session>,
    wants: HashMap<Multihash, Wanted>,
    /// Wants whose best peer has no room, in order.
    queued: VecDeque<Multihash>,
    left: HashMap<PeerId, Instant>,
    effects: Effects,
}

struct Wanted {
    cid: Cid,
    root: Cid,
    fetches: Vec<FetchId>,
    /// The waiter that made it, which orders wants.
    first: FetchId,
    started: Instant,
    asks: HashMap<PeerId, Ask>,
    queued: bool,
    rebroadcast: Instant,
}

#[derive(Clone, Copy)]
struct Ask {
    state: Asked,
    at: Instant,
    /// When another peer is asked too, if this one has not sent the block.
    due: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Have,
    Block,
    /// Answered HAVE.
    Has,
    /// Answered DONT_HAVE.
    Lacks,
    /// Did not answer in time.
    Silent,
}

impl Asked {
    fn is_open(self) -> bool {
        matches!(self, Self::Have | Self::Block)
    }
}

impl Sessions {
    pub(super) fn effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    pub(super) fn wants(&self) -> usize {
        self.wants.len()
    }

    /// Peers that can be asked.
    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Whether something is expected of the peer, or to be said to it.
    pub(super) fn is_busy(&self, peer: &PeerId) -> bool {
        self.sources.get(peer).is_some_and(|source| !source.is_idle())
    }

    /// Whether a block of this peer can be of use.
    pub(super) fn expects_from(&self, peer: &PeerId) -> bool {
        !self.wants.is_empty() && !self.has_left(peer) && self.sources.contains_key(peer)
    }

    /// Whether a peer broke the protocol, and is asked for nothing.
    pub(super) fn has_left(&self, peer: &PeerId) -> bool {
        self.left.contains_key(peer)
    }

    /// Up to `max` entries for the peer, and whether they are the full wantlist.
    pub(super) fn take_entries(&mut self, peer: &PeerId, max: usize) -> (bool, Vec<Entry>) {
        self.sources.get_mut(peer).map_or_else(Default::default, |source| source.take_posted(max))
    }

    /// The stream broke: what the peer owes is asked again, as a full wantlist. `false` if it owes nothing.
    pub(super) fn repost(&mut self, peer: &PeerId) -> bool {
        let entries: Vec<Entry> = self
            .wants
            .values()
            .filter_map(|want| {
                let ask = want.asks.get(peer).filter(|ask| ask.state.is_open())?;
                Some(entry(want.cid, if ask.state == Asked::Have { WantType::Have } else { WantType::Block }))
            })
            .collect();
        let owes = !entries.is_empty();
        if let Some(source) = self.sources.get_mut(peer) {
            source.repost(entries);
        }
        owes
    }

    pub(super) fn connected(&mut self, peer: PeerId, now: Instant) {
        self.left.retain(|_, until| *until > now);
        if self.sources.contains_key(&peer) || self.has_left(&peer) {
            return;
        }
        self.sources.insert(peer, Source::new(now));
        for session in self.sessions.values_mut().filter(|session| session.providers.contains(&peer)) {
            session.welcome(peer);
        }
        for key in self.keys() {
            self.advance(key, now);
            self.try_strangers(key, now);
        }
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        if self.sources.remove(peer).is_none() {
            return;
        }
        for session in self.sessions.values_mut() {
            session.trials.remove(peer);
            if session.members.remove(peer).is_some_and(|member| member.good) {
                session.remember_provider(*peer);
            }
        }
        for key in self.keys() {
            let asked = self.wants.get_mut(&key).and_then(|want| want.asks.remove(peer));
            if asked.is_some() {
                self.advance(key, now);
            }
        }
    }

    /// Adds a waiter. The caller keeps the number of waiters within bounds.
    pub(super) fn want(&mut self, fetch: FetchId, want: Want, now: Instant) {
        let Want { cid, root } = want;
        let key = *cid.hash();
        if let Some(known) = self.wants.get_mut(&key) {
            known.fetches.push(fetch);
            return;
        }
        if !self.sessions.contains_key(&root) {
            self.drop_oldest_session();
        }
        let session = self.sessions.entry(root).or_insert_with(|| Session::new(now));
        session.used = now;
        session.wants += 1;
        let wanted = Wanted {
            cid,
            root,
            fetches: vec![fetch],
            first: fetch,
            started: now,
            asks: HashMap::new(),
            queued: false,
            rebroadcast: now,
        };
        self.wants.insert(key, wanted);
        self.advance(key, now);
        self.try_strangers(key, now);
    }

    /// Removes a waiter; the last one takes the want along.
    pub(super) fn withdraw(&mut self, fetch: FetchId, key: &Multihash, now: Instant) {
        let Some(want) = self.wants.get_mut(key) else { return };
        want.fetches.retain(|known| *known != fetch);
        if want.fetches.is_empty() {
            self.remove(key, None, now);
            self.fill(now);
        }
    }

    pub(super) fn heard(&mut self, peer: &PeerId, at: Instant) {
        if let Some(source) = self.sources.get_mut(peer) {
            source.heard(at);
        }
    }

    pub(super) fn have(&mut self, peer: PeerId, key: &Multihash, now: Instant) {
        let Some(root) = self.answer(peer, key, Asked::Has, now) else { return };
        if let Some(session) = self.sessions.get_mut(&root) {
            session.welcome(peer);
        }
        self.advance(*key, now);
    }

    pub(super) fn dont_have(&mut self, peer: PeerId, key: &Multihash, now: Instant) {
        let Some(root) = self.answer(peer, key, Asked::Lacks, now) else { return };
        if let Some(member) = self.sessions.get_mut(&root).and_then(|session| session.member(peer)) {
            member.dont_haves += 1;
        }
        self.advance(*key, now);
        self.fill(now);
    }

    /// Notes an answer if it was asked for, and returns the root of its session.
    fn answer(&mut self, peer: PeerId, key: &Multihash, state: Asked, now: Instant) -> Option<Cid> {
        let want = self.wants.get_mut(key)?;
        let ask = want.asks.get_mut(&peer)?;
        let source = self.sources.get_mut(&peer)?;
        if ask.state.is_open() {
            source.answered_after(now.saturating_duration_since(ask.at));
        }
        // A HAVE does not take back the want-block that it crossed.
        if !(ask.state == Asked::Block && state == Asked::Has) {
            ask.state = state;
            source.released(key);
        }
        Some(want.root)
    }

    /// A block came whose hash is `key`. Returns who waits for it.
    pub(super) fn block(
        &mut self,
        peer: PeerId,
        key: &Multihash,
        size_bytes: usize,
        now: Instant,
    ) -> Vec<FetchId> {
        let Some(source) = self.sources.get_mut(&peer) else { return Vec::new() };
        let Some(want) = self.wants.get(key) else {
            if source.was_asked(key) {
                source.received(key, size_bytes, now);
            } else {
                self.unsolicited(peer, now);
            }
            return Vec::new();
        };
        source.received(key, size_bytes, now);
        if let Some(session) = self.sessions.get_mut(&want.root) {
            session.welcome(peer);
            session.progress = now;
            session.block_bytes += 0.2 * (size_bytes as f64 - session.block_bytes);
        }
        let fetches = self.remove(key, Some(&peer), now);
        self.fill(now);
        fetches
    }

    /// A peer broke the protocol, and is left.
    pub(super) fn misbehaved(&mut self, peer: PeerId, now: Instant) {
        self.left.retain(|_, until| *until > now);
        if self.left.len() < LEFT_MAX {
            self.left.insert(peer, now + LEFT_FOR);
        }
        self.disconnected(&peer, now);
        self.sessions.values_mut().for_each(|session| _ = session.providers.remove(&peer));
        self.fill(now);
    }

    /// A block that matches nothing asked for stands for a want that was answered with wrong bytes.
    fn unsolicited(&mut self, peer: PeerId, now: Instant) {
        let Some(source) = self.sources.get_mut(&peer) else { return };
        if source.strike() {
            tracing::debug!(peer.id = %peer, "left a peer that sends blocks nobody asked for");
            self.misbehaved(peer, now);
        } else if let Some(key) = source.longest_in_flight() {
            self.give_up(peer, key, now);
        }
    }

    /// Takes a want away from a peer as if it had said DONT_HAVE.
    fn give_up(&mut self, peer: PeerId, key: Multihash, now: Instant) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.released(&key);
        }
        if let Some(ask) = self.wants.get_mut(&key).and_then(|want| want.asks.get_mut(&peer)) {
            ask.state = Asked::Silent;
            self.advance(key, now);
        }
    }

    pub(super) fn provider_found(&mut self, root: &Cid, peer: PeerId, now: Instant) {
        if self.has_left(&peer) {
            return;
        }
        let Some(session) = self.sessions.get_mut(root) else { return };
        session.remember_provider(peer);
        if !self.sources.contains_key(&peer) {
            return;
        }
        session.welcome(peer);
        for key in self.keys() {
            let Some(want) = self.wants.get_mut(&key).filter(|want| want.root == *root) else { continue };
            if want.asks.get(&peer).is_some_and(|ask| ask.state == Asked::Silent) {
                want.asks.remove(&peer);
            }
            self.advance(key, now);
        }
    }

    pub(super) fn search_ended(&mut self, root: &Cid, now: Instant) {
        if let Some(session) = self.sessions.get_mut(root) {
            session.search = Search::Ended(now);
        }
        self.tick(now);
    }

    /// What only time brings: silence, second tries, searches, failures. To be called every 100 ms or so while there
    /// are wants.
    pub(super) fn tick(&mut self, now: Instant) {
        self.notice_silence(now);
        for key in self.keys() {
            self.notice_unanswered(key, now);
            self.hedge(key, now);
            if let Some(failure) = self.failure(key, now) {
                let fetches = self.remove(&key, None, now);
                self.effects.failed.extend(fetches.into_iter().map(|fetch| (fetch, failure)));
            }
        }
        self.fill(now);
    }

    fn notice_silence(&mut self, now: Instant) {
        let silent: Vec<PeerId> = self
            .sources
            .iter()
            .filter(|(_, source)| source.is_silent(SILENCE, now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in silent {
            let Some(source) = self.sources.get_mut(&peer) else { continue };
            source.stalled = true;
            let keys: Vec<Multihash> = source.in_flight().copied().collect();
            keys.into_iter().for_each(|key| self.give_up(peer, key, now));
        }
    }

    fn notice_unanswered(&mut self, key: Multihash, now: Instant) {
        let Some(want) = self.wants.get_mut(&key) else { return };
        let mut changed = false;
        for ask in want.asks.values_mut() {
            if ask.state == Asked::Have && now.saturating_duration_since(ask.at) >= SILENCE {
                ask.state = Asked::Silent;
                changed = true;
            }
        }
        if now.saturating_duration_since(want.rebroadcast) >= REBROADCAST {
            want.rebroadcast = now;
            for (peer, _) in want.asks.iter().filter(|(_, ask)| ask.state == Asked::Silent) {
                if let Some(source) = self.sources.get_mut(peer) {
                    source.stalled = false;
                    // Some take a want that they know for answered, and wait for a new one.
                    source.post(Entry::Cancel(want.cid));
                }
            }
            want.asks.retain(|_, ask| ask.state != Asked::Silent);
            changed = true;
        }
        if changed {
            self.advance(key, now);
        }
        let Some(want) = self.wants.get(&key) else { return };
        let nobody_has_it = !want.asks.values().any(|ask| ask.state == Asked::Has);
        let nobody_is_asked = !want.queued && !want.asks.values().any(|ask| ask.state.is_open());
        let idle = self.sessions.get(&want.root).is_some_and(|session| session.progress <= want.started);
        let late = idle && now.saturating_duration_since(want.started) >= SEARCH_AFTER;
        if nobody_has_it && (late || nobody_is_asked) {
            self.search(want.root, now);
        }
    }

    fn failure(&self, key: Multihash, now: Instant) -> Option<Failure> {
        let want = self.wants.get(&key)?;
        let session = self.sessions.get(&want.root)?;
        if now.saturating_duration_since(want.started.max(session.progress)) >= PROGRESS {
            return Some(Failure::Timeout(PROGRESS.as_secs()));
        }
        let asked = want.asks.values().any(|ask| ask.state.is_open() || ask.state == Asked::Has);
        // A stranger that says nothing has nothing; one that served the session may be slow.
        let trusted = session.members.iter().any(|(peer, member)| {
            let lacks = want.asks.get(peer).is_some_and(|ask| ask.state == Asked::Lacks);
            member.is_good() && self.sources.contains_key(peer) && !lacks
        });
        let may_come = want.queued || asked || trusted;
        if may_come {
            return None;
        }
        let dialled = session.providers.iter().any(|peer| !self.sources.contains_key(peer));
        let searched = match session.search {
            Search::Idle => false,
            Search::Running(since) => now.saturating_duration_since(since) >= SEARCH_BUDGET,
            Search::Ended(at) => !dialled || now.saturating_duration_since(at) >= DIAL_BUDGET,
        };
        match searched {
            true if self.sources.is_empty() => Some(Failure::NoPeers),
            true => Some(Failure::NoProvider),
            false => None,
        }
    }

    fn search(&mut self, root: Cid, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&root)
            && session.needs_search(now)
        {
            session.search = Search::Running(now);
            self.effects.find.push(root);
        }
    }

    fn want_and_session(&self, key: &Multihash) -> Option<(&Wanted, &Session)> {
        let want = self.wants.get(key)?;
        Some((want, self.sessions.get(&want.root)?))
    }

    /// The wants, oldest first.
    fn keys(&self) -> Vec<Multihash> {
        let mut keys: Vec<(FetchId, Multihash)> =
            self.wants.iter().map(|(key, want)| (want.first, *key)).collect();
        keys.sort_unstable_by_key(|(first, _)| *first);
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn drop_oldest_session(&mut self) {
        if self.sessions.len() < SESSIONS_MAX {
            return;
        }
        let idle = self.sessions.iter().filter(|(_, session)| session.wants == 0);
        if let Some(root) = idle.min_by_key(|(_, session)| session.used).map(|(root, _)| *root) {
            self.sessions.remove(&root);
        }
    }
}
