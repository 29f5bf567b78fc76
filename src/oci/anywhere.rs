//! Repositories whose name says where on IPFS they lie: `ipfs/<cid>/<path>`, `ipns/<name>/<path>`, `<name>.eth/<path>`.

use super::RepoName;

/// What the name of a place is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Content by its CID. `ipld` is another word for it, which the predecessor's users may have.
    Ipfs,
    /// The name of a key, or a domain.
    Ipns,
    /// A name of ENS.
    Ens,
}

/// The parts of such a repository name. Says nothing of whether the name is one: `ipfs/kubo` is split too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anywhere<'a> {
    pub namespace: Namespace,
    pub name: &'a str,
    /// What follows the name, without a slash before it; may be empty.
    pub below: &'a str,
}

impl<'a> Anywhere<'a> {
    /// `None`: the repository is one like any other.
    pub fn of(repo: &'a RepoName) -> Option<Self> {
        let (first, rest) = repo.as_str().split_once('/').unwrap_or((repo.as_str(), ""));
        if is_ens(first) {
            return Some(Self { namespace: Namespace::Ens, name: first, below: rest });
        }
        let namespace = namespace(first).filter(|_| !rest.is_empty())?;
        let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Self { namespace, name, below })
    }
}

/// Whether a name has the form of one of ENS.
pub fn is_ens(name: &str) -> bool {
    name.strip_suffix(".eth").is_some_and(|labels| !labels.is_empty() && !labels.contains(':'))
}

fn namespace(word: &str) -> Option<Namespace> {
    match word {
        "ipfs" | "ipld" => Some(Namespace::Ipfs),
        "ipns" => Some(Namespace::Ipns),
        _ => None,
    }
}

/// Whether a text that is no repository name would be a place but for its upper-case letters: with a CID in base58.
pub(super) fn has_base58(name: &str) -> bool {
    let mut parts = name.split('/');
    let is_namespace = parts.next().is_some_and(|word| namespace(word).is_some());
    let id = parts.next().unwrap_or_default();
    is_namespace
        && (id.starts_with("Qm") || id.starts_with("12D3") || id.starts_with('z'))
        && id.bytes().any(|byte| byte.is_ascii_uppercase())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_from_other_repositories() {
        let split = |repo: &str| {
            let repo: RepoName = repo.parse().unwrap();
            Anywhere::of(&repo).map(|found| (found.namespace, found.name.to_owned(), found.below.to_owned()))
        };
        let place = |namespace, name: &str, below: &str| Some((namespace, name.to_owned(), below.to_owned()));
        assert_eq!(split("ipfs/bafy/a/b"), place(Namespace::Ipfs, "bafy", "a/b"));
        assert_eq!(split("ipld/bafy"), place(Namespace::Ipfs, "bafy", ""));
        assert_eq!(split("ipns/example.org/a"), place(Namespace::Ipns, "example.org", "a"));
        assert_eq!(split("shoal.eth"), place(Namespace::Ens, "shoal.eth", ""));
        assert_eq!(split("a.shoal.eth/b/c"), place(Namespace::Ens, "a.shoal.eth", "b/c"));
        for repo in ["ipfs", "ipns", "library/ipfs/x", "eth/x", "docker.io/ipfs/x"] {
            assert_eq!(split(repo), None, "{repo}");
        }
    }
}
