//! Images as people write them, and as archives carry them: `REPO[:TAG][@DIGEST]`.

use std::fmt;
use std::str::FromStr;

use super::name::{NameError, Reference, RepoName};
use super::repository::{Host, Repository};

/// A repository and, if it was said, what in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    pub repo: RepoName,
    pub reference: Option<Reference>,
}

impl FromStr for ImageName {
    type Err = NameError;

    /// A digest wins over a tag beside it, as for all clients.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
        // A colon before a slash belongs to the port of a host.
        let (repo, tag) = match name.rsplit_once(':') {
            Some((repo, tag)) if !tag.contains('/') => (repo, Some(tag.parse().map(Reference::Tag)?)),
            _ => (name, None),
        };
        let digest = digest.map(|digest| digest.parse().map(Reference::Digest)).transpose()?;
        Ok(Self { repo: repo.parse()?, reference: digest.or(tag) })
    }
}

impl ImageName {
    /// Reads an image that may be one of a registry with a port: `localhost:5000/app:1`. Its repository is named as in the
    /// tree of all registries ([`Repository::joined`]).
    pub fn with_registry(text: &str) -> Result<Self, NameError> {
        let named = text.split_once('/').and_then(|(host, rest)| Some((host.parse::<Host>().ok()?, rest)));
        let Some((host, rest)) = named else { return text.parse() };
        let Self { repo: name, reference } = rest.parse()?;
        Ok(Self { repo: Repository { host, name }.joined()?, reference })
    }

    /// The name that [`ImageName::with_registry`] reads, for people.
    pub fn shown(&self) -> String {
        match Repository::split(&self.repo) {
            Some(repository) => self.to_string().replacen(self.repo.as_str(), &repository.to_string(), 1),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            None => self.repo.fmt(f),
            Some(Reference::Tag(tag)) => write!(f, "{}:{tag}", self.repo),
            Some(Reference::Digest(digest)) => write!(f, "{}@{digest}", self.repo),
        }
    }
}

/// A name without the registry that it begins with, if it does: `docker.io/library/app:1` is `library/app:1`.
///
/// By the rule of all clients the first component is a registry if it has a dot or a colon, or is `localhost`.
pub fn without_host(name: &str) -> &str {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => rest,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Digest;
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let digest = Digest::sha256(b"x");
        for text in [
            "app",
            "library/app",
            "library/app:1",
            "app:v1.2-rc_3",
            &format!("app@{digest}"),
            "docker.io/a/b:1",
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), text);
        }
        let both: ImageName = format!("app:1@{digest}").parse().unwrap();
        assert_eq!(both.reference, Some(Reference::Digest(digest)));
        assert_eq!("app".parse::<ImageName>().unwrap().reference, None);
    }

    #[test]
    fn a_registry_with_a_port_is_named_as_in_the_tree_of_all() {
        for (text, name) in [
            ("localhost:5000/app:1", "localhost_5000/app:1"),
            ("docker.io/library/app", "docker.io/library/app"),
            ("library/app:1", "library/app:1"),
            ("app", "app"),
        ] {
            let image = ImageName::with_registry(text).unwrap();
            assert_eq!((image.to_string().as_str(), image.shown().as_str()), (name, text));
        }
        for text in ["localhost:5000/", "localhost:5000/App", "localhost:x/app", ""] {
            assert!(ImageName::with_registry(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", ":1", "App:1", "app:", "app:.x", "app@", "app@1", "localhost:5000/app", "../x:1"] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_registry_in_front_is_told_by_its_look() {
        for (name, rest) in [
            ("docker.io/library/app:1", "library/app:1"),
            ("localhost/app:1", "app:1"),
            ("host:5000/app", "app"),
            ("library/app:1.0", "library/app:1.0"),
            ("app:1.0", "app:1.0"),
        ] {
            assert_eq!(without_host(name), rest);
        }
    }
}
