//! Names of repositories, tags and references (OCI distribution spec 1.1, "Pulling manifests").

use std::fmt;
use std::str::FromStr;

use super::anywhere::has_base58;
use super::digest::{Digest, DigestError};

/// The longest repository name in bytes; clients and distribution agree on it.
pub const REPO_NAME_BYTES_MAX: usize = 255;

/// Why a string is no name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error(
        "repository name {0:?} is not valid: components of a-z, 0-9 and single . _ __ - between them, joined by /"
    )]
    Repo(String),
    #[error(
        "repository name {0:?} is not valid: no upper-case letters are allowed, so write the CID in base32, as \
         `ipfs cid base32` does, and the name of a key in base36 (k51…)"
    )]
    Base58(String),
    #[error("repository name is {0} bytes long: at most 255 are allowed")]
    TooLong(usize),
    #[error("tag {0:?} is not valid: up to 128 of A-Z a-z 0-9 _ . -, not starting with . or -")]
    Tag(String),
    #[error("registry name {0:?} is not valid: a host with a dot or a port is expected, such as docker.io")]
    Host(String),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// A repository name that keeps to the grammar of the specification.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoName(String);

impl RepoName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepoName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        if name.len() > REPO_NAME_BYTES_MAX {
            return Err(NameError::TooLong(name.len()));
        }
        if name.split('/').all(is_component) {
            Ok(Self(name.to_owned()))
        } else if has_base58(name) {
            Err(NameError::Base58(name.to_owned()))
        } else {
            Err(NameError::Repo(name.to_owned()))
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes.split(|byte| alphanumeric(*byte)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

/// A tag that keeps to the grammar of the specification.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The fallback tag under which clients look for what refers to `subject` where a registry has no list of it. Of a
    /// longer hash the first 64 digits (distribution specification, "Referrers Tag Schema").
    pub fn of_referrers(subject: &Digest) -> Option<Self> {
        let hex: String = subject.hex().chars().take(64).collect();
        format!("{}-{hex}", subject.algorithm().as_str()).parse().ok()
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(tag: &str) -> Result<Self, NameError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let (Some(first), true) = (tag.bytes().next(), tag.len() <= 128) else {
            return Err(NameError::Tag(tag.to_owned()));
        };
        if word(first) && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-') {
            Ok(Self(tag.to_owned()))
        } else {
            Err(NameError::Tag(tag.to_owned()))
        }
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    /// A colon makes it a digest: no tag can have one.
    fn from_str(reference: &str) -> Result<Self, NameError> {
        if reference.contains(':') {
            Ok(Self::Digest(reference.parse()?))
        } else {
            Ok(Self::Tag(reference.parse()?))
        }
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

as_text!(RepoName);
as_text!(Tag);

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_keep_to_the_grammar() {
        for name in ["a", "library/alpine", "a/b/c/d/e", "a.b", "a_b", "a__b", "a---b", "0/1", "team/blobs"] {
            assert!(name.parse::<RepoName>().is_ok(), "{name}");
        }
        let long = "a".repeat(256);
        for name in
            ["", "/", "a/", "/a", "A", "a..b", "a___b", "a._b", "-a", "a-", "a//b", "..", "ä", long.as_str()]
        {
            assert!(name.parse::<RepoName>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_cid_that_no_name_can_have_is_told_how_to_be_written() {
        let cid = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG";
        for name in [
            format!("ipfs/{cid}"),
            format!("ipfs/{cid}/alpine"),
            "ipns/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5/a".to_owned(),
        ] {
            let error = name.parse::<RepoName>().unwrap_err();
            assert!(error.to_string().contains("ipfs cid base32"), "{error}");
        }
        for name in [format!("library/{cid}"), "ipfs/App".to_owned()] {
            assert!(matches!(name.parse::<RepoName>(), Err(NameError::Repo(_))), "{name}");
        }
    }

    #[test]
    fn tags_keep_to_the_grammar() {
        let longest = "t".repeat(128);
        for tag in ["1", "v1.2-rc_3", "_x", "Latest", longest.as_str()] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
        let long = "t".repeat(129);
        for tag in ["", ".x", "-x", "a/b", "a b", "ä", long.as_str()] {
            assert!(tag.parse::<Tag>().is_err(), "{tag}");
        }
    }

    #[test]
    fn a_colon_makes_a_digest() {
        assert!(matches!("1.0".parse(), Ok(Reference::Tag(_))));
        let digest = Digest::sha256(b"x").to_string();
        assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
        assert!("sha256:zz".parse::<Reference>().is_err());
    }
}
