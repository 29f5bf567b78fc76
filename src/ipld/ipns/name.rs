//! The name: a peer id that is written as a CID.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use cid::Cid;
use libp2p::PeerId;
use multibase::Base;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::IpnsError;

/// The codec of CIDs that name a public key.
const LIBP2P_KEY: u64 = 0x72;
/// sha2-256, the hash of keys that are too long to be the name themselves.
const SHA2_256: u64 = 0x12;
const SHA2_256_BYTES: usize = 32;

/// The namespace, in paths and in DHT keys.
const NAMESPACE: &str = "/ipns/";

/// Longer text is no name in any base. Decoding base36 and base58 takes time in the square of the length.
const NAME_CHARS_MAX: usize = 256;

/// The name of a mutable pointer: the hash of (or the whole) public key that may move it.
///
/// Reads and writes itself as text in serde, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpnsName(PeerId);

impl IpnsName {
    pub fn from_peer_id(peer: PeerId) -> Self {
        Self(peer)
    }

    pub fn peer_id(&self) -> &PeerId {
        &self.0
    }

    /// `/ipns/` and the bytes of the peer id: the DHT key.
    pub fn routing_key(&self) -> Vec<u8> {
        [NAMESPACE.as_bytes(), &self.0.to_bytes()].concat()
    }

    /// The name that a DHT key asks for; `None` if it is another kind of key, or none at all.
    pub fn from_routing_key(key: &[u8]) -> Option<Self> {
        let peer = PeerId::from_bytes(key.strip_prefix(NAMESPACE.as_bytes())?).ok()?;
        Self::checked(peer)
    }

    /// The CIDv1 of the key: the form that is shown.
    pub fn cid(&self) -> Cid {
        Cid::new_v1(LIBP2P_KEY, *self.0.as_ref())
    }

    /// Libp2p takes a truncated hash for a peer id; no key has one.
    fn checked(peer: PeerId) -> Option<Self> {
        let hash = peer.as_ref();
        (hash.code() != SHA2_256 || hash.digest().len() == SHA2_256_BYTES).then_some(Self(peer))
    }
}

impl FromStr for IpnsName {
    type Err = IpnsError;

    /// A CIDv1 of codec libp2p-key in any base (base36 `k51…` and `k2k4…`, base32 `bafz…`), or a base58 peer id (`12D3…`,
    /// `Qm…`); `/ipns/` before it is allowed.
    fn from_str(text: &str) -> Result<Self, IpnsError> {
        let unknown = || IpnsError::Name(text.chars().take(NAME_CHARS_MAX).collect());
        let name = text.strip_prefix(NAMESPACE).unwrap_or(text);
        if name.len() > NAME_CHARS_MAX {
            return Err(unknown());
        }
        if name.starts_with("Qm") || name.starts_with('1') {
            return name.parse().ok().and_then(Self::checked).ok_or_else(unknown);
        }
        let cid = parse_cid(name).ok_or_else(unknown)?;
        if cid.codec() != LIBP2P_KEY {
            return Err(IpnsError::NameOfContent { text: name.to_owned(), codec: cid.codec() });
        }
        PeerId::from_multihash(*cid.hash()).ok().and_then(Self::checked).ok_or_else(unknown)
    }
}

impl fmt::Display for IpnsName {
    /// base36 CIDv1 (`k51…`, `k2k4…`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&multibase::encode(Base::Base36Lower, self.cid().to_bytes()))
    }
}

impl fmt::Debug for IpnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for IpnsName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpnsName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Reads a CID that is the whole of `text`, in any base. The parser of the crate also takes a path in front and bytes
/// behind.
pub fn parse_cid(text: &str) -> Option<Cid> {
    if text.len() > NAME_CHARS_MAX {
        return None;
    }
    let bytes = if text.starts_with("Qm") {
        Base::Base58Btc.decode(text).ok()?
    } else {
        multibase::decode(text).ok()?.1
    };
    let cid = Cid::try_from(bytes.as_slice()).ok()?;
    (cid.to_bytes() == bytes).then_some(cid)
}

pub(super) fn fuzz(bytes: &[u8]) {
    if let Some(name) = IpnsName::from_routing_key(bytes) {
        assert_eq!(name.routing_key(), bytes);
        assert_eq!(name.to_string().parse::<IpnsName>().ok(), Some(name));
    }
    if let Some(name) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<IpnsName>().ok()) {
        assert_eq!(IpnsName::from_routing_key(&name.routing_key()), Some(name));
        assert_eq!(name.to_string().parse::<IpnsName>().ok(), Some(name));
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use proptest::prelude::*;

    use super::*;
    use crate::ipld::Multihash;

    /// The same Ed25519 key, then the same RSA key, in every form.
    const FORMS: [&[&str]; 2] = [
        &[
            "k51qzi5uqu5dgzykd8kyelftwyy2c4hqadaunjbbqk8w5f5zja4s7edjdkvmwl",
            "K51QZI5UQU5DGZYKD8KYELFTWYY2C4HQADAUNJBBQK8W5F5ZJA4S7EDJDKVMWL",
            "/ipns/k51qzi5uqu5dgzykd8kyelftwyy2c4hqadaunjbbqk8w5f5zja4s7edjdkvmwl",
            "bafzaajaiaejcaif33xdkdjrvyq6p5gtbo4cfrjefru46ul3ypfeb6242gzu3fxnv",
            "12D3KooWC29N8Jm1vUx8Eju6AqjuV8ivsa2o3Bu6JYSdwFK5JT7A",
        ],
        &[
            "k2k4r8kjmblynv6dyeaghkkdi0xd1bmwf3644b1dqfk206mmlr8nw6gx",
            "bafzbeibnie4lcgcp4dj27fimdlm26bylyasgizqj6aszzdstrzp37klpye",
            "QmRPJjmHjaHVr7qGt49hyjeFhp7WDk88y8ZNeDv5JDAFeY",
        ],
    ];

    #[test]
    fn every_form_of_a_name_is_the_same_name() {
        for forms in FORMS {
            for form in forms {
                assert_eq!(form.parse::<IpnsName>().unwrap().to_string(), forms[0], "{form}");
            }
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for content in [
            "bafybeielgvrvxuraaa6s36ww575ogm2jc6haclf7sghyf7d3rtiodisbrq",
            "bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra",
        ] {
            let error = content.parse::<IpnsName>().unwrap_err();
            assert!(matches!(error, IpnsError::NameOfContent { .. }), "{error}");
        }
        let long = "k".repeat(100_000);
        let with_path = format!("{}/latest", FORMS[0][0]);
        let behind_a_path = format!("x/ipfs/{}", FORMS[0][0]);
        for text in ["", "k", "1", "Qm", "self", "example.com", "k51", &long, &with_path, &behind_a_path] {
            let error = text.parse::<IpnsName>().unwrap_err();
            assert!(matches!(error, IpnsError::Name(_)), "{error}");
            assert!(error.to_string().len() < 1000);
        }
    }

    #[test]
    fn a_name_with_bytes_behind_it_or_a_short_hash_is_refused() {
        let mut bytes = FORMS[0][0].parse::<IpnsName>().unwrap().cid().to_bytes();
        bytes.push(0);
        assert!(multibase::encode(Base::Base36Lower, bytes).parse::<IpnsName>().is_err());

        let short = PeerId::from_multihash(Multihash::wrap(SHA2_256, &[7; 5]).unwrap()).unwrap();
        assert!(IpnsName::from_peer_id(short).to_string().parse::<IpnsName>().is_err());
        assert_eq!(IpnsName::from_routing_key(&IpnsName::from_peer_id(short).routing_key()), None);
    }

    #[test]
    fn a_routing_key_is_the_namespace_and_the_peer_id() {
        let peer = Keypair::generate_ed25519().public().to_peer_id();
        let name = IpnsName::from_peer_id(peer);
        let key = name.routing_key();
        assert_eq!(key, [b"/ipns/".as_slice(), &peer.to_bytes()].concat());
        assert_eq!(IpnsName::from_routing_key(&key), Some(name));
        assert_eq!(IpnsName::from_routing_key(&peer.to_bytes()), None);
        assert_eq!(IpnsName::from_routing_key(b"/ipns/"), None);
        assert_eq!(IpnsName::from_routing_key(&[b"/pk/".as_slice(), &peer.to_bytes()].concat()), None);
    }

    #[test]
    fn serde_writes_a_name_as_its_text() {
        let name: IpnsName = FORMS[0][0].parse().unwrap();
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(json, format!("{:?}", FORMS[0][0]));
        assert_eq!(serde_json::from_str::<IpnsName>(&json).unwrap(), name);
        assert!(serde_json::from_str::<IpnsName>("\"self\"").is_err());
    }

    proptest! {
        #[test]
        fn hostile_text_and_keys_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..80), base in 0..2) {
            fuzz(&bytes);
            fuzz(&[NAMESPACE.as_bytes(), &bytes].concat());
            let base = if base == 0 { Base::Base36Lower } else { Base::Base58Btc };
            fuzz(multibase::encode(base, &bytes).as_bytes());
            fuzz(multibase::encode(base, [&[1, 0x72, 0x12, 0x20], bytes.as_slice()].concat()).as_bytes());
        }
    }
}
