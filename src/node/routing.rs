//! Provider and IPNS records in the DHT: which of the two DHTs an address belongs to, and what peers may have us store.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use libp2p::Multiaddr;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{Record, RecordKey};
use libp2p::multiaddr::Protocol;

use super::nat::is_relayed;
use crate::ipld::Cid;
use crate::ipld::ipns::{IpnsError, IpnsName, IpnsRecord, RECORD_BYTES_MAX};

/// How long a record stays in our store, unless it expires before; who wants it longer puts it again.
const RECORD_LIFE_MAX: Duration = Duration::from_secs(48 * 3600);

/// The two DHTs, as Kubo has them: one for public addresses, one for private ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Dht {
    Wan,
    Lan,
}

impl Dht {
    pub(super) const BOTH: [Self; 2] = [Self::Wan, Self::Lan];

    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::Wan => "/ipfs/kad/1.0.0",
            Self::Lan => "/ipfs/lan/kad/1.0.0",
        }
    }

    /// Whether peers of this DHT are to be reached at `address`. Behind a NAT a relay is the way to those of both: a dial
    /// that knows their private address alone fails, and the one address that would do comes too late for it.
    pub(super) fn admits(self, address: &Multiaddr) -> bool {
        is_relayed(address) || is_public(address) == (self == Self::Wan)
    }
}

/// Whether an address can be reached from the internet. A DNS name counts as public. An address with several hosts is only
/// if all of them are: the transport over TCP dials the last one.
pub(super) fn is_public(address: &Multiaddr) -> bool {
    let is_at_host = matches!(
        address.iter().next(),
        Some(
            Protocol::Ip4(_)
                | Protocol::Ip6(_)
                | Protocol::Dns(_)
                | Protocol::Dns4(_)
                | Protocol::Dns6(_)
                | Protocol::Dnsaddr(_)
        )
    );
    let all_are_public = address.iter().all(|part| match part {
        Protocol::Ip4(ip) => is_public_ip(ip.into()),
        Protocol::Ip6(ip) => is_public_ip(ip.into()),
        _ => true,
    });
    is_at_host && all_are_public
}

/// The same of a host. One of IPv4 that is written as IPv6 is what it is in IPv4.
fn is_public_ip(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
        }
        IpAddr::V6(ip) => {
            let local = ip.segments()[0] & 0xfe00 == 0xfc00 || ip.segments()[0] & 0xffc0 == 0xfe80;
            !(ip.is_loopback() || ip.is_unspecified() || local)
        }
    }
}

/// The key under which providers of a DAG are found: the multihash, whatever the codec.
pub(super) fn provider_key(root: &Cid) -> RecordKey {
    RecordKey::new(&root.hash().to_bytes())
}

/// Why a record that was put to us is not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the key is no IPNS name")]
    Key,
    #[error(transparent)]
    Ipns(#[from] IpnsError),
    #[error("it is older than what is here")]
    Older,
    #[error("the store of records is full")]
    Full,
}

/// Checks what a peer wants stored, against the clock and what is here already.
pub(super) fn check(key: &RecordKey, value: &[u8], now: Timestamp) -> Result<IpnsRecord, Refused> {
    let name = IpnsName::from_routing_key(key.as_ref()).ok_or(Refused::Key)?;
    if value.len() > RECORD_BYTES_MAX {
        return Err(IpnsError::TooLarge { size_bytes: value.len() }.into());
    }
    let record = IpnsRecord::decode(&name, value)?;
    record.check_validity(now)?;
    Ok(record)
}

/// Stores a checked record if it is better than the one at hand. The sender's word on publisher and expiry is not taken.
/// `Ok(false)`: the same one is here already.
pub(super) fn store(
    records: &mut impl RecordStore,
    record: &IpnsRecord,
    now: Timestamp,
) -> Result<bool, Refused> {
    let key = RecordKey::new(&record.name().routing_key());
    let known = records.get(&key).and_then(|known| IpnsRecord::decode(record.name(), &known.value).ok());
    if let Some(known) = known.filter(|known| known.check_validity(now).is_ok()) {
        if known.bytes() == record.bytes() {
            return Ok(false);
        }
        if known.is_better_than(record) {
            return Err(Refused::Older);
        }
    }
    records.put(dht_record(record, now)).map_err(|_| Refused::Full)?;
    Ok(true)
}

/// A record in the form that the DHT stores and sends.
pub(super) fn dht_record(record: &IpnsRecord, now: Timestamp) -> Record {
    let left = Duration::try_from(record.valid_until().duration_since(now)).unwrap_or_default();
    Record {
        key: RecordKey::new(&record.name().routing_key()),
        value: record.bytes().to_vec(),
        publisher: None,
        expires: Instant::now().checked_add(left.min(RECORD_LIFE_MAX)),
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use libp2p::kad::store::MemoryStore;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn record(key: &Keypair, sequence: u64, until: &str) -> IpnsRecord {
        let root = "bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra".parse().unwrap();
        IpnsRecord::sign(key, &root, sequence, until.parse().unwrap(), Duration::from_secs(60)).unwrap()
    }

    fn key_of(record: &IpnsRecord) -> RecordKey {
        RecordKey::new(&record.name().routing_key())
    }

    #[test]
    fn only_valid_records_under_their_own_name_are_taken() {
        let (ours, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let good = record(&ours, 1, "2027-01-01T00:00:00Z");
        let foreign = record(&other, 1, "2027-01-01T00:00:00Z");
        let expired = record(&ours, 1, "2025-01-01T00:00:00Z");
        assert_eq!(check(&key_of(&good), good.bytes(), now()).unwrap().bytes(), good.bytes());
        assert!(matches!(check(&key_of(&good), foreign.bytes(), now()), Err(Refused::Ipns(_))));
        assert!(matches!(
            check(&key_of(&good), expired.bytes(), now()),
            Err(Refused::Ipns(IpnsError::Expired { .. }))
        ));
        assert!(matches!(check(&RecordKey::new(b"/pk/x"), good.bytes(), now()), Err(Refused::Key)));
        let padded = [good.bytes().as_ref(), &vec![0; RECORD_BYTES_MAX]].concat();
        assert!(matches!(
            check(&key_of(&good), &padded, now()),
            Err(Refused::Ipns(IpnsError::TooLarge { .. }))
        ));
    }

    #[test]
    fn an_older_record_never_replaces_a_newer_one() {
        let key = Keypair::generate_ed25519();
        let mut records = MemoryStore::new(key.public().to_peer_id());
        let (old, new) = (record(&key, 1, "2027-01-01T00:00:00Z"), record(&key, 2, "2027-01-01T00:00:00Z"));
        assert!(store(&mut records, &new, now()).unwrap());
        assert!(matches!(store(&mut records, &old, now()), Err(Refused::Older)));
        assert!(!store(&mut records, &new, now()).unwrap());
        assert_eq!(records.get(&key_of(&new)).unwrap().value, new.bytes().as_ref());
    }

    #[test]
    fn an_expired_record_makes_room_for_an_older_valid_one() {
        let key = Keypair::generate_ed25519();
        let mut records = MemoryStore::new(key.public().to_peer_id());
        let expired = record(&key, 9, "2025-06-01T00:00:00Z");
        store(&mut records, &expired, "2025-01-01T00:00:00Z".parse().unwrap()).unwrap();
        assert!(store(&mut records, &record(&key, 1, "2027-01-01T00:00:00Z"), now()).unwrap());
    }

    #[test]
    fn an_address_at_a_relay_belongs_to_both_dhts() {
        let relay = libp2p::PeerId::random();
        let address = format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap();
        assert!(Dht::BOTH.iter().all(|dht| dht.admits(&address)));
    }

    #[test]
    fn addresses_belong_to_one_of_the_dhts() {
        for (address, public) in [
            ("/ip4/127.0.0.1/tcp/1", false),
            ("/ip4/10.0.0.1/tcp/1", false),
            ("/ip4/100.64.0.1/tcp/1", false),
            ("/ip4/169.254.1.1/udp/1/quic-v1", false),
            ("/ip6/::1/tcp/1", false),
            ("/ip6/fe80::1/tcp/1", false),
            ("/ip6/fd00::1/tcp/1", false),
            ("/ip6/::ffff:10.0.0.1/tcp/1", false),
            ("/ip4/8.8.8.8/ip4/10.0.0.1/tcp/1", false),
            ("/ip4/8.8.8.8/tcp/1/ip6/::1/tcp/1", false),
            ("/dns4/example.com/ip4/10.0.0.1/tcp/1", false),
            ("/ip4/8.8.8.8/tcp/1", true),
            ("/ip6/2001:4860::1/tcp/1", true),
            ("/ip6/::ffff:8.8.8.8/tcp/1", true),
            ("/dns4/example.com/tcp/1", true),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(
                (Dht::Wan.admits(&address), Dht::Lan.admits(&address)),
                (public, !public),
                "{address}"
            );
        }
    }
}
