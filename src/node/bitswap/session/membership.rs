//! What is known below one root: which peers have it, and whether they were looked for.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use libp2p::PeerId;

/// Members of a session, and providers remembered for it.
const MEMBERS_MAX: usize = 64;
/// DONT_HAVEs in a row after which a peer is no member any more.
const DONT_HAVES_MAX: u32 = 16;
/// How long a fruitless search answers for later wants.
const SEARCH_KEPT: Duration = Duration::from_secs(10);
/// The block size assumed before one came, in bytes.
const BLOCK_BYTES_GUESS: f64 = (256 * 1024) as f64;

pub(super) struct Session {
    pub(super) members: HashMap<PeerId, Member>,
    /// Peers said to have the root, connected or not.
    pub(super) providers: HashSet<PeerId>,
    /// With how many wants connected strangers were tried.
    pub(super) trials: HashMap<PeerId, u32>,
    pub(super) search: Search,
    pub(super) block_bytes: f64,
    pub(super) wants: usize,
    pub(super) used: Instant,
    pub(super) progress: Instant,
}

#[derive(Default)]
pub(super) struct Member {
    /// Sent a block of the session or said HAVE, or is said to provide it.
    pub(super) good: bool,
    pub(super) dont_haves: u32,
}

#[derive(Clone, Copy)]
pub(super) enum Search {
    Idle,
    Running(Instant),
    Ended(Instant),
}

impl Session {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            members: HashMap::new(),
            providers: HashSet::new(),
            trials: HashMap::new(),
            search: Search::Idle,
            block_bytes: BLOCK_BYTES_GUESS,
            wants: 0,
            used: now,
            progress: now,
        }
    }

    /// The member's entry, made if there is room.
    pub(super) fn member(&mut self, peer: PeerId) -> Option<&mut Member> {
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&peer) {
            let useless = self.members.iter().find(|(_, member)| !member.is_good()).map(|(peer, _)| *peer)?;
            self.members.remove(&useless);
        }
        Some(self.members.entry(peer).or_default())
    }

    pub(super) fn welcome(&mut self, peer: PeerId) {
        if let Some(member) = self.member(peer) {
            *member = Member { good: true, dont_haves: 0 };
        }
    }

    pub(super) fn is_good(&self, peer: &PeerId) -> bool {
        self.members.get(peer).is_some_and(Member::is_good)
    }

    /// Whether it had nothing too often.
    pub(super) fn is_dropped(&self, peer: &PeerId) -> bool {
        self.members.get(peer).is_some_and(|member| member.dont_haves >= DONT_HAVES_MAX)
    }

    /// What a member's DONT_HAVEs count when peers are compared.
    pub(super) fn penalty(&self, peer: &PeerId) -> Duration {
        self.members.get(peer).map_or(Duration::ZERO, |member| Duration::from_millis(50) * member.dont_haves)
    }

    pub(super) fn remember_provider(&mut self, peer: PeerId) {
        if self.providers.len() < MEMBERS_MAX {
            self.providers.insert(peer);
        }
    }

    pub(super) fn needs_search(&self, now: Instant) -> bool {
        match self.search {
            Search::Idle => true,
            Search::Running(_) => false,
            Search::Ended(at) => now.saturating_duration_since(at) >= SEARCH_KEPT,
        }
    }
}

impl Member {
    pub(super) fn is_good(&self) -> bool {
        self.good && self.dont_haves < DONT_HAVES_MAX
    }
}
