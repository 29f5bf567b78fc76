//! IPNS records as no honest signer makes them: any value, any sequence, any time, signed by any key.

use std::collections::BTreeMap;

use ipld_core::ipld::Ipld;
use jiff::{SignedDuration, Timestamp};
use libp2p::identity::Keypair;
use prost::Message;
use shoal::ipld::ipns::IpnsName;

/// The two fields of `IpnsEntry` that a record of version 2 needs (specification of IPNS records), and one that is unknown.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(bytes = "vec", tag = "8")]
    signature_v2: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    data: Vec<u8>,
    #[prost(bytes = "vec", tag = "100")]
    padding: Vec<u8>,
}

/// What a record is to say.
#[derive(Clone)]
pub struct Forged {
    pub value: Vec<u8>,
    pub sequence: u64,
    /// From now to the end of its life; negative: it is over.
    pub hours: i64,
    /// Bytes of a field that nobody knows.
    pub padding: usize,
}

impl Forged {
    pub fn new(value: &str, sequence: u64) -> Self {
        Self { value: value.as_bytes().to_vec(), sequence, hours: 24, padding: 0 }
    }

    pub fn sign(&self, key: &Keypair) -> Vec<u8> {
        let until = Timestamp::now() + SignedDuration::from_hours(self.hours);
        let document = BTreeMap::from([
            ("Value".to_owned(), Ipld::Bytes(self.value.clone())),
            ("Validity".to_owned(), Ipld::Bytes(until.to_string().into_bytes())),
            ("ValidityType".to_owned(), Ipld::Integer(0)),
            ("Sequence".to_owned(), Ipld::Integer(self.sequence.into())),
            ("TTL".to_owned(), Ipld::Integer(60_000_000_000)),
        ]);
        let data = serde_ipld_dagcbor::to_vec(&Ipld::Map(document)).unwrap();
        let signature_v2 = key.sign(&[b"ipns-signature:", data.as_slice()].concat()).unwrap();
        Entry { signature_v2, data, padding: vec![0; self.padding] }.encode_to_vec()
    }
}

pub fn name_of(key: &Keypair) -> IpnsName {
    IpnsName::from_peer_id(key.public().to_peer_id())
}
