//! Registries by their names, and repositories of theirs: `docker.io` and `docker.io/library/alpine`.

use std::fmt;
use std::str::FromStr;

use super::name::{NameError, RepoName};

/// The longest name of a host (RFC 1035, section 2.3.4), with a port behind it.
const HOST_BYTES_MAX: usize = 253 + 6;

/// The name of a registry as users write it before a repository: a host, and a port if it has one. Lower-case, with a
/// dot or a port in it, or `localhost`: the rule by which all clients tell a registry from a first component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Host(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let (name, port) = match lower.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (lower.as_str(), None),
        };
        let label = |label: &str| {
            let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !label.is_empty() && label.bytes().all(word) && !label.starts_with('-') && !label.ends_with('-')
        };
        let is_port =
            |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
        let told_apart = port.is_some() || name.contains('.') || name == "localhost";
        let well_formed = name.split('.').all(label) && port.is_none_or(is_port);
        if !told_apart || !well_formed || lower.len() > HOST_BYTES_MAX {
            return Err(wrong());
        }
        Ok(Self(lower))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    pub host: Host,
    pub name: RepoName,
}

impl Repository {
    /// The name that it has in one tree with repositories of other registries: `docker.io/library/alpine`. The colon
    /// before a port, which no repository can have, is written as the underscore that no host can have.
    pub fn joined(&self) -> Result<RepoName, NameError> {
        format!("{}/{}", self.host.as_str().replace(':', "_"), self.name).parse()
    }

    /// Reads [`Repository::joined`] back. `None`: the first component is no registry.
    pub fn split(joined: &RepoName) -> Option<Self> {
        let (host, name) = joined.as_str().split_once('/')?;
        let host = host.replace('_', ":").parse().ok()?;
        Some(Self { host, name: name.parse().ok()? })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_told_by_their_look() {
        for host in
            ["docker.io", "localhost", "localhost:5000", "registry:5000", "10.0.0.1:80", "a-b.example"]
        {
            assert_eq!(host.parse::<Host>().unwrap().as_str(), host);
        }
        assert_eq!("GHCR.io".parse::<Host>().unwrap().as_str(), "ghcr.io");
        for host in [
            "",
            "library",
            "a..b",
            ".io",
            "docker.io/",
            "-a.io",
            "a.io:",
            "a.io:x",
            "a.io:70000",
            "a_b.io",
            "[::1]:5",
        ] {
            assert!(host.parse::<Host>().is_err(), "{host}");
        }
    }

    #[test]
    fn repositories_of_all_registries_have_one_name_each_in_a_tree() {
        for (host, joined) in [("docker.io", "docker.io/a/b"), ("localhost:5000", "localhost_5000/a/b")] {
            let repository = Repository { host: host.parse().unwrap(), name: "a/b".parse().unwrap() };
            let name = repository.joined().unwrap();
            assert_eq!(name.as_str(), joined);
            assert_eq!(Repository::split(&name), Some(repository));
        }
        for name in ["library/alpine", "alpine", "docker.io"] {
            assert_eq!(Repository::split(&name.parse().unwrap()), None);
        }
    }
}
