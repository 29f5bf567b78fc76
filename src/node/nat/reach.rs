//! Whether we are reached from outside, as far as is known. Pure.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use libp2p::Multiaddr;

use super::is_relayed;
use crate::node::routing::is_public;

/// A test that brings no answer for so long has failed: many routers drop what they do not let in, and a peer that waits
/// for such a dial may never say so.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether strangers reach this node without a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// Nobody has tested it yet.
    #[default]
    Unknown,
    /// A public address is confirmed: by a test, by the gateway, by the config, or since an interface has it.
    Public,
    /// Tests failed or had no answer, and none went well.
    Private,
}

impl Reachability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Public => "public",
            Self::Private => "private",
        }
    }
}

/// The public addresses that count, and whether tests failed.
#[derive(Default)]
pub(in crate::node) struct Reach {
    public: HashSet<Multiaddr>,
    /// Of these, the ones that the config names: no test takes them back.
    fixed: HashSet<Multiaddr>,
    failed: bool,
    /// Since when somebody is there who tests.
    tested_since: Option<Instant>,
}

impl Reach {
    /// Takes in an address that others are told: it counts if strangers reach us by it.
    pub(super) fn add(&mut self, address: &Multiaddr) {
        if is_public(address) && !is_relayed(address) {
            self.public.insert(address.clone());
        }
    }

    /// The same for one of the config.
    pub(super) fn fix(&mut self, address: &Multiaddr) {
        self.fixed.insert(address.clone());
    }

    pub(super) fn remove(&mut self, address: &Multiaddr) {
        self.public.remove(address);
    }

    /// A peer could not reach us at some address.
    pub(super) fn failed(&mut self) {
        self.failed = true;
    }

    /// An address counts no longer. `false`: the config names it, so that it does.
    pub(super) fn take_back(&mut self, address: &Multiaddr) -> bool {
        !self.fixed.contains(address) && self.public.remove(address)
    }

    /// A peer is there that tests addresses for others.
    pub(super) fn tester(&mut self, now: Instant) {
        self.tested_since.get_or_insert(now);
    }

    /// Notices that no test had an answer.
    pub(super) fn pass_time(&mut self, now: Instant) {
        let waited = self.tested_since.map(|since| now.saturating_duration_since(since));
        self.failed |= waited.is_some_and(|waited| waited >= TEST_TIMEOUT);
    }

    pub(super) fn get(&self) -> Reachability {
        match (self.public.is_empty(), self.failed) {
            (false, _) => Reachability::Public,
            (true, true) => Reachability::Private,
            (true, false) => Reachability::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    #[test]
    fn a_test_without_an_answer_has_failed() {
        let (mut reach, start) = (Reach::default(), Instant::now());
        reach.pass_time(start + TEST_TIMEOUT);
        assert_eq!(reach.get(), Reachability::Unknown, "nobody has tested");
        reach.tester(start);
        reach.tester(start + TEST_TIMEOUT);
        reach.pass_time(start + TEST_TIMEOUT / 2);
        assert_eq!(reach.get(), Reachability::Unknown);
        reach.pass_time(start + TEST_TIMEOUT);
        assert_eq!(reach.get(), Reachability::Private);
    }

    #[test]
    fn a_node_is_public_while_a_public_address_stands() {
        let mut reach = Reach::default();
        let at = |text: &str| text.parse::<Multiaddr>().unwrap();
        let relayed = at(&format!("/ip4/8.8.8.8/tcp/1/p2p/{}/p2p-circuit", PeerId::random()));
        [at("/ip4/192.168.1.2/tcp/1"), relayed].iter().for_each(|address| reach.add(address));
        assert_eq!(reach.get(), Reachability::Unknown);
        let (listening, announced) = (at("/ip4/8.8.4.4/tcp/1"), at("/dns4/a.example/tcp/1"));
        reach.add(&listening);
        reach.failed();
        assert_eq!(reach.get(), Reachability::Public, "others are to say so too");
        assert!(reach.take_back(&listening));
        assert_eq!(reach.get(), Reachability::Private);
        reach.fix(&announced);
        reach.add(&announced);
        assert!(!reach.take_back(&announced));
        assert_eq!(reach.get(), Reachability::Public);
        reach.remove(&announced);
        assert_eq!(reach.get(), Reachability::Private);
    }
}
