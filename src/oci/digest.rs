//! Digests as the OCI image specification writes them (descriptor.md, "Digests").

use std::fmt;
use std::str::FromStr;

use multihash::Multihash;
use sha2::{Digest as _, Sha256, Sha512};

/// The hash functions that a digest may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(name: &str) -> Result<Self, DigestError> {
        match name {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::UnknownAlgorithm(name.to_owned())),
        }
    }
}

/// The identity of a blob or manifest, as in `sha256:<64 hex>`.
///
/// Holding one proves the syntax was checked. It says nothing of any bytes; see [`Hasher`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

/// Why a string is no digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    #[error("digest {0:?} has no algorithm: write sha256:<64 hex digits>")]
    NoAlgorithm(String),
    #[error("digest algorithm {0:?} is not supported: sha256 and sha512 are")]
    UnknownAlgorithm(String),
    #[error("digest {0:?} needs {1} lower-case hex digits after the colon")]
    NotHex(String, usize),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// The digest of `bytes` under `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The hash itself, 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }

    /// The lower-case hex digits after the colon.
    pub fn hex(&self) -> String {
        let mut hex = String::with_capacity(self.as_bytes().len() * 2);
        for byte in self.as_bytes() {
            hex.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            hex.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        hex
    }

    /// The same hash as a multihash: the DHT key of a blob, and for a blob of at most one chunk the
    /// multihash of its CID.
    pub fn multihash(&self) -> Multihash<64> {
        let code = match self {
            Self::Sha256(_) => 0x12,
            Self::Sha512(_) => 0x13,
        };
        // 32 and 64 bytes both fit the 64 of the type, so the fallback is never taken.
        Multihash::wrap(code, self.as_bytes()).unwrap_or_default()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) =
            text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        match algorithm.parse()? {
            Algorithm::Sha256 => parse_hex(hex).map(Self::Sha256),
            Algorithm::Sha512 => parse_hex(hex).map(Self::Sha512),
        }
        .ok_or_else(|| DigestError::NotHex(text.to_owned(), if algorithm == "sha256" { 64 } else { 128 }))
    }
}

/// A digest as its text in JSON.
pub(super) mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use super::Digest;

    pub(in crate::oci) fn serialize<S: Serializer>(
        digest: &Digest,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(in crate::oci) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn parse_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let hex = hex.as_bytes();
    if hex.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes a stream to a [`Digest`].
#[derive(Clone)]
pub struct Hasher(HasherState);

#[derive(Clone)]
enum HasherState {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => HasherState::Sha256(Sha256::new()),
            Algorithm::Sha512 => HasherState::Sha512(Box::new(Sha512::new())),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            HasherState::Sha256(state) => state.update(bytes),
            HasherState::Sha512(state) => state.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self.0 {
            HasherState::Sha256(state) => Digest::Sha256(state.finalize().into()),
            HasherState::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_and_written() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(text.parse::<Digest>().unwrap(), Digest::sha256(b""));
        assert_eq!(Digest::sha256(b"").to_string(), text);
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(long.to_string().parse::<Digest>().unwrap(), long);
    }

    #[test]
    fn malformed_digests_are_refused() {
        for text in ["", "sha256", "sha256:", "sha256:00", "md5:00", "sha256:../../x"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let upper = Digest::sha256(b"").to_string().to_uppercase();
        assert!(upper.replace("SHA", "sha").parse::<Digest>().is_err());
    }
}
