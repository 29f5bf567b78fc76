use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::ipld::Block;
use crate::ipld::block::RAW;

/// Sessions driven by hand: time moves when the test says so, and peers answer as it says.
struct Play {
    sessions: Sessions,
    now: Instant,
    fetches: FetchId,
    found: Vec<Cid>,
    failed: Vec<(FetchId, Failure)>,
}

fn cid(name: u32) -> Cid {
    *Block::encode(RAW, Bytes::copy_from_slice(&name.to_be_bytes())).cid()
}

fn key(name: u32) -> Multihash {
    *cid(name).hash()
}

/// What an entry asks for, by the name of its block.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Block(u32),
    Have(u32),
    Cancel(u32),
}

const ROOT: u32 = 0;

impl Play {
    fn new() -> Self {
        let (sessions, now) = (Sessions::default(), Instant::now());
        Self { sessions, now, fetches: 0, found: Vec::new(), failed: Vec::new() }
    }

    fn connect(&mut self) -> PeerId {
        let peer = PeerId::random();
        self.sessions.connected(peer, self.now);
        peer
    }

    fn want(&mut self, name: u32) -> FetchId {
        self.fetches += 1;
        self.sessions.want(self.fetches, Want { cid: cid(name), root: cid(ROOT) }, self.now);
        self.fetches
    }

    fn block(&mut self, peer: PeerId, name: u32) -> Vec<FetchId> {
        self.sessions.block(peer, &key(name), 100_000, self.now)
    }

    fn have(&mut self, peer: PeerId, name: u32) {
        self.sessions.have(peer, &key(name), self.now);
    }

    fn dont_have(&mut self, peer: PeerId, name: u32) {
        self.sessions.dont_have(peer, &key(name), self.now);
    }

    fn search_ends(&mut self) {
        self.sessions.search_ended(&cid(ROOT), self.now);
    }

    /// Lets time pass; `alive` peers send bytes meanwhile.
    fn pass(&mut self, time: Duration, alive: &[PeerId]) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100).min(end - self.now);
            alive.iter().for_each(|peer| self.sessions.heard(peer, self.now));
            self.sessions.tick(self.now);
        }
    }

    /// What goes to the peer since the last look.
    fn said(&mut self, peer: PeerId) -> Vec<Said> {
        let name = |cid: &Cid| (0..1000).find(|name| self::cid(*name) == *cid).unwrap();
        let (_, entries) = self.sessions.take_entries(&peer, usize::MAX);
        let said = entries.iter().map(|entry| match entry {
            Entry::Cancel(cid) => Said::Cancel(name(cid)),
            Entry::Want { cid, want_type: WantType::Block, .. } => Said::Block(name(cid)),
            Entry::Want { cid, want_type: WantType::Have, .. } => Said::Have(name(cid)),
        });
        said.collect()
    }

    fn effects(&mut self) {
        let Effects { find, failed, .. } = self.sessions.effects();
        self.found.extend(find);
        self.failed.extend(failed);
    }

    fn searches(&mut self) -> usize {
        self.effects();
        self.found.len()
    }

    fn failures(&mut self) -> &[(FetchId, Failure)] {
        self.effects();
        &self.failed
    }
}

/// Two peers, the first of which is the one that gets the first want-block.
fn pair() -> (Play, PeerId, PeerId) {
    let mut play = Play::new();
    let (a, b) = (play.connect(), play.connect());
    play.want(ROOT);
    let (to_a, to_b) = (play.said(a), play.said(b));
    match to_a[..] {
        [Said::Block(ROOT)] => {
            assert_eq!(to_b, [Said::Have(ROOT)]);
            (play, a, b)
        }
        _ => {
            assert_eq!((to_a, to_b), (vec![Said::Have(ROOT)], vec![Said::Block(ROOT)]));
            (play, b, a)
        }
    }
}

#[test]
fn the_first_want_is_a_block_of_one_and_a_question_to_the_others() {
    let (mut play, guess, other) = pair();
    assert_eq!(play.block(guess, ROOT), [1]);
    assert_eq!(play.said(other), [Said::Cancel(ROOT)]);
    assert!(play.said(guess).is_empty());
    assert_eq!(play.sessions.wants(), 0);
}

#[test]
fn the_next_want_goes_straight_to_the_peer_that_delivered() {
    let (mut play, guess, other) = pair();
    play.block(guess, ROOT);
    play.said(other);
    play.want(1);
    assert_eq!(play.said(guess), [Said::Block(1)]);
    assert_eq!(play.said(other), [Said::Have(1)], "a stranger may be a source too");
}

#[test]
fn strangers_are_tried_with_few_wants_only() {
    let (mut play, guess, other) = pair();
    play.block(guess, ROOT);
    for name in 1..100 {
        play.want(name);
        play.block(guess, name);
    }
    play.said(other);
    play.want(100);
    assert!(play.said(other).is_empty());
}

#[test]
fn a_dont_have_sends_the_want_to_who_has_it() {
    let (mut play, guess, other) = pair();
    play.have(other, ROOT);
    assert!(play.said(other).is_empty(), "one copy is enough");
    play.dont_have(guess, ROOT);
    assert_eq!(play.said(other), [Said::Block(ROOT)]);
    assert_eq!(play.block(other, ROOT), [1]);
    assert_eq!(play.said(guess), [Said::Cancel(ROOT)], "it notes what it lacks");
}

#[test]
fn a_guess_that_is_late_is_backed_by_who_has_it() {
    let (mut play, guess, other) = pair();
    play.have(other, ROOT);
    play.pass(Duration::from_millis(400), &[guess]);
    assert_eq!(play.said(other), [Said::Block(ROOT)]);
    assert_eq!(play.block(guess, ROOT), [1]);
    assert_eq!(play.said(other), [Said::Cancel(ROOT)]);
}

#[test]
fn silence_counts_as_dont_have_but_bytes_on_the_way_do_not() {
    let (mut play, guess, other) = pair();
    play.block(guess, ROOT);
    play.want(1);
    play.have(other, 1);
    play.said(other);
    play.sessions.sources.get_mut(&guess).unwrap().answered_after(Duration::from_secs(60)); // No hedging here.
    play.want(2);
    play.said(other);
    play.pass(Duration::from_secs(1), &[guess]);
    let before = play.said(other);
    play.pass(Duration::from_secs(4), &[]);
    let after = play.said(other);
    assert!(after.iter().chain(&before).any(|said| matches!(said, Said::Block(_))), "{before:?} {after:?}");
}

#[test]
fn wants_spread_over_members_and_stay_within_their_windows() {
    let (mut play, a, b) = pair();
    play.have(b, ROOT);
    play.block(a, ROOT);
    (1..400).for_each(|name| _ = play.want(name));
    let blocks = |said: Vec<Said>| said.iter().filter(|said| matches!(said, Said::Block(_))).count();
    let (to_a, to_b) = (blocks(play.said(a)), blocks(play.said(b)));
    assert!(to_a > 16 && to_b > 16 && to_a <= 64 && to_b <= 64, "{to_a} {to_b}");
    let key = *play.sessions.sources[&a].in_flight().next().unwrap();
    play.sessions.block(a, &key, 100_000, play.now);
    assert_eq!(blocks(play.said(a)), 1, "room is used at once");
}

#[test]
fn a_search_begins_when_all_said_no_and_fails_when_it_finds_nobody() {
    let (mut play, guess, other) = pair();
    play.dont_have(guess, ROOT);
    assert_eq!(play.searches(), 0);
    play.dont_have(other, ROOT);
    assert_eq!(play.searches(), 1);
    play.pass(Duration::from_secs(1), &[]);
    assert!(play.failures().is_empty());
    play.search_ends();
    assert_eq!(play.failures(), [(1, Failure::NoProvider)]);
    assert_eq!((play.said(guess), play.said(other)), (vec![Said::Cancel(ROOT)], vec![Said::Cancel(ROOT)]));
}

#[test]
fn a_search_begins_when_nobody_answers_soon() {
    let (mut play, guess, other) = pair();
    play.pass(Duration::from_millis(700), &[guess, other]);
    assert_eq!(play.searches(), 1);
    play.search_ends();
    assert!(play.failures().is_empty(), "they may still answer");
    play.pass(Duration::from_secs(10), &[]);
    assert_eq!(play.failures(), [(1, Failure::NoProvider)]);
}

#[test]
fn without_peers_a_want_fails_as_unknown() {
    let mut play = Play::new();
    play.want(ROOT);
    assert_eq!(play.searches(), 1);
    play.search_ends();
    assert_eq!(play.failures(), [(1, Failure::NoPeers)]);
}

#[test]
fn a_search_without_end_has_a_budget() {
    let mut play = Play::new();
    play.want(ROOT);
    play.pass(Duration::from_millis(9_900), &[]);
    assert!(play.failures().is_empty());
    play.pass(Duration::from_millis(200), &[]);
    assert_eq!(play.failures(), [(1, Failure::NoPeers)]);
}

#[test]
fn a_provider_found_is_asked_when_it_connects() {
    let mut play = Play::new();
    play.want(ROOT);
    let provider = PeerId::random();
    play.sessions.provider_found(&cid(ROOT), provider, play.now);
    play.search_ends();
    play.pass(Duration::from_secs(2), &[]);
    assert!(play.failures().is_empty(), "it is being dialled");
    play.sessions.connected(provider, play.now);
    assert_eq!(play.said(provider), [Said::Block(ROOT)]);
}

#[test]
fn a_peer_that_connects_is_asked_for_what_is_wanted() {
    let (mut play, guess, other) = pair();
    play.dont_have(guess, ROOT);
    play.dont_have(other, ROOT);
    let late = play.connect();
    assert_eq!(play.said(late), [Said::Block(ROOT)]);
}

#[test]
fn sixteen_dont_haves_in_a_row_end_a_membership() {
    let mut play = Play::new();
    let peer = play.connect();
    play.want(ROOT);
    play.block(peer, ROOT);
    for name in 1..=16 {
        play.want(name);
        play.dont_have(peer, name);
    }
    play.said(peer);
    play.want(17);
    assert!(play.said(peer).is_empty());
}

#[test]
fn a_disconnect_sends_its_wants_to_others_and_a_return_is_welcome() {
    let (mut play, guess, other) = pair();
    play.have(other, ROOT);
    play.sessions.disconnected(&guess, play.now);
    assert_eq!(play.said(other), [Said::Block(ROOT)]);
    play.block(other, ROOT);
    play.sessions.disconnected(&other, play.now);
    play.want(1);
    play.sessions.connected(other, play.now);
    assert_eq!(play.said(other), [Said::Block(1)]);
}

#[test]
fn unsolicited_blocks_stand_for_wrong_bytes() {
    let (mut play, liar, honest) = pair();
    play.have(honest, ROOT);
    play.block(liar, 900);
    assert_eq!(play.said(honest), [Said::Block(ROOT)], "its want goes to another");
    play.block(liar, 901);
    assert_eq!(play.sessions.sources(), 1);
    play.sessions.connected(liar, play.now);
    assert_eq!(play.sessions.sources(), 1, "it stays left");
    assert!(!play.sessions.expects_from(&liar));
}

#[test]
fn a_block_that_comes_late_or_twice_is_forgiven() {
    let (mut play, guess, other) = pair();
    play.block(guess, ROOT);
    for _ in 0..5 {
        assert!(play.block(other, ROOT).is_empty());
        assert!(play.block(guess, ROOT).is_empty());
    }
    assert_eq!(play.sessions.sources(), 2);
}

#[test]
fn two_waiters_share_a_want_and_the_last_one_cancels() {
    let mut play = Play::new();
    let peer = play.connect();
    let (first, second) = (play.want(ROOT), play.want(ROOT));
    assert_eq!(play.said(peer), [Said::Block(ROOT)]);
    play.sessions.withdraw(first, &key(ROOT), play.now);
    assert!(play.said(peer).is_empty());
    play.sessions.withdraw(second, &key(ROOT), play.now);
    assert_eq!(play.said(peer), [Said::Cancel(ROOT)]);
    assert!(!play.sessions.is_busy(&peer));
}

#[test]
fn a_broken_stream_asks_again_for_what_is_open() {
    let (mut play, guess, _) = pair();
    play.block(guess, ROOT);
    play.want(1);
    play.said(guess);
    play.sessions.repost(&guess);
    let (full, entries) = play.sessions.take_entries(&guess, 10);
    assert!(full);
    assert_eq!(entries, [entry(cid(1), WantType::Block)]);
}

#[test]
fn a_member_that_fell_silent_is_asked_anew() {
    let mut play = Play::new();
    let peer = play.connect();
    play.want(ROOT);
    play.block(peer, ROOT);
    play.said(peer);
    (1..=200).for_each(|name| _ = play.want(name));
    let asked = play.said(peer).len();
    play.pass(Duration::from_secs(4), &[]);
    assert!(play.said(peer).is_empty());
    play.pass(Duration::from_secs(7), &[]);
    assert!(play.failures().is_empty(), "it served before");
    let cancels = play.said(peer).iter().filter(|said| matches!(said, Said::Cancel(_))).count();
    assert_eq!(cancels, asked, "lest it takes them for answered");
    assert!(play.said(peer).iter().all(|said| matches!(said, Said::Block(_))));
    play.pass(Duration::from_secs(50), &[]);
    assert_eq!(play.failures().len(), 200);
    assert!(play.failures().iter().all(|(_, failure)| *failure == Failure::Timeout(60)));
}

#[test]
fn a_want_without_progress_fails_after_a_minute() {
    let mut play = Play::new();
    let peer = play.connect();
    play.want(ROOT);
    play.block(peer, ROOT);
    play.want(1);
    play.pass(Duration::from_secs(59), &[peer]);
    assert!(play.failures().is_empty());
    play.pass(Duration::from_secs(2), &[peer]);
    assert_eq!(play.failures(), [(2, Failure::Timeout(60))]);
}

proptest! {
    /// Whatever peers do and in whatever order, each want ends: by its block, by withdrawal or by a failure, and
    /// then nothing is owed to anybody.
    #[test]
    fn every_want_ends(steps in proptest::collection::vec((0..9u8, 0..4usize, 0..12u32), 0..150)) {
        let mut play = Play::new();
        let peers = [0; 4].map(|_| PeerId::random());
        let mut open = HashMap::new();
        for (step, peer, name) in steps {
            let (peer, key) = (peers[peer], key(name));
            match step {
                0 | 1 => _ = open.insert(play.want(name), key),
                2 => play.sessions.connected(peer, play.now),
                3 => play.sessions.disconnected(&peer, play.now),
                4 => play.have(peer, name),
                5 => play.dont_have(peer, name),
                6 => play.block(peer, name).iter().for_each(|fetch| _ = open.remove(fetch)),
                7 => play.pass(Duration::from_millis(u64::from(name) * 200), &[]),
                _ => if let Some((fetch, key)) = open.iter().next().map(|(fetch, key)| (*fetch, *key)) {
                    play.sessions.withdraw(fetch, &key, play.now);
                    open.remove(&fetch);
                },
            }
            for (fetch, _) in std::mem::take(&mut play.sessions.effects.failed) {
                open.remove(&fetch);
            }
            let waiting: usize = play.sessions.wants.values().map(|want| want.fetches.len()).sum();
            prop_assert_eq!(waiting, open.len());
        }
        play.search_ends();
        play.pass(Duration::from_secs(75), &[]);
        play.failures();
        prop_assert_eq!(play.sessions.wants(), 0);
        prop_assert!(play.sessions.queued.is_empty());
        for peer in peers {
            while !play.said(peer).is_empty() {}
            prop_assert!(!play.sessions.is_busy(&peer));
        }
    }
}
