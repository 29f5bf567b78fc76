//! IPNS: mutable names for immutable roots.
//!
//! A name is the hash of a public key, or the whole key if it is short; a record is what the key's owner last said
//! that the name points at. Everything here follows <https://specs.ipfs.tech/ipns/ipns-record>. The module signs,
//! checks and compares records; it does not know the DHT, where keys are kept, or what time it is.

mod name;
mod record;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use libp2p::identity::{DecodingError, SigningError};

pub use name::{IpnsName, parse_cid};
pub use record::{IpnsRecord, RECORD_BYTES_MAX, TTL_MAX};

/// Why a text is no name, or bytes are no record of a name.
#[derive(Debug, thiserror::Error)]
pub enum IpnsError {
    #[error("{0:?} is no IPNS name: k51…, k2k4…, bafz…, 12D3… or Qm… is expected")]
    Name(String),
    #[error(
        "{text} names content (codec {codec:#x}), not a key: k51…, k2k4…, bafz…, 12D3… or Qm… is expected"
    )]
    NameOfContent { text: String, codec: u64 },
    #[error("the IPNS record has {size_bytes} bytes: at most {RECORD_BYTES_MAX} are allowed")]
    TooLarge { size_bytes: usize },
    #[error("the IPNS record is no protobuf")]
    Protobuf(#[source] prost::DecodeError),
    #[error("the IPNS record has no V2 signature or no signed data")]
    Unsigned,
    #[error("the IPNS record of {0} lacks the public key, which this name does not hold itself")]
    KeyMissing(Box<IpnsName>),
    #[error("the public key of {0} cannot be read")]
    Key(Box<IpnsName>, #[source] DecodingError),
    #[error("the IPNS record was made with the key of {found}, not of {wanted}")]
    KeyMismatch { wanted: Box<IpnsName>, found: Box<IpnsName> },
    #[error("the signed data of the IPNS record is not what it has to be: {0}")]
    Data(String),
    #[error("the V2 signature of the IPNS record is not by the key of {0}")]
    Signature(Box<IpnsName>),
    #[error("`{0}` of the IPNS record is not the same in its V1 fields and in its signed data")]
    V1Mismatch(&'static str),
    #[error("the IPNS record has validity type {0}: only 0, an end of life, is known")]
    ValidityType(u64),
    #[error(
        "the IPNS record is valid until {0:?}: a time of RFC 3339, such as 2030-01-31T12:00:00.000000001Z, is expected"
    )]
    Validity(String),
    #[error("the IPNS record of {name} was valid until {valid_until}")]
    Expired { name: Box<IpnsName>, valid_until: Timestamp },
    #[error("the key of {0} cannot sign")]
    Sign(Box<IpnsName>, #[source] SigningError),
}

/// Gives `bytes` to every decoder of this module, and panics where one of them contradicts itself. For fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    name::fuzz(bytes);
    record::fuzz(bytes);
}
