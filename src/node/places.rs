//! Addresses of the config that do not say who is there: whoever answers is trusted. No I/O: the event loop dials, and
//! `names` looks up what names stand for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use super::peers::Backoff;

/// Where somebody is to be reached.
#[derive(Default)]
pub(super) struct Places {
    due: HashMap<Multiaddr, Backoff>,
    /// Where we met ourselves: a name that stands for all daemons stands for this one too.
    own: HashSet<Multiaddr>,
}

impl Places {
    /// Takes over what there is; places that are not among it are forgotten.
    pub(super) fn set(&mut self, addresses: &BTreeSet<Multiaddr>, now: Instant) {
        self.due.retain(|address, _| addresses.contains(address));
        self.own.retain(|address| addresses.contains(address));
        for address in addresses {
            self.due.entry(address.clone()).or_insert_with(|| Backoff::new(now));
        }
    }

    /// Where to dial now.
    pub(super) fn due(&mut self, now: Instant, is_answered: impl Fn(&Multiaddr) -> bool) -> Vec<Multiaddr> {
        let due = self.due.iter_mut().filter(|(address, _)| !self.own.contains(*address));
        due.filter_map(|(address, backoff)| {
            backoff.is_due(now, is_answered(address)).then(|| address.clone())
        })
        .collect()
    }

    pub(super) fn is_ours(&mut self, address: &Multiaddr) {
        let address = without_peer_id(address);
        if self.due.contains_key(&address) {
            self.own.insert(address);
        }
    }

    pub(super) fn contains(&self, address: &Multiaddr) -> bool {
        self.due.contains_key(address)
    }
}

/// The place that an address names.
pub(super) fn without_peer_id(address: &Multiaddr) -> Multiaddr {
    address.iter().take_while(|part| !matches!(part, Protocol::P2p(_))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn places_are_dialled_until_somebody_answers_and_forgotten_when_they_are_gone() {
        let (mut places, now) = (Places::default(), Instant::now());
        places.set(&[at(1), at(2)].into(), now);
        assert_eq!(places.due(now, |address| *address == at(1)), [at(2)]);
        assert!(places.due(now, |_| false).iter().all(|address| *address == at(1)), "two waits for its turn");
        places.set(&[at(1)].into(), now);
        assert!(places.contains(&at(1)) && !places.contains(&at(2)));
        let later = now + Duration::from_secs(60);
        assert_eq!(places.due(later, |_| false), [at(1)]);
    }

    #[test]
    fn we_do_not_dial_ourselves_again() {
        let (mut places, now) = (Places::default(), Instant::now());
        places.set(&[at(1)].into(), now);
        let ourselves = at(1).with(Protocol::P2p(libp2p::PeerId::random()));
        places.is_ours(&ourselves);
        places.is_ours(&at(2));
        let later = |s| now + Duration::from_secs(s);
        assert!((0..600).all(|s| places.due(later(s), |_| false).is_empty()));
        // Somebody else may be there when the address comes back.
        places.set(&BTreeSet::new(), now);
        places.set(&[at(1)].into(), now);
        assert_eq!(places.due(now, |_| false), [at(1)]);
    }
}
