//! Paths of IPFS as records, DNSLink and ENS have them: `/ipfs/<cid>/…` and `/ipns/<name>/…`.

use std::fmt;
use std::str::FromStr;

use cid::Cid;

use super::ipns::{IpnsError, IpnsName, parse_cid};

/// The longest path that is read, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// The longest domain (RFC 1035, section 2.3.4), and the longest part of one, in bytes.
const DOMAIN_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// What a path begins with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pointer {
    /// `/ipfs/<cid>`
    Content(Cid),
    /// `/ipns/<name>`
    Key(IpnsName),
    /// `/ipns/<domain>`, which DNSLink leads on from.
    Domain(Domain),
}

/// A domain of at least two labels, lower-case, without a dot behind it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(String);

/// What a published tree is known by.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum TreeName {
    Key(IpnsName),
    /// DNSLink says where it leads.
    Domain(Domain),
}

/// A pointer and the names of directories and files below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IpfsPath {
    pub pointer: Pointer,
    /// Components joined by `/`, none of them empty, `.` or `..`; empty for the pointer itself.
    pub below: String,
}

/// Why a text is no path of IPFS.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("{0:?} is no path of ipfs: /ipfs/<cid> or /ipns/<name> is expected")]
    Form(String),
    #[error("{0:?} is no domain: labels of a-z, 0-9, - and _ with dots between them are expected")]
    Domain(String),
    #[error(transparent)]
    Name(#[from] IpnsError),
}

impl Domain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let lower = text.to_ascii_lowercase();
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let label =
            |label: &str| !label.is_empty() && label.len() <= LABEL_BYTES_MAX && label.bytes().all(word);
        if lower.len() <= DOMAIN_BYTES_MAX && lower.contains('.') && lower.split('.').all(label) {
            Ok(Self(lower))
        } else {
            Err(PathError::Domain(shortened(text)))
        }
    }
}

impl FromStr for IpfsPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let wrong = || PathError::Form(shortened(text));
        if text.len() > PATH_BYTES_MAX {
            return Err(wrong());
        }
        let mut parts = text.strip_prefix('/').ok_or_else(wrong)?.splitn(3, '/');
        let (namespace, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let below = parts.next().unwrap_or_default().trim_end_matches('/');
        if !below.is_empty() && below.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong());
        }
        let pointer = match namespace {
            "ipfs" => Pointer::Content(parse_cid(name).ok_or_else(wrong)?),
            "ipns" => Pointer::named(name)?,
            _ => return Err(wrong()),
        };
        Ok(Self { pointer, below: below.to_owned() })
    }
}

impl Pointer {
    /// Reads what stands behind `/ipns/`: the name of a key, else a domain.
    pub fn named(name: &str) -> Result<Self, PathError> {
        match name.parse() {
            Ok(name) => Ok(Self::Key(name)),
            // No key has a dot in its name, and no domain of DNSLink is without.
            Err(_) if name.contains('.') => Ok(Self::Domain(name.parse()?)),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<IpnsName> for TreeName {
    fn from(name: IpnsName) -> Self {
        Self::Key(name)
    }
}

impl IpfsPath {
    /// The path to what lies at `below` under this one.
    pub fn join(&self, below: &str) -> String {
        join(&self.below, below)
    }
}

/// Two relative paths, one below the other; either may be empty.
pub fn join(above: &str, below: &str) -> String {
    let slash = if above.is_empty() || below.is_empty() { "" } else { "/" };
    format!("{above}{slash}{below}")
}

fn shortened(text: &str) -> String {
    text.chars().take(DOMAIN_BYTES_MAX).collect()
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(name) => fmt::Display::fmt(name, f),
            Self::Domain(domain) => fmt::Display::fmt(domain, f),
        }
    }
}

impl fmt::Debug for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(cid) => write!(f, "/ipfs/{cid}"),
            Self::Key(name) => write!(f, "/ipns/{name}"),
            Self::Domain(domain) => write!(f, "/ipns/{domain}"),
        }
    }
}

impl fmt::Display for IpfsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.below.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.pointer, self.below)
    }
}

/// Reads whatever bytes as a path: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Some(path) = str::from_utf8(bytes).ok().and_then(|text| text.parse::<IpfsPath>().ok()) {
        assert_eq!(path.to_string().parse::<IpfsPath>().ok(), Some(path), "what was read can be written");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTENT: &str = "bafybeielgvrvxuraaa6s36ww575ogm2jc6haclf7sghyf7d3rtiodisbrq";
    const KEY: &str = "k51qzi5uqu5dlj2qkibv67ep4sdsa73s9asv2g3um5j441i80ks15e1afi7waz";

    #[test]
    fn paths_are_read_and_written() {
        for text in [
            format!("/ipfs/{CONTENT}"),
            format!("/ipfs/{CONTENT}/a/b.c"),
            format!("/ipns/{KEY}/library"),
            "/ipns/en.wikipedia-on-ipfs.org/wiki".to_owned(),
        ] {
            assert_eq!(text.parse::<IpfsPath>().unwrap().to_string(), text);
        }
        let slashed: IpfsPath = format!("/ipfs/{CONTENT}/a/").parse().unwrap();
        assert_eq!((slashed.below.as_str(), slashed.join("b").as_str()), ("a", "a/b"));
        let old = "/ipfs/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG".parse::<IpfsPath>().unwrap();
        assert!(matches!(old.pointer, Pointer::Content(_)));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let long = format!("/ipfs/{CONTENT}/{}", "a".repeat(PATH_BYTES_MAX));
        for text in [
            "",
            "/",
            "/ipfs",
            "/ipfs/",
            "/ipfs/x",
            "/ipns/x",
            "/ipns/",
            "/ipns/a..b",
            "/ipns/a b.c",
            CONTENT,
            &format!("/ipfs/{KEY}x"),
            &format!("/ipns/{CONTENT}"),
            &format!("/ipfs/{CONTENT}/a//b"),
            &format!("/ipfs/{CONTENT}/../b"),
            &format!("/ipld/{CONTENT}"),
            &long,
        ] {
            assert!(text.parse::<IpfsPath>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_reads_the_same_again(text in "/(ipfs|ipns)/[a-z0-9.]{0,12}(/[a-z./]{0,8})?") {
            if let Ok(path) = text.parse::<IpfsPath>() {
                prop_assert_eq!(path.to_string().parse::<IpfsPath>().ok(), Some(path));
            }
        }
    }
}
