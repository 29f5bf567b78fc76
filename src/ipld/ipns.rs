//! IPNS names and records (IPNS record specification, specs.ipfs.tech/ipns/ipns-record).
//!
//! A record is a protobuf around a signed DAG-CBOR map. Ours carry the fields of version 1 too, for old readers; those of
//! others need not. Only checked records exist as [`IpnsRecord`]; whether one has expired is asked with a clock.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use ipld_core::ipld::Ipld;
use jiff::Timestamp;
use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey};
use multibase::Base;
use prost::Message;
use serde::{Deserialize, Serialize};

/// The largest record, in bytes (specification, "Record Size Limit").
pub const RECORD_BYTES_MAX: usize = 10 * 1024;

/// The codec of a CID that names a key.
const LIBP2P_KEY: u64 = 0x72;
const ROUTING_PREFIX: &[u8] = b"/ipns/";
const SIGNATURE_V2_PREFIX: &[u8] = b"ipns-signature:";
const VALIDITY_TYPE_EOL: i32 = 0;

/// The name of a mutable pointer: the hash of (or the whole) public key that may move it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpnsName(PeerId);

/// Why something is no IPNS name, or no valid record of one.
#[derive(Debug, thiserror::Error)]
pub enum IpnsError {
    #[error("{0:?} is no IPNS name: k51…, 12D3… or Qm… is expected")]
    Name(String),
    #[error("record of {name} has {size_bytes} bytes: at most {RECORD_BYTES_MAX} are allowed")]
    TooLarge { name: IpnsName, size_bytes: usize },
    #[error("record of {0} is malformed: {1}")]
    Malformed(IpnsName, &'static str),
    #[error("record of {0} carries no usable public key: {1}")]
    PublicKey(IpnsName, &'static str),
    #[error("record of {0} is not signed by its key")]
    Signature(IpnsName),
    #[error("record of {name} expired at {valid_until}")]
    Expired { name: IpnsName, valid_until: Timestamp },
    #[error("record of {0} cannot be signed: {1}")]
    Sign(IpnsName, String),
}

impl IpnsName {
    pub fn from_peer_id(peer: PeerId) -> Self {
        Self(peer)
    }

    pub fn peer_id(&self) -> &PeerId {
        &self.0
    }

    /// `/ipns/` and the bytes of the peer id: the DHT key.
    pub fn routing_key(&self) -> Vec<u8> {
        [ROUTING_PREFIX, &self.0.to_bytes()].concat()
    }

    /// The name that a DHT key belongs to; `None` for the keys of anything else.
    pub fn from_routing_key(key: &[u8]) -> Option<Self> {
        PeerId::from_bytes(key.strip_prefix(ROUTING_PREFIX)?).ok().map(Self)
    }

    /// The public key, if the name holds the whole of it.
    fn inlined_key(&self) -> Option<PublicKey> {
        let hash = self.0.as_ref();
        (hash.code() == 0).then(|| PublicKey::try_decode_protobuf(hash.digest()).ok()).flatten()
    }
}

impl FromStr for IpnsName {
    type Err = IpnsError;

    /// A CIDv1 with codec libp2p-key in any multibase, or a base58 peer id; `/ipns/` before it is forgiven.
    fn from_str(name: &str) -> Result<Self, IpnsError> {
        let error = || IpnsError::Name(name.to_owned());
        let bare = name.strip_prefix("/ipns/").unwrap_or(name);
        if let Ok(peer) = bare.parse() {
            return Ok(Self(peer));
        }
        let cid: Cid = bare.parse().map_err(|_| error())?;
        if cid.codec() != LIBP2P_KEY {
            return Err(error());
        }
        PeerId::from_multihash(*cid.hash()).map(Self).map_err(|_| error())
    }
}

impl fmt::Display for IpnsName {
    /// base36 CIDv1: `k51…`, `k2k4…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cid = Cid::new_v1(LIBP2P_KEY, *self.0.as_ref());
        f.write_str(&multibase::encode(Base::Base36Lower, cid.to_bytes()))
    }
}

impl fmt::Debug for IpnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for IpnsName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpnsName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `IpnsEntry` of the specification.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(bytes = "bytes", optional, tag = "1")]
    value: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    signature_v1: Option<Bytes>,
    #[prost(int32, optional, tag = "3")]
    validity_type: Option<i32>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    validity: Option<Bytes>,
    #[prost(uint64, optional, tag = "5")]
    sequence: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    ttl: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    public_key: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "8")]
    signature_v2: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "9")]
    data: Option<Bytes>,
}

/// The signed map. Other keys may stand beside these, and are covered by the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Data {
    value: Vec<u8>,
    validity: Vec<u8>,
    validity_type: i32,
    sequence: u64,
    ttl_ns: u64,
}

/// A record whose signature was checked against its name. Whether it still is valid depends on the clock:
/// [`IpnsRecord::check_validity`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpnsRecord {
    name: IpnsName,
    value: String,
    sequence: u64,
    valid_until: Timestamp,
    ttl: Duration,
    bytes: Bytes,
}

impl IpnsRecord {
    /// Signs version 2 with the fields of version 1. `valid_until` is the end of life; the value becomes `/ipfs/<cid>`.
    pub fn sign(
        key: &Keypair,
        root: &Cid,
        sequence: u64,
        valid_until: Timestamp,
        ttl: Duration,
    ) -> Result<Self, IpnsError> {
        let name = IpnsName(key.public().to_peer_id());
        let sign =
            |message: &[u8]| key.sign(message).map_err(|error| IpnsError::Sign(name, error.to_string()));
        let data = Data {
            value: format!("/ipfs/{root}").into_bytes(),
            validity: format!("{valid_until:.9}").into_bytes(),
            validity_type: VALIDITY_TYPE_EOL,
            sequence,
            ttl_ns: u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX).min(i64::MAX as u64),
        };
        let encoded = data.encode(name)?;
        let v1 = [data.value.as_slice(), &data.validity, b"EOL"].concat();
        let entry = Entry {
            signature_v1: Some(sign(&v1)?.into()),
            signature_v2: Some(sign(&[SIGNATURE_V2_PREFIX, &encoded].concat())?.into()),
            value: Some(data.value.into()),
            validity_type: Some(data.validity_type),
            validity: Some(data.validity.into()),
            sequence: Some(data.sequence),
            ttl: Some(data.ttl_ns),
            public_key: name.inlined_key().is_none().then(|| key.public().encode_protobuf().into()),
            data: Some(encoded.into()),
        };
        Self::decode(&name, &entry.encode_to_vec())
    }

    /// Every check of the specification in its order ("Record Verification"), but the expiry.
    pub fn decode(name: &IpnsName, bytes: &[u8]) -> Result<Self, IpnsError> {
        let malformed = |what| IpnsError::Malformed(*name, what);
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(IpnsError::TooLarge { name: *name, size_bytes: bytes.len() });
        }
        let bytes = Bytes::copy_from_slice(bytes);
        let entry = Entry::decode(bytes.clone()).map_err(|_| malformed("no protobuf of an IPNS entry"))?;
        let signature = entry.signature_v2.as_ref().filter(|signature| !signature.is_empty());
        let signature = signature.ok_or_else(|| malformed("no signature of version 2"))?;
        let encoded =
            entry.data.as_ref().filter(|data| !data.is_empty()).ok_or_else(|| malformed("no data"))?;
        let key = public_key(name, &entry)?;
        let data = Data::decode(encoded)
            .ok_or_else(|| malformed("its data is no DAG-CBOR map of an IPNS record"))?;
        if !key.verify(&[SIGNATURE_V2_PREFIX, encoded].concat(), signature) {
            return Err(IpnsError::Signature(*name));
        }
        if has_v1_fields(&entry) && !matches_v1(&entry, &data) {
            return Err(malformed("its fields of version 1 differ from the signed ones"));
        }
        if data.validity_type != VALIDITY_TYPE_EOL {
            return Err(malformed("its validity type is not EOL"));
        }
        let validity =
            std::str::from_utf8(&data.validity).ok().and_then(|text| text.parse::<Timestamp>().ok());
        Ok(Self {
            name: *name,
            value: String::from_utf8(data.value).map_err(|_| malformed("its value is not a path"))?,
            sequence: data.sequence,
            valid_until: validity.ok_or_else(|| malformed("its validity is not an RFC 3339 time"))?,
            ttl: Duration::from_nanos(data.ttl_ns),
            bytes,
        })
    }

    /// An error once `now` is past the end of life.
    pub fn check_validity(&self, now: Timestamp) -> Result<(), IpnsError> {
        if now <= self.valid_until {
            return Ok(());
        }
        Err(IpnsError::Expired { name: self.name, valid_until: self.valid_until })
    }

    /// The selection rule: higher sequence, then later end of life, then the larger bytes, so that everybody who sees
    /// the same records chooses the same one.
    pub fn is_better_than(&self, other: &Self) -> bool {
        let rank = |record: &Self| (record.sequence, record.valid_until, record.bytes.clone());
        rank(self) > rank(other)
    }

    pub fn name(&self) -> &IpnsName {
        &self.name
    }

    /// The value as written, such as `/ipfs/bafy…`.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The CID, if the value is `/ipfs/<cid>` without a path behind it.
    pub fn root(&self) -> Option<Cid> {
        self.value.strip_prefix("/ipfs/")?.trim_end_matches('/').parse().ok()
    }

    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    pub fn valid_until(&self) -> Timestamp {
        self.valid_until
    }

    /// How long a reader may go without asking for a newer one.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The protobuf as it came or was made: what is put into the DHT.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The key in the record must be the one that the name stands for; a name that holds its key needs none.
fn public_key(name: &IpnsName, entry: &Entry) -> Result<PublicKey, IpnsError> {
    let Some(encoded) = entry.public_key.as_ref().filter(|key| !key.is_empty()) else {
        return name
            .inlined_key()
            .ok_or(IpnsError::PublicKey(*name, "none in the record, and the name is a hash"));
    };
    let key = PublicKey::try_decode_protobuf(encoded)
        .map_err(|_| IpnsError::PublicKey(*name, "it is of an unknown kind or damaged"))?;
    if key.to_peer_id() != name.0 {
        return Err(IpnsError::PublicKey(*name, "it belongs to another name"));
    }
    Ok(key)
}

fn has_v1_fields(entry: &Entry) -> bool {
    entry.value.as_ref().is_some_and(|value| !value.is_empty())
        || entry.signature_v1.as_ref().is_some_and(|signature| !signature.is_empty())
}

fn matches_v1(entry: &Entry, data: &Data) -> bool {
    entry.value.as_deref().unwrap_or_default() == data.value
        && entry.validity.as_deref().unwrap_or_default() == data.validity
        && entry.validity_type.unwrap_or_default() == data.validity_type
        && entry.sequence.unwrap_or_default() == data.sequence
        && entry.ttl.unwrap_or_default() == data.ttl_ns
}

impl Data {
    fn encode(&self, name: IpnsName) -> Result<Vec<u8>, IpnsError> {
        let map = BTreeMap::from([
            ("Value".to_owned(), Ipld::Bytes(self.value.clone())),
            ("Validity".to_owned(), Ipld::Bytes(self.validity.clone())),
            ("ValidityType".to_owned(), Ipld::Integer(self.validity_type.into())),
            ("Sequence".to_owned(), Ipld::Integer(self.sequence.into())),
            ("TTL".to_owned(), Ipld::Integer(self.ttl_ns.into())),
        ]);
        serde_ipld_dagcbor::to_vec(&Ipld::Map(map)).map_err(|error| IpnsError::Sign(name, error.to_string()))
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        let Ok(Ipld::Map(mut map)) = serde_ipld_dagcbor::from_slice(encoded) else { return None };
        let Some(Ipld::Bytes(value)) = map.remove("Value") else { return None };
        let Some(Ipld::Bytes(validity)) = map.remove("Validity") else { return None };
        let mut integer = |key| match map.remove(key) {
            Some(Ipld::Integer(number)) => Some(number),
            _ => None,
        };
        Some(Self {
            value,
            validity,
            validity_type: integer("ValidityType")?.try_into().ok()?,
            sequence: integer("Sequence")?.try_into().ok()?,
            ttl_ns: integer("TTL")?.try_into().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ED25519_NAME: &str = "k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e";
    const RSA_NAME: &str = "k2k4r8kmho1gmyrjn9ls8610wfsx8n2t7bhhw3o1orlxkjcmobsxstj8";
    const VALUE: &str = "/ipfs/bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra";
    const ED25519: &[u8] = include_bytes!("../../tests/fixtures/ipns/ed25519.record");
    const ED25519_V2_ONLY: &[u8] = include_bytes!("../../tests/fixtures/ipns/ed25519-v2only.record");
    const RSA: &[u8] = include_bytes!("../../tests/fixtures/ipns/rsa.record");

    fn root() -> Cid {
        VALUE.strip_prefix("/ipfs/").unwrap().parse().unwrap()
    }

    fn end() -> Timestamp {
        "2126-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn records_of_kubo_are_read() {
        for (name, bytes) in [(ED25519_NAME, ED25519), (ED25519_NAME, ED25519_V2_ONLY), (RSA_NAME, RSA)] {
            let name: IpnsName = name.parse().unwrap();
            let record = IpnsRecord::decode(&name, bytes).unwrap();
            assert_eq!((record.value(), record.sequence(), record.root()), (VALUE, 0, Some(root())));
            assert_eq!(record.ttl(), Duration::from_secs(60));
            assert!(record.check_validity("2026-01-01T00:00:00Z".parse().unwrap()).is_ok());
            assert!(record.check_validity("2200-01-01T00:00:00Z".parse().unwrap()).is_err());
        }
    }

    #[test]
    fn our_map_is_encoded_as_kubo_does() {
        let theirs = Entry::decode(ED25519).unwrap().data.unwrap();
        let name = ED25519_NAME.parse().unwrap();
        assert_eq!(Data::decode(&theirs).unwrap().encode(name).unwrap(), theirs);
    }

    #[test]
    fn the_signature_of_version_1_covers_what_kubo_covers() {
        let entry = Entry::decode(ED25519).unwrap();
        let name: IpnsName = ED25519_NAME.parse().unwrap();
        let message = [entry.value.unwrap().as_ref(), entry.validity.unwrap().as_ref(), b"EOL"].concat();
        assert!(name.inlined_key().unwrap().verify(&message, &entry.signature_v1.unwrap()));
    }

    #[test]
    fn a_record_of_another_name_is_refused() {
        let other = IpnsName::from_peer_id(Keypair::generate_ed25519().public().to_peer_id());
        assert!(matches!(IpnsRecord::decode(&other, ED25519), Err(IpnsError::Signature(_))));
        assert!(matches!(IpnsRecord::decode(&other, RSA), Err(IpnsError::PublicKey(..))));
    }

    #[test]
    fn every_kind_of_key_signs() {
        let keys = [Keypair::generate_ed25519(), Keypair::generate_secp256k1(), Keypair::generate_ecdsa()];
        for key in keys {
            let record = IpnsRecord::sign(&key, &root(), 7, end(), Duration::from_secs(60)).unwrap();
            let read = IpnsRecord::decode(&IpnsName::from_peer_id(key.public().to_peer_id()), record.bytes())
                .unwrap();
            assert_eq!(read, record);
            assert_eq!((read.sequence(), read.root(), read.valid_until()), (7, Some(root()), end()));
        }
    }

    #[test]
    fn fields_of_version_1_must_match_the_signed_ones() {
        let name: IpnsName = ED25519_NAME.parse().unwrap();
        let mut entry = Entry::decode(ED25519).unwrap();
        entry.sequence = Some(99);
        assert!(matches!(IpnsRecord::decode(&name, &entry.encode_to_vec()), Err(IpnsError::Malformed(..))));
    }

    #[test]
    fn an_oversized_record_is_refused_unread() {
        let name: IpnsName = ED25519_NAME.parse().unwrap();
        let padded = [ED25519, &vec![0; RECORD_BYTES_MAX]].concat();
        assert!(matches!(IpnsRecord::decode(&name, &padded), Err(IpnsError::TooLarge { .. })));
    }

    #[test]
    fn names_are_read_in_every_form_and_written_in_base36() {
        let name: IpnsName = ED25519_NAME.parse().unwrap();
        let base32 = Cid::new_v1(LIBP2P_KEY, *name.peer_id().as_ref()).to_string();
        for form in [name.peer_id().to_base58(), base32, format!("/ipns/{name}")] {
            assert_eq!(form.parse::<IpnsName>().unwrap(), name, "{form}");
        }
        assert_eq!(name.to_string(), ED25519_NAME);
        assert_eq!(RSA_NAME.parse::<IpnsName>().unwrap().to_string(), RSA_NAME);
        assert_eq!(IpnsName::from_routing_key(&name.routing_key()), Some(name));
        for wrong in ["", "self", "example.com", &root().to_string(), "k51zzz"] {
            assert!(wrong.parse::<IpnsName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_better_record_is_newer_then_longer_lived() {
        let key = Keypair::generate_ed25519();
        let sign = |sequence, end: &str| {
            IpnsRecord::sign(&key, &root(), sequence, end.parse().unwrap(), Duration::ZERO).unwrap()
        };
        let (old, new) = (sign(1, "2126-01-01T00:00:00Z"), sign(2, "2026-01-01T00:00:00Z"));
        let longer = sign(2, "2027-01-01T00:00:00Z");
        assert!(new.is_better_than(&old) && !old.is_better_than(&new));
        assert!(longer.is_better_than(&new) && !new.is_better_than(&longer));
        assert!(!new.is_better_than(&new));
    }

    fn fuzz(bytes: &[u8]) {
        let name: IpnsName = ED25519_NAME.parse().unwrap();
        if let Ok(record) = IpnsRecord::decode(&name, bytes) {
            assert_eq!((record.value(), record.sequence()), (VALUE, 0));
        }
    }

    proptest! {
        #[test]
        fn junk_is_no_record(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&bytes);
        }

        #[test]
        fn a_changed_byte_never_changes_what_is_accepted(at in 0..ED25519.len(), to in any::<u8>()) {
            let mut bytes = ED25519.to_vec();
            bytes[at] = to;
            fuzz(&bytes);
        }
    }
}
