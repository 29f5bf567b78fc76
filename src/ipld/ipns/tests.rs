//! Records against Kubo's, against the specification, and against whoever wants to be believed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use ipld_core::ipld::Ipld;
use jiff::Timestamp;
use libp2p::identity::{Keypair, PublicKey};
use proptest::prelude::*;
use prost::Message;

use super::record::{Document, Entry, FUZZ_NAME, SIGNATURE_PREFIX, parse_validity};
use super::*;
use crate::ipld::Multihash;

const ED25519: &[u8] = include_bytes!("../../../tests/fixtures/ipns/ed25519.record");
const ED25519_V2_ONLY: &[u8] = include_bytes!("../../../tests/fixtures/ipns/ed25519-v2only.record");
const RSA: &[u8] = include_bytes!("../../../tests/fixtures/ipns/rsa.record");
const RSA_NAME: &str = "k2k4r8kmho1gmyrjn9ls8610wfsx8n2t7bhhw3o1orlxkjcmobsxstj8";
const RSA_KEY: &[u8] = include_bytes!("../../../tests/fixtures/keys/rsa.key");
const ROOT: &str = "bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra";

const MINUTE: Duration = Duration::from_secs(60);

fn golden() -> [(IpnsName, &'static [u8]); 3] {
    let ed25519 = FUZZ_NAME.parse().unwrap();
    [(ed25519, ED25519), (ed25519, ED25519_V2_ONLY), (RSA_NAME.parse().unwrap(), RSA)]
}

fn root() -> Cid {
    ROOT.parse().unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn key() -> Keypair {
    Keypair::ed25519_from_bytes([7; 32]).unwrap()
}

fn name_of(key: &Keypair) -> IpnsName {
    IpnsName::from_peer_id(key.public().to_peer_id())
}

/// A key of each type that libp2p knows.
fn keys() -> [Keypair; 4] {
    let rsa = Keypair::from_protobuf_encoding(RSA_KEY).unwrap();
    [Keypair::generate_ed25519(), Keypair::generate_secp256k1(), Keypair::generate_ecdsa(), rsa]
}

fn signed(key: &Keypair) -> IpnsRecord {
    IpnsRecord::sign(key, &root(), 7, time("2126-01-01T00:00:00.000000001Z"), MINUTE).unwrap()
}

fn entry_of(record: &IpnsRecord) -> Entry {
    Entry::decode(record.bytes().clone()).unwrap()
}

fn document() -> BTreeMap<String, Ipld> {
    let data = entry_of(&signed(&key())).data.unwrap();
    serde_ipld_dagcbor::from_slice(&data).unwrap()
}

/// What the owner of [`key`] gets past the signature: any data at all.
fn decode_data(data: Vec<u8>) -> Result<IpnsRecord, IpnsError> {
    let signature = key().sign(&[SIGNATURE_PREFIX, &data].concat()).unwrap();
    let entry = Entry { signature_v2: Some(signature.into()), data: Some(data.into()), ..Entry::default() };
    IpnsRecord::decode(&name_of(&key()), &entry.encode_to_vec())
}

fn decode_document(fields: BTreeMap<String, Ipld>) -> Result<IpnsRecord, IpnsError> {
    decode_data(serde_ipld_dagcbor::to_vec(&Ipld::Map(fields)).unwrap())
}

fn decode_with(change: impl FnOnce(&mut Entry)) -> Result<IpnsRecord, IpnsError> {
    let mut entry = entry_of(&signed(&key()));
    change(&mut entry);
    IpnsRecord::decode(&name_of(&key()), &entry.encode_to_vec())
}

type Change = fn(&mut Entry);

/// All that a record makes us believe.
fn content(record: &IpnsRecord) -> (IpnsName, String, u64, Timestamp, Duration) {
    (*record.name(), record.value().to_owned(), record.sequence(), record.valid_until(), record.ttl())
}

#[test]
fn records_of_kubo_are_read() {
    for (name, bytes) in golden() {
        let record = IpnsRecord::decode(&name, bytes).unwrap();
        assert_eq!(record.name(), &name);
        assert_eq!(record.value(), format!("/ipfs/{ROOT}"));
        assert_eq!(record.root(), Some(root()));
        assert_eq!(record.sequence(), 0);
        assert_eq!(record.ttl(), MINUTE);
        assert_eq!(record.bytes(), bytes);
        assert!(record.valid_until().to_string().starts_with("2126-10-31T07:17:1"));
        record.check_validity(time("2026-12-01T00:00:00Z")).unwrap();
    }
}

/// Signatures of Ed25519 and RSA are the same each time, so the whole record is.
#[test]
fn we_sign_the_same_bytes_as_kubo() {
    let known: [(&[u8], &[u8]); 2] = [
        (
            include_bytes!("../../../tests/fixtures/keys/ed25519.key"),
            include_bytes!("../../../tests/fixtures/ipns/known-ed25519.record"),
        ),
        (RSA_KEY, include_bytes!("../../../tests/fixtures/ipns/known-rsa.record")),
    ];
    for (key, bytes) in known {
        let key = Keypair::from_protobuf_encoding(key).unwrap();
        let kubos = IpnsRecord::decode(&name_of(&key), bytes).unwrap();
        let ours = IpnsRecord::sign(&key, &root(), 5, kubos.valid_until(), MINUTE).unwrap();
        assert_eq!(ours.bytes(), bytes);
    }
}

#[test]
fn a_record_is_of_its_name_only() {
    let other = name_of(&key());
    for (_, bytes) in golden() {
        assert!(IpnsRecord::decode(&other, bytes).is_err());
    }
    let (_, rsa) = golden()[2];
    let error = IpnsRecord::decode(&other, rsa).unwrap_err();
    assert!(matches!(error, IpnsError::KeyMismatch { .. }), "{error}");
    let error = IpnsRecord::decode(&other, ED25519).unwrap_err();
    assert!(matches!(error, IpnsError::Signature(_)), "{error}");
    let error = IpnsRecord::decode(&RSA_NAME.parse().unwrap(), ED25519).unwrap_err();
    assert!(matches!(error, IpnsError::KeyMissing(_)), "{error}");
}

/// What Kubo signs for V1 ends in the name of the validity type; its number would not be verified by old readers.
#[test]
fn the_v1_signature_is_over_the_same_bytes_as_kubos() {
    let kubo = Entry::decode(ED25519).unwrap();
    let ours = entry_of(&signed(&key()));
    for (name, entry) in [(FUZZ_NAME.parse::<IpnsName>().unwrap(), kubo), (name_of(&key()), ours)] {
        let key = PublicKey::try_decode_protobuf(name.peer_id().as_ref().digest()).unwrap();
        let signed = [entry.value.unwrap().as_ref(), entry.validity.unwrap().as_ref(), b"EOL"].concat();
        assert!(key.verify(&signed, &entry.signature_v1.unwrap()));
    }
}

#[test]
fn every_type_of_key_signs_what_decodes_again() {
    for key in keys() {
        let record = signed(&key);
        let again = IpnsRecord::decode(&name_of(&key), record.bytes()).unwrap();
        assert_eq!(content(&again), content(&record));
        assert_eq!(again.root(), Some(root()));
        let inlined = key.public().encode_protobuf().len() <= 42;
        assert_eq!(entry_of(&record).pub_key.is_none(), inlined, "{:?}", key.key_type());
    }
}

#[test]
fn no_flipped_bit_changes_what_is_believed() {
    let mut originals: Vec<_> = golden().map(|(name, bytes)| (name, Bytes::from_static(bytes))).into();
    originals.extend(keys().map(|key| (name_of(&key), signed(&key).bytes().clone())));
    for (name, bytes) in originals {
        let believed = content(&IpnsRecord::decode(&name, &bytes).unwrap());
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(record) = IpnsRecord::decode(&name, &changed) {
                assert_eq!(content(&record), believed, "bit {bit} of the record of {name}");
            }
        }
    }
}

#[test]
fn v2_is_needed_and_v1_is_not_believed() {
    let unsigned: [Change; 4] = [
        |entry| entry.signature_v2 = None,
        |entry| entry.signature_v2 = Some(Bytes::new()),
        |entry| entry.data = None,
        |entry| entry.data = Some(Bytes::new()),
    ];
    for change in unsigned {
        assert!(matches!(decode_with(change), Err(IpnsError::Unsigned)));
    }
    let still_valid: [Change; 3] = [
        |entry| entry.signature_v1 = None,
        |entry| entry.signature_v1 = Some(Bytes::from_static(b"junk")),
        |entry| {
            let (signature_v2, data) = (entry.signature_v2.take(), entry.data.take());
            *entry = Entry { signature_v2, data, ..Entry::default() };
        },
    ];
    for change in still_valid {
        decode_with(change).unwrap();
    }
}

#[test]
fn v1_fields_have_to_match_the_signed_data() {
    let changes: [(&str, Change); 10] = [
        ("Value", |entry| entry.value = Some(Bytes::from_static(b"/ipfs/bafkqaaa"))),
        ("Value", |entry| entry.value = None),
        ("Validity", |entry| entry.validity = Some(Bytes::from_static(b"2200-01-01T00:00:00Z"))),
        ("Validity", |entry| entry.validity = None),
        ("ValidityType", |entry| entry.validity_type = Some(1)),
        ("ValidityType", |entry| entry.validity_type = Some(1 << 32)),
        ("Sequence", |entry| entry.sequence = Some(8)),
        ("Sequence", |entry| entry.sequence = None),
        ("TTL", |entry| entry.ttl = Some(0)),
        ("TTL", |entry| entry.ttl = None),
    ];
    for (field, change) in changes {
        assert!(matches!(decode_with(change), Err(IpnsError::V1Mismatch(found)) if found == field));
    }
}

#[test]
fn an_embedded_key_is_used_only_if_it_is_the_one_of_the_name() {
    decode_with(|entry| entry.pub_key = Some(key().public().encode_protobuf().into())).unwrap();
    let other = Keypair::generate_ed25519().public().encode_protobuf();
    let error = decode_with(|entry| entry.pub_key = Some(other.into())).unwrap_err();
    assert!(matches!(error, IpnsError::KeyMismatch { .. }), "{error}");
    let error = decode_with(|entry| entry.pub_key = Some(Bytes::from_static(b"no key"))).unwrap_err();
    assert!(matches!(error, IpnsError::Key(..)), "{error}");
}

#[test]
fn unknown_fields_are_covered_by_the_signature_and_ignored() {
    let mut fields = document();
    fields.insert("_shoal".to_owned(), Ipld::List(vec![Ipld::Null, Ipld::Link(root())]));
    assert_eq!(decode_document(fields.clone()).unwrap().sequence(), 7);

    let record = signed(&key());
    let more = serde_ipld_dagcbor::to_vec(&Ipld::Map(fields)).unwrap();
    let error = IpnsRecord::decode(record.name(), &{
        let mut entry = entry_of(&record);
        entry.data = Some(more.into());
        entry.encode_to_vec()
    });
    assert!(matches!(error, Err(IpnsError::Signature(_))));
}

#[test]
fn data_of_the_wrong_shape_is_refused_even_if_signed() {
    for key in ["Value", "Validity", "ValidityType", "Sequence", "TTL"] {
        for wrong in [None, Some(Ipld::Null), Some(Ipld::String("0".into())), Some(Ipld::Integer(-1))] {
            let mut fields = document();
            fields.remove(key);
            fields.extend(wrong.map(|wrong| (key.to_owned(), wrong)));
            let error = decode_document(fields).unwrap_err();
            assert!(matches!(&error, IpnsError::Data(text) if text.contains(key)), "{error}");
        }
    }
    let mut fields = document();
    fields.insert("Value".to_owned(), Ipld::Bytes(vec![0xff]));
    assert!(matches!(decode_document(fields), Err(IpnsError::Data(_))));

    let mut fields = document();
    fields.insert("ValidityType".to_owned(), Ipld::Integer(1));
    assert!(matches!(decode_document(fields), Err(IpnsError::ValidityType(1))));
}

#[test]
fn only_strict_dag_cbor_is_read() {
    let good = entry_of(&signed(&key())).data.unwrap().to_vec();
    decode_data(good.clone()).unwrap();

    let trailing = [good.as_slice(), &[0]].concat();
    let mut indefinite = [good.as_slice(), &[0xff]].concat();
    indefinite[0] = 0xbf;
    let ttl = good.windows(4).position(|bytes| bytes == b"\x63TTL").unwrap();
    let twice = [&[good[0] + 1], &good[ttl..ttl + 13], &good[1..]].concat();
    let unsorted = [&good[..1], &good[ttl + 13..], &good[ttl..ttl + 13]].concat();
    let deep = [vec![0x81; 9_000], vec![0]].concat();
    for data in [trailing, indefinite, twice, unsorted, deep, vec![0xa0], vec![0x80], b"junk".to_vec()] {
        assert!(matches!(decode_data(data), Err(IpnsError::Data(_))));
    }
}

#[test]
fn a_record_over_the_limit_is_neither_read_nor_made() {
    let value = |length| {
        let mut fields = document();
        fields.insert("Value".to_owned(), Ipld::Bytes(vec![b'x'; length]));
        decode_document(fields)
    };
    let rest = value(1000).unwrap().bytes().len() - 1000;
    assert_eq!(value(RECORD_BYTES_MAX - rest).unwrap().bytes().len(), RECORD_BYTES_MAX);
    assert!(matches!(value(RECORD_BYTES_MAX - rest + 1), Err(IpnsError::TooLarge { size_bytes: 10241 })));
}

#[test]
fn validity_is_a_time_of_rfc_3339() {
    for (text, same) in [
        ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"),
        ("1970-01-01T00:00:00.000000001Z", "1970-01-01T00:00:00.000000001Z"),
        ("2030-01-31T12:00:00.5+01:30", "2030-01-31T10:30:00.5Z"),
        ("2030-01-31T12:00:00-00:00", "2030-01-31T12:00:00Z"),
    ] {
        assert_eq!(parse_validity(text.as_bytes()).unwrap(), time(same));
    }
    for text in [
        "",
        "2030",
        "2030-01-31",
        "2030-01-31T12:00:00",
        "2030-01-31 12:00:00Z",
        "2030-01-31t12:00:00z",
        "2030-01-31T12:00Z",
        "2030-02-31T12:00:00Z",
        "2030-01-31T24:00:00Z",
        "2030-06-30T23:59:60Z",
        "2030-01-31T12:00:00.Z",
        "2030-01-31T12:00:00,5Z",
        "2030-01-31T12:00:00.0123456789Z",
        "20300131T120000Z",
        "2030-01-31T12:00:00Z[UTC]",
        "2030-01-31T12:00:00+01",
        "2030-01-31T12:00:00+99:00",
        "+002030-01-31T12:00:00Z",
        " 2030-01-31T12:00:00Z",
        "2030-01-31T12:00:00Z\n",
        "2030-01-31T12:00:00\u{17f}Z",
    ] {
        let error = parse_validity(text.as_bytes()).unwrap_err();
        assert!(matches!(error, IpnsError::Validity(_)), "{text}: {error}");
    }
}

#[test]
fn a_record_ends_at_its_end_of_life() {
    let record = signed(&key());
    record.check_validity(time("2126-01-01T00:00:00Z")).unwrap();
    for late in ["2126-01-01T00:00:00.000000001Z", "2126-01-01T00:00:01Z", "9000-01-01T00:00:00Z"] {
        assert!(matches!(record.check_validity(time(late)), Err(IpnsError::Expired { .. })));
    }
}

#[test]
fn the_hint_for_caches_has_a_limit() {
    let long = IpnsRecord::sign(&key(), &root(), 0, time("2126-01-01T00:00:00Z"), Duration::MAX).unwrap();
    assert_eq!(long.ttl(), TTL_MAX);
    let mut fields = document();
    fields.insert("TTL".to_owned(), Ipld::Integer(u64::MAX.into()));
    assert_eq!(decode_document(fields).unwrap().ttl(), TTL_MAX);
}

#[test]
fn only_a_whole_ipfs_path_is_a_root() {
    let root_of = |value: &str| {
        let mut fields = document();
        fields.insert("Value".to_owned(), Ipld::Bytes(value.into()));
        decode_document(fields).unwrap().root()
    };
    assert_eq!(root_of(&format!("/ipfs/{ROOT}")), Some(root()));
    assert_eq!(root_of(&format!("/ipfs/{ROOT}/")), Some(root()));
    let v0 = "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR";
    assert_eq!(root_of(&format!("/ipfs/{v0}")), Some(v0.parse().unwrap()));
    for value in ["", "/", "/ipfs", "/ipfs/", "/ipfs//", "/ipfs/x", "/ipns/example.com"] {
        assert_eq!(root_of(value), None, "{value}");
    }
    for value in [ROOT.to_owned(), format!("/ipfs/{ROOT}/a"), format!("/ipfs/x/ipfs/{ROOT}")] {
        assert_eq!(root_of(&value), None, "{value}");
    }
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    // The years 0 to 9999, which RFC 3339 can write.
    (-62_167_219_200_i64..253_402_207_200, 0..1_000_000_000)
        .prop_map(|(seconds, nanos)| Timestamp::new(seconds, nanos).unwrap())
}

/// Few values for each field, so that ties come up in each.
fn close_records() -> impl Strategy<Value = IpnsRecord> {
    (0..3_u64, 0..3_i64, 0..3_u64).prop_map(|(sequence, second, ttl)| {
        let until = Timestamp::new(4_000_000_000 + second, 0).unwrap();
        IpnsRecord::sign(&key(), &root(), sequence, until, Duration::from_secs(ttl)).unwrap()
    })
}

proptest! {
    #[test]
    fn what_is_signed_is_read_back(
        (sequence, until, ttl) in (any::<u64>(), any_time(), 0..TTL_MAX.as_nanos()),
        digest in prop::collection::vec(any::<u8>(), 0..=64),
    ) {
        let root = Cid::new_v1(0x55, Multihash::wrap(0, &digest).unwrap());
        let ttl = Duration::from_nanos(u64::try_from(ttl).unwrap());
        let record = IpnsRecord::sign(&key(), &root, sequence, until, ttl).unwrap();
        let again = IpnsRecord::decode(record.name(), record.bytes()).unwrap();
        prop_assert_eq!(content(&again), (name_of(&key()), format!("/ipfs/{root}"), sequence, until, ttl));
        prop_assert_eq!(again.root(), Some(root));
    }

    #[test]
    fn selection_is_an_order(a in close_records(), b in close_records(), c in close_records()) {
        let better = |x: &IpnsRecord, y: &IpnsRecord| x.is_better_than(y);
        prop_assert!(!(better(&a, &b) && better(&b, &a)));
        prop_assert_eq!(better(&a, &b) || better(&b, &a), a.bytes() != b.bytes());
        prop_assert!(!(better(&a, &b) && better(&b, &c)) || better(&a, &c));
        if (a.sequence(), a.valid_until()) != (b.sequence(), b.valid_until()) {
            prop_assert_eq!(
                better(&a, &b),
                (a.sequence(), a.valid_until()) > (b.sequence(), b.valid_until())
            );
        }
    }

    #[test]
    fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&bytes);
        let _ = decode_data(bytes);
    }

    #[test]
    fn hostile_changes_of_a_record_do_no_harm(
        which in 0..3_usize,
        (at, cut, put) in (any::<prop::sample::Index>(), 0..16_usize, prop::collection::vec(any::<u8>(), 0..16)),
    ) {
        let (name, bytes) = golden()[which];
        let mut changed = bytes.to_vec();
        let start = at.index(changed.len());
        changed.splice(start..(start + cut).min(bytes.len()), put.iter().copied());
        fuzz(&changed);
        if let Ok(record) = IpnsRecord::decode(&name, &changed) {
            prop_assert_eq!(content(&record), content(&IpnsRecord::decode(&name, bytes).unwrap()));
        }

        let mut data = Entry::decode(bytes).unwrap().data.unwrap().to_vec();
        let start = at.index(data.len());
        data.splice(start..(start + cut).min(data.len()), put);
        fuzz(&data);
        if let Ok(document) = Document::decode(&data) {
            prop_assert!(document.encode().unwrap().len() <= data.len());
        }
    }
}
