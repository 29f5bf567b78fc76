//! Addresses that may be ours, and what those say who have tested them. Pure.
//!
//! A test that went well is proven: the server has come in. One that failed is a server's word only, so that two of them must
//! agree before an address is taken back. Each server has one voice, its last; what was taken back is tested again, by
//! others first, and comes back when one of them has come in. go-libp2p weighs its tests in the same way.
//!
//! A server that does not test keeps no other from it: each is asked in its turn, whatever it answered.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use super::is_relayed;
use crate::node::routing::is_public;

/// Servers that are known at once.
pub(super) const SERVERS_MAX: usize = 64;
/// Addresses that are tested in one run. Each is one that some peer claims to see us at.
const CANDIDATES_MAX: usize = 256;
/// Voices that count, the last ones: a server that has lied is forgotten when others were asked.
const VOICES_MAX: usize = 5;
/// Servers that must say that an address is not reached before it is taken back.
const AGAINST: usize = 2;
/// Voices that settle it for a while.
const SETTLED: usize = 3;
/// Pauses between tests of an address: doubled from the first to the second, while it is not settled, and then the third.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
const SETTLED_PAUSE: Duration = Duration::from_secs(3600);
/// Tests that are begun at once, each with another address.
pub(super) const BEGUN_MAX: usize = 8;

#[derive(Default)]
pub(super) struct Candidates(HashMap<Multiaddr, Candidate>);

struct Candidate {
    /// The oldest first.
    voices: VecDeque<(PeerId, Voice)>,
    /// Who was asked, the oldest first.
    asked: VecDeque<PeerId>,
    next: Instant,
    pause: Duration,
    under_way: bool,
}

/// What a server says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    Reached,
    NotReached,
}

/// What follows of all that is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Reached,
    NotReached,
    /// What counted before does so on.
    Open,
}

impl Candidates {
    /// Takes in an address that is to be tested, unless it is private or there are too many. One that servers agree not to
    /// reach leaves its place, so that a peer with many claims keeps a true one out for a while only.
    pub(super) fn add(&mut self, address: &Multiaddr, now: Instant) {
        if !is_public(address) || is_relayed(address) || self.0.contains_key(address) {
            return;
        }
        if self.0.len() >= CANDIDATES_MAX {
            let refuted =
                self.0.iter().find(|(_, known)| known.is_refuted()).map(|(address, _)| address.clone());
            refuted.and_then(|address| self.0.remove(&address));
        }
        if self.0.len() < CANDIDATES_MAX {
            let fresh = Candidate {
                voices: VecDeque::new(),
                asked: VecDeque::new(),
                next: now,
                pause: PAUSE.0,
                under_way: false,
            };
            self.0.insert(address.clone(), fresh);
        }
    }

    /// The tests to begin, each with the server to ask: one that was not asked yet, or was asked the longest ago; of
    /// several the one with the fewest tests under way. `servers`: in whatever order they are to be preferred. `busy`: the
    /// server of each test under way, to which these are added.
    pub(super) fn due(
        &mut self,
        servers: &[PeerId],
        busy: &mut Vec<PeerId>,
        now: Instant,
    ) -> Vec<(Multiaddr, PeerId)> {
        let mut due: Vec<_> =
            self.0.iter_mut().filter(|(_, known)| !known.under_way && now >= known.next).collect();
        due.sort_by_key(|(_, known)| known.next);
        let begun = due.into_iter().take(BEGUN_MAX).filter_map(|(address, known)| {
            let turn = |server: &&PeerId| {
                let asked = known.asked.iter().position(|asked| asked == *server);
                (asked, busy.iter().filter(|busy| busy == server).count())
            };
            let server = *servers.iter().min_by_key(turn)?;
            known.ask(server);
            busy.push(server);
            Some((address.clone(), server))
        });
        begun.collect()
    }

    /// A test has ended. `None`: the server did not test.
    pub(super) fn tested(
        &mut self,
        address: &Multiaddr,
        server: PeerId,
        voice: Option<Voice>,
        now: Instant,
    ) -> Verdict {
        let Some(known) = self.0.get_mut(address) else { return Verdict::Open };
        known.under_way = false;
        if let Some(voice) = voice {
            known.voices.retain(|(said, _)| *said != server);
            known.voices.push_back((server, voice));
            if known.voices.len() > VOICES_MAX {
                known.voices.pop_front();
            }
        }
        let (reached, not_reached) = (known.count(Voice::Reached), known.count(Voice::NotReached));
        let pause = if reached.abs_diff(not_reached) >= SETTLED {
            known.pause = PAUSE.0;
            SETTLED_PAUSE
        } else {
            let pause = known.pause;
            known.pause = (pause * 2).min(PAUSE.1);
            pause
        };
        known.next = now + pause;
        if voice == Some(Voice::Reached) && reached >= not_reached {
            Verdict::Reached
        } else if not_reached >= reached + AGAINST {
            Verdict::NotReached
        } else {
            Verdict::Open
        }
    }
}

impl Candidate {
    fn ask(&mut self, server: PeerId) {
        self.under_way = true;
        self.asked.retain(|asked| *asked != server);
        self.asked.push_back(server);
        if self.asked.len() > SERVERS_MAX {
            self.asked.pop_front();
        }
    }

    /// Enough servers do not reach it, and none does; no test runs that could say otherwise.
    fn is_refuted(&self) -> bool {
        !self.under_way && self.count(Voice::Reached) == 0 && self.count(Voice::NotReached) >= AGAINST
    }

    fn count(&self, voice: Voice) -> usize {
        self.voices.iter().filter(|(_, said)| *said == voice).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: usize) -> Multiaddr {
        format!("/ip4/8.8.8.8/tcp/{port}").parse().unwrap()
    }

    /// Servers that test one address, and how each of them answers.
    struct Tested {
        candidates: Candidates,
        servers: Vec<PeerId>,
        now: Instant,
    }

    impl Tested {
        fn by(servers: usize) -> Self {
            let now = Instant::now();
            let mut candidates = Candidates::default();
            candidates.add(&at(1), now);
            Self { candidates, servers: (0..servers).map(|_| PeerId::random()).collect(), now }
        }

        /// The next test, when it is due; tells whom it was asked of.
        fn next(&mut self, answer: impl Fn(usize) -> Option<Voice>) -> (usize, Verdict) {
            loop {
                let due = self.candidates.due(&self.servers, &mut Vec::new(), self.now);
                let Some((address, server)) = due.first() else {
                    self.now += PAUSE.0;
                    continue;
                };
                let asked = self.servers.iter().position(|known| known == server).unwrap();
                return (asked, self.candidates.tested(address, *server, answer(asked), self.now));
            }
        }
    }

    #[test]
    fn what_peers_claim_to_see_us_at_is_bounded() {
        let (mut candidates, now) = (Candidates::default(), Instant::now());
        candidates.add(&"/ip4/192.168.1.2/tcp/1".parse().unwrap(), now);
        let relay = PeerId::random();
        candidates.add(&format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap(), now);
        assert!(candidates.0.is_empty());
        (0..2 * CANDIDATES_MAX).for_each(|port| candidates.add(&at(port), now));
        assert_eq!(candidates.0.len(), CANDIDATES_MAX);
        assert_eq!(candidates.due(&[relay], &mut Vec::new(), now).len(), BEGUN_MAX);
    }

    #[test]
    fn claims_that_servers_refute_leave_room_for_true_ones() {
        let (mut candidates, now) = (Candidates::default(), Instant::now());
        (0..CANDIDATES_MAX).for_each(|port| candidates.add(&at(port), now));
        let hear = |candidates: &mut Candidates, port, voice| {
            candidates.tested(&at(port), PeerId::random(), Some(voice), now);
        };
        hear(&mut candidates, 1, Voice::NotReached);
        for voice in [Voice::Reached, Voice::NotReached, Voice::NotReached] {
            hear(&mut candidates, 2, voice);
        }
        candidates.add(&at(1000), now);
        assert!(
            !candidates.0.contains_key(&at(1000)),
            "one server alone refutes nothing, nor two against a third"
        );
        hear(&mut candidates, 1, Voice::NotReached);
        candidates.add(&at(1000), now);
        assert!(candidates.0.contains_key(&at(1000)) && !candidates.0.contains_key(&at(1)));
        assert_eq!(candidates.0.len(), CANDIDATES_MAX);
    }

    #[test]
    fn one_server_that_lies_takes_nothing_away() {
        let mut tested = Tested::by(4);
        let lie = |server| Some(if server == 0 { Voice::NotReached } else { Voice::Reached });
        assert_eq!(tested.next(lie), (0, Verdict::Open));
        assert_eq!(tested.next(lie), (1, Verdict::Reached), "another is asked");
        assert!((0..20).all(|_| tested.next(lie).1 != Verdict::NotReached));

        let mut alone = Tested::by(1);
        assert!((0..20).all(|_| alone.next(lie).1 == Verdict::Open), "however often it says so");
    }

    #[test]
    fn who_does_not_test_keeps_no_other_from_it() {
        let mut tested = Tested::by(3);
        let answer = |server| (server > 0).then_some(Voice::Reached);
        let asked: Vec<_> = (0..6).map(|_| tested.next(answer).0).collect();
        assert_eq!(asked, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn who_does_not_answer_is_asked_after_others() {
        let (mut candidates, now) = (Candidates::default(), Instant::now());
        let [mute, other] = [(); 2].map(|()| PeerId::random());
        let mut busy = vec![mute; 2];
        (1..=4).for_each(|port| candidates.add(&at(port), now));
        let due = candidates.due(&[mute, other], &mut busy, now);
        assert_eq!(due.iter().filter(|(_, server)| *server == other).count(), 3);
        assert_eq!(busy.len(), 6);
    }

    #[test]
    fn an_address_comes_back_when_others_reach_it() {
        let mut tested = Tested::by(5);
        let lie = |server| Some(if server < 2 { Voice::NotReached } else { Voice::Reached });
        tested.next(lie);
        assert_eq!(tested.next(lie), (1, Verdict::NotReached));
        assert_eq!(tested.next(lie), (2, Verdict::Open));
        assert_eq!(tested.next(lie), (3, Verdict::Reached));
    }

    #[test]
    fn an_address_that_is_lost_is_taken_back() {
        let mut tested = Tested::by(3);
        assert!((0..3).all(|_| tested.next(|_| Some(Voice::Reached)).1 == Verdict::Reached));
        let begun = tested.now;
        let verdicts: Vec<_> = (0..3).map(|_| tested.next(|_| Some(Voice::NotReached)).1).collect();
        assert_eq!(verdicts, [Verdict::Open, Verdict::Open, Verdict::NotReached]);
        assert!(tested.now - begun >= SETTLED_PAUSE, "it was settled");
    }

    #[test]
    fn tests_that_nobody_makes_have_growing_pauses() {
        let mut tested = Tested::by(1);
        let begun = tested.now;
        (0..20).for_each(|_| assert_eq!(tested.next(|_| None).1, Verdict::Open));
        assert!(tested.now - begun > PAUSE.1 * 10);
    }
}
