//! The record: a protobuf around a signed DAG-CBOR document.
//!
//! Only the document counts. The V1 fields beside it are copies for old readers; they are written, compared with the
//! document, and never believed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use ipld_core::ipld::Ipld;
use jiff::Timestamp;
use libp2p::identity::{Keypair, PublicKey};
use prost::Message;

use super::name::parse_cid;
use super::{IpnsError, IpnsName};
use crate::ipld::block::IDENTITY;

/// The largest record that is made or taken, in bytes (specification, "Record Size Limit").
pub const RECORD_BYTES_MAX: usize = 10 * 1024;

/// The longest time for which a record is cached on its own word: the DHT does not hold one for longer.
pub const TTL_MAX: Duration = Duration::from_secs(48 * 60 * 60);

pub(super) const SIGNATURE_PREFIX: &[u8] = b"ipns-signature:";

/// Validity type 0: the validity is a time. V1 signs the name of the type, not the number.
const END_OF_LIFE: u64 = 0;
const END_OF_LIFE_IN_V1: &[u8] = b"EOL";

const VALUE: &str = "Value";
const VALIDITY: &str = "Validity";
const VALIDITY_TYPE: &str = "ValidityType";
const SEQUENCE: &str = "Sequence";
const TTL: &str = "TTL";

/// A record whose signature was checked against its name. Whether it still is valid depends on the clock: [`IpnsRecord::check_validity`].
#[derive(Clone, Debug)]
pub struct IpnsRecord {
    name: IpnsName,
    value: String,
    sequence: u64,
    valid_until: Timestamp,
    ttl: Duration,
    bytes: Bytes,
}

impl IpnsRecord {
    /// Signs V2 with V1 fields. `valid_until` is the EOL; the value becomes `/ipfs/<cid>`; a `ttl` beyond [`TTL_MAX`]
    /// becomes [`TTL_MAX`].
    pub fn sign(
        key: &Keypair,
        root: &Cid,
        sequence: u64,
        valid_until: Timestamp,
        ttl: Duration,
    ) -> Result<Self, IpnsError> {
        Self::sign_value(key, format!("/ipfs/{root}"), sequence, valid_until, ttl)
    }

    /// The same with `/ipns/<name>` as the value: the name of the key leads on to another one (specification, "Value").
    pub fn sign_pointer(
        key: &Keypair,
        to: &IpnsName,
        sequence: u64,
        valid_until: Timestamp,
        ttl: Duration,
    ) -> Result<Self, IpnsError> {
        Self::sign_value(key, format!("/ipns/{to}"), sequence, valid_until, ttl)
    }

    fn sign_value(
        key: &Keypair,
        value: String,
        sequence: u64,
        valid_until: Timestamp,
        ttl: Duration,
    ) -> Result<Self, IpnsError> {
        let public_key = key.public();
        let name = IpnsName::from_peer_id(public_key.to_peer_id());
        let sign = |bytes: Vec<u8>| {
            key.sign(&bytes).map(Bytes::from).map_err(|source| IpnsError::Sign(Box::new(name), source))
        };

        let document = Document {
            value: value.into_bytes(),
            validity: valid_until.to_string().into_bytes(),
            validity_type: END_OF_LIFE,
            sequence,
            ttl_nanos: u64::try_from(ttl.min(TTL_MAX).as_nanos()).unwrap_or(u64::MAX),
        };
        let data = document.encode()?;
        let signature_v1 = sign([&document.value, &document.validity, END_OF_LIFE_IN_V1].concat())?;
        let signature_v2 = sign([SIGNATURE_PREFIX, &data].concat())?;
        let entry = Entry {
            value: Some(document.value.clone().into()),
            signature_v1: Some(signature_v1),
            validity_type: Some(document.validity_type),
            validity: Some(document.validity.clone().into()),
            sequence: Some(document.sequence),
            ttl: Some(document.ttl_nanos),
            pub_key: (!is_inlined(&name)).then(|| public_key.encode_protobuf().into()),
            signature_v2: Some(signature_v2),
            data: Some(data.into()),
        };
        let bytes = Bytes::from(entry.encode_to_vec());
        check_size(&bytes)?;
        Self::from_document(name, document, bytes)
    }

    /// Every check of the specification in its order ("Record Verification"), but the expiry.
    ///
    /// On top of it the value has to be UTF-8. A TTL beyond [`TTL_MAX`] is taken for [`TTL_MAX`].
    pub fn decode(name: &IpnsName, bytes: &[u8]) -> Result<Self, IpnsError> {
        // 1. The size, before anything is parsed.
        check_size(bytes)?;
        let bytes = Bytes::copy_from_slice(bytes);
        let entry = Entry::decode(bytes.clone()).map_err(IpnsError::Protobuf)?;
        // 2. What V2 needs is there.
        let signature = entry.signature_v2.as_deref().filter(|bytes| !bytes.is_empty());
        let data = entry.data.as_deref().filter(|bytes| !bytes.is_empty());
        let (Some(signature), Some(data)) = (signature, data) else { return Err(IpnsError::Unsigned) };
        // 3. The key, from the record or from the name.
        let key = public_key(name, entry.pub_key.as_deref())?;
        // 4. to 6. The document and its signature.
        let document = Document::decode(data)?;
        if !key.verify(&[SIGNATURE_PREFIX, data].concat(), signature) {
            return Err(IpnsError::Signature(Box::new(*name)));
        }
        // 7. The copies for V1. The signature of V1 itself proves nothing and is not looked at.
        if entry.signature_v1.is_some() || entry.value.is_some() {
            entry.check_against(&document)?;
        }
        // 8. The validity, as far as it can be known without a clock.
        Self::from_document(*name, document, bytes)
    }

    fn from_document(name: IpnsName, document: Document, bytes: Bytes) -> Result<Self, IpnsError> {
        if document.validity_type != END_OF_LIFE {
            return Err(IpnsError::ValidityType(document.validity_type));
        }
        let valid_until = parse_validity(&document.validity)?;
        let value = String::from_utf8(document.value)
            .map_err(|_| IpnsError::Data(format!("{VALUE} is not UTF-8")))?;
        let ttl = Duration::from_nanos(document.ttl_nanos).min(TTL_MAX);
        Ok(Self { name, value, sequence: document.sequence, valid_until, ttl, bytes })
    }

    /// An error once `now` has reached the EOL.
    pub fn check_validity(&self, now: Timestamp) -> Result<(), IpnsError> {
        if now < self.valid_until {
            return Ok(());
        }
        Err(IpnsError::Expired { name: Box::new(self.name), valid_until: self.valid_until })
    }

    /// The selection rule among records of one name: sequence, then EOL, then raw bytes, the larger of each.
    ///
    /// All nodes have to agree on it, so it is boxo's to the letter. There, V2 comes first; every record here has it.
    pub fn is_better_than(&self, other: &Self) -> bool {
        self.rank() > other.rank()
    }

    fn rank(&self) -> (u64, Timestamp, &[u8]) {
        (self.sequence, self.valid_until, &self.bytes)
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
        let text = self.value.strip_prefix("/ipfs/")?;
        parse_cid(text.strip_suffix('/').unwrap_or(text))
    }

    /// The name, if the value is `/ipns/<name>` without a path behind it: where the name of this record leads on to.
    pub fn leads_to(&self) -> Option<IpnsName> {
        let text = self.value.strip_prefix("/ipns/")?;
        text.strip_suffix('/').unwrap_or(text).parse().ok()
    }

    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    pub fn valid_until(&self) -> Timestamp {
        self.valid_until
    }

    /// For how long the record may be believed without asking again, at most [`TTL_MAX`].
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The protobuf as it came or was made: what is put into the DHT.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// `IpnsEntry` of the specification.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub(super) value: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) signature_v1: Option<Bytes>,
    #[prost(uint64, optional, tag = "3")]
    pub(super) validity_type: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) validity: Option<Bytes>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) sequence: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub(super) ttl: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub(super) pub_key: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "8")]
    pub(super) signature_v2: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub(super) data: Option<Bytes>,
}

impl Entry {
    /// Holds the V1 fields to the signed document. One that is absent counts as empty or zero, as protobuf has it.
    fn check_against(&self, document: &Document) -> Result<(), IpnsError> {
        let matches = [
            (VALUE, self.value.as_deref().unwrap_or_default() == document.value),
            (VALIDITY, self.validity.as_deref().unwrap_or_default() == document.validity),
            (VALIDITY_TYPE, self.validity_type.unwrap_or_default() == document.validity_type),
            (SEQUENCE, self.sequence.unwrap_or_default() == document.sequence),
            (TTL, self.ttl.unwrap_or_default() == document.ttl_nanos),
        ];
        match matches.iter().find(|(_, same)| !same) {
            Some((field, _)) => Err(IpnsError::V1Mismatch(field)),
            None => Ok(()),
        }
    }
}

/// The fields of the signed document that the specification knows. Others are allowed, signed and ignored.
#[derive(Debug, PartialEq)]
pub(super) struct Document {
    pub(super) value: Vec<u8>,
    pub(super) validity: Vec<u8>,
    pub(super) validity_type: u64,
    pub(super) sequence: u64,
    pub(super) ttl_nanos: u64,
}

impl Document {
    /// The order of the keys is the encoder's duty: shorter first, then bytewise.
    pub(super) fn encode(&self) -> Result<Vec<u8>, IpnsError> {
        let fields = BTreeMap::from([
            (VALUE.to_owned(), Ipld::Bytes(self.value.clone())),
            (VALIDITY.to_owned(), Ipld::Bytes(self.validity.clone())),
            (VALIDITY_TYPE.to_owned(), Ipld::Integer(self.validity_type.into())),
            (SEQUENCE.to_owned(), Ipld::Integer(self.sequence.into())),
            (TTL.to_owned(), Ipld::Integer(self.ttl_nanos.into())),
        ]);
        serde_ipld_dagcbor::to_vec(&Ipld::Map(fields)).map_err(|error| IpnsError::Data(error.to_string()))
    }

    pub(super) fn decode(data: &[u8]) -> Result<Self, IpnsError> {
        let document: Ipld = serde_ipld_dagcbor::from_slice(data)
            .map_err(|error| IpnsError::Data(format!("no strict DAG-CBOR ({error})")))?;
        let Ipld::Map(mut fields) = document else {
            return Err(IpnsError::Data("no map".to_owned()));
        };
        Ok(Self {
            value: take_bytes(&mut fields, VALUE)?,
            validity: take_bytes(&mut fields, VALIDITY)?,
            validity_type: take_u64(&mut fields, VALIDITY_TYPE)?,
            sequence: take_u64(&mut fields, SEQUENCE)?,
            ttl_nanos: take_u64(&mut fields, TTL)?,
        })
    }
}

fn take_bytes(fields: &mut BTreeMap<String, Ipld>, key: &str) -> Result<Vec<u8>, IpnsError> {
    match fields.remove(key) {
        Some(Ipld::Bytes(bytes)) => Ok(bytes),
        Some(_) => Err(IpnsError::Data(format!("{key} is not bytes"))),
        None => Err(IpnsError::Data(format!("{key} is missing"))),
    }
}

fn take_u64(fields: &mut BTreeMap<String, Ipld>, key: &str) -> Result<u64, IpnsError> {
    match fields.remove(key) {
        Some(Ipld::Integer(number)) => u64::try_from(number).map_err(|_| {
            IpnsError::Data(format!("{key} is {number}, and not an unsigned integer of 64 bits"))
        }),
        Some(_) => Err(IpnsError::Data(format!("{key} is not an integer"))),
        None => Err(IpnsError::Data(format!("{key} is missing"))),
    }
}

fn check_size(bytes: &[u8]) -> Result<(), IpnsError> {
    match bytes.len() {
        size_bytes if size_bytes > RECORD_BYTES_MAX => Err(IpnsError::TooLarge { size_bytes }),
        _ => Ok(()),
    }
}

fn is_inlined(name: &IpnsName) -> bool {
    name.peer_id().as_ref().code() == IDENTITY
}

/// The key of `name`: what the record brings along, if it is the one, else what the name holds.
fn public_key(name: &IpnsName, in_record: Option<&[u8]>) -> Result<PublicKey, IpnsError> {
    let encoded = match in_record.filter(|bytes| !bytes.is_empty()) {
        Some(bytes) => bytes,
        None if is_inlined(name) => name.peer_id().as_ref().digest(),
        None => return Err(IpnsError::KeyMissing(Box::new(*name))),
    };
    let key =
        PublicKey::try_decode_protobuf(encoded).map_err(|source| IpnsError::Key(Box::new(*name), source))?;
    let found = IpnsName::from_peer_id(key.to_peer_id());
    if found != *name {
        return Err(IpnsError::KeyMismatch { wanted: Box::new(*name), found: Box::new(found) });
    }
    Ok(key)
}

/// Reads a time of RFC 3339 to the nanosecond. jiff understands more than that, so the shape is checked first.
pub(super) fn parse_validity(validity: &[u8]) -> Result<Timestamp, IpnsError> {
    let text = String::from_utf8_lossy(validity);
    match text.parse() {
        Ok(time) if is_rfc3339(validity) => Ok(time),
        _ => Err(IpnsError::Validity(text.chars().take(64).collect())),
    }
}

/// `2030-01-31T12:00:00`, a fraction of one to nine digits if any, then `Z` or `+01:00`.
fn is_rfc3339(text: &[u8]) -> bool {
    let Some((time, rest)) = text.split_at_checked(19) else { return false };
    let (fraction, zone) = rest.split_at(rest.iter().position(|byte| b"Z+-".contains(byte)).unwrap_or(0));
    let fraction_ok = match fraction {
        [] => true,
        [b'.', digits @ ..] => (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    // Seconds are checked for the leap second, which jiff reads as the second before.
    fraction_ok
        && has_shape(time, b"0000-00-00T00:00:00")
        && &time[17..] < b"60".as_slice()
        && (zone == b"Z" || has_shape(zone, b"+00:00") || has_shape(zone, b"-00:00"))
}

/// Whether `text` is `shape`, where a `0` of the shape stands for any digit.
fn has_shape(text: &[u8], shape: &[u8]) -> bool {
    text.len() == shape.len()
        && text.iter().zip(shape).all(|(byte, wanted)| match wanted {
            b'0' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}

/// The golden Ed25519 key of the tests: a fuzzer that starts from its records gets past the signature.
pub(super) const FUZZ_NAME: &str = "k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e";

pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(name) = FUZZ_NAME.parse()
        && let Ok(record) = IpnsRecord::decode(&name, bytes)
    {
        assert!(record.bytes.len() <= RECORD_BYTES_MAX && record.ttl <= TTL_MAX);
        assert!(record.check_validity(record.valid_until).is_err());
        assert!(!record.is_better_than(&record));
        let _ = record.root();
    }
    if let Ok(document) = Document::decode(bytes)
        && let Ok(encoded) = document.encode()
    {
        assert_eq!(Document::decode(&encoded).ok(), Some(document));
    }
    let _ = parse_validity(bytes);
}
