//! Provider records that peers have us keep. The store of a DHT bounds keys, not records, not what one peer may fill, and
//! forgets nothing by itself; here is the account of it. Pure but for its owner's clock.

use std::collections::HashMap;
use std::time::Instant;

use libp2p::PeerId;
use libp2p::kad::{ProviderRecord, RecordKey};

use super::routing::Dht;

/// Records of all peers, in both DHTs.
pub(super) const RECORDS_MAX: usize = 32_768;
/// Records of one peer.
const RECORDS_PER_PEER_MAX: usize = 8_192;
/// The longest key: that of a multihash of 64 bytes, with room for its prefix.
const KEY_BYTES_MAX: usize = 80;
/// Addresses in one record, and the length of each; others are left out.
const ADDRESSES_MAX: usize = 8;
const ADDRESS_BYTES_MAX: usize = 128;

/// Whose records are in the stores, and until when.
#[derive(Default)]
pub(super) struct Providers {
    peers: HashMap<PeerId, HashMap<(Dht, RecordKey), Instant>>,
    count: usize,
}

/// A record that has to leave its store.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) dht: Dht,
    pub(super) key: RecordKey,
    pub(super) provider: PeerId,
}

/// Whether a record may be stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// In place of another one.
    InPlaceOf(Gone),
    None,
}

impl Providers {
    /// Takes a record into the account. When all is full, it is at the cost of the peer that has the most, so that one
    /// that announces without end crowds out only itself.
    pub(super) fn admit(&mut self, dht: Dht, record: &ProviderRecord, expires: Instant) -> Room {
        if record.key.as_ref().len() > KEY_BYTES_MAX {
            return Room::None;
        }
        let slot = (dht, record.key.clone());
        let records = self.peers.get(&record.provider).map_or(0, HashMap::len);
        if let Some(known) = self.peers.get_mut(&record.provider).and_then(|records| records.get_mut(&slot)) {
            *known = expires;
            return Room::Free;
        }
        if records >= RECORDS_PER_PEER_MAX {
            return Room::None;
        }
        let mut room = Room::Free;
        if self.count >= RECORDS_MAX {
            match self.take_from_the_largest(records) {
                Some(gone) => room = Room::InPlaceOf(gone),
                None => return Room::None,
            }
        }
        self.peers.entry(record.provider).or_default().insert(slot, expires);
        self.count += 1;
        room
    }

    /// Takes a record from the peer with the most, if that has more than `least`.
    fn take_from_the_largest(&mut self, least: usize) -> Option<Gone> {
        let (provider, records) = self.peers.iter_mut().max_by_key(|(_, records)| records.len())?;
        if records.len() <= least {
            return None;
        }
        let provider = *provider;
        let (dht, key) = records.keys().next().cloned()?;
        records.remove(&(dht, key.clone()));
        self.count -= 1;
        Some(Gone { dht, key, provider })
    }

    /// Takes out what has expired.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Gone> {
        let mut gone = Vec::new();
        for (provider, records) in &mut self.peers {
            let expired = records.extract_if(|_, expires| *expires <= now);
            gone.extend(expired.map(|((dht, key), _)| Gone { dht, key, provider: *provider }));
        }
        self.peers.retain(|_, records| !records.is_empty());
        self.count -= gone.len();
        gone
    }
}

/// Cuts what a peer says of its addresses down to what is kept.
pub(super) fn trim(record: &mut ProviderRecord) {
    record.addresses.retain(|address| address.len() <= ADDRESS_BYTES_MAX);
    record.addresses.truncate(ADDRESSES_MAX);
    record.addresses.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(provider: PeerId, n: usize) -> ProviderRecord {
        ProviderRecord::new(RecordKey::new(&n.to_be_bytes()), provider, Vec::new())
    }

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_peer_has_a_bounded_share_and_may_renew_it() {
        let (mut providers, peer, expires) = (Providers::default(), PeerId::random(), later(60));
        for n in 0..RECORDS_PER_PEER_MAX {
            assert_eq!(providers.admit(Dht::Lan, &record(peer, n), expires), Room::Free);
        }
        assert_eq!(providers.admit(Dht::Lan, &record(peer, usize::MAX), expires), Room::None);
        assert_eq!(providers.admit(Dht::Lan, &record(peer, 0), expires), Room::Free);
        assert_eq!(providers.admit(Dht::Lan, &record(PeerId::random(), 0), expires), Room::Free);
    }

    #[test]
    fn a_newcomer_takes_its_place_from_who_has_the_most() {
        let (mut providers, expires) = (Providers::default(), later(60));
        let greedy: Vec<PeerId> = (0..RECORDS_MAX / RECORDS_PER_PEER_MAX).map(|_| PeerId::random()).collect();
        for peer in &greedy {
            for n in 0..RECORDS_PER_PEER_MAX {
                assert_eq!(providers.admit(Dht::Wan, &record(*peer, n), expires), Room::Free);
            }
        }
        let honest = PeerId::random();
        for n in 0..100 {
            let room = providers.admit(Dht::Lan, &record(honest, n), expires);
            assert!(matches!(&room, Room::InPlaceOf(gone) if greedy.contains(&gone.provider)), "{room:?}");
        }
        assert_eq!(providers.count, RECORDS_MAX);
    }

    #[test]
    fn what_expired_is_named_once_and_makes_room() {
        let (mut providers, peer) = (Providers::default(), PeerId::random());
        providers.admit(Dht::Lan, &record(peer, 1), later(10));
        providers.admit(Dht::Wan, &record(peer, 1), later(100));
        assert_eq!(providers.expire(later(0)), []);
        let gone = Gone { dht: Dht::Lan, key: record(peer, 1).key, provider: peer };
        assert_eq!(providers.expire(later(50)), [gone]);
        assert_eq!((providers.expire(later(50)), providers.count), (Vec::new(), 1));
        assert_eq!(providers.expire(later(200)).len(), 1);
        assert_eq!((providers.peers.len(), providers.count), (0, 0));
    }

    #[test]
    fn long_keys_are_refused_and_addresses_are_cut() {
        let mut providers = Providers::default();
        let long = ProviderRecord::new(vec![0; KEY_BYTES_MAX + 1], PeerId::random(), Vec::new());
        assert_eq!(providers.admit(Dht::Lan, &long, later(1)), Room::None);

        let short = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let name = "x".repeat(ADDRESS_BYTES_MAX);
        let mut addresses = vec![short; 2 * ADDRESSES_MAX];
        addresses.insert(0, format!("/dns4/{name}/tcp/1").parse().unwrap());
        let mut record = ProviderRecord::new(vec![1], PeerId::random(), addresses);
        trim(&mut record);
        assert_eq!(record.addresses.len(), ADDRESSES_MAX);
        assert!(record.addresses.iter().all(|address| address.len() < ADDRESS_BYTES_MAX));
    }
}
