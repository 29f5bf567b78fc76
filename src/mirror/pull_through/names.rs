//! What registry a request means: by `?ns=` as containerd sends it, by a path that begins with the registry as podman and
//! CRI-O are configured to, or by the default registry, as classic Docker needs it.

use super::super::{Asked, MirrorError};
use super::PullThrough;
use crate::oci::{Host, RepoName, Repository};
use crate::upstream::Upstream;

/// A repository of a registry that is mirrored. Cheap to clone.
#[derive(Clone)]
pub(in crate::mirror) struct Place {
    pub(in crate::mirror) upstream: Upstream,
    pub(in crate::mirror) repository: Repository,
    /// Its name in the cache.
    pub(in crate::mirror) joined: RepoName,
}

/// The names under which Docker Hub is known.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIASES: &[&str] = &["index.docker.io", "registry-1.docker.io", "registry.docker.io"];

impl PullThrough {
    /// The place that is meant, if it is one of a registry that is mirrored.
    pub(in crate::mirror) fn place(&self, asked: &Asked<'_>) -> Result<Option<Place>, MirrorError> {
        let upstreams = &self.0.upstreams;
        if upstreams.is_loop(asked.via) {
            return Ok(None);
        }
        let named = match asked.registry {
            Some(host) => Some(Repository { host: host.clone(), name: asked.repo.clone() }),
            None => {
                Repository::split(asked.repo).filter(|named| upstreams.get(&canonical(&named.host)).is_some())
            }
        };
        let default = || {
            let host = upstreams.default_registry()?.clone();
            Some(Repository { host, name: asked.repo.clone() })
        };
        let Some(named) = named.or_else(default) else { return Ok(None) };
        let repository = in_full(named)?;
        let Some(upstream) = upstreams.get(&repository.host) else { return Ok(None) };
        let upstream = upstream.on_behalf(upstreams.via(asked.via));
        let joined = repository.joined()?;
        Ok(Some(Place { upstream, repository, joined }))
    }
}

fn canonical(host: &Host) -> Host {
    match DOCKER_HUB_ALIASES.contains(&host.as_str()) {
        true => DOCKER_HUB.parse().unwrap_or_else(|_| host.clone()),
        false => host.clone(),
    }
}

/// A repository of Docker Hub that is named by one word is one of `library`.
fn in_full(named: Repository) -> Result<Repository, MirrorError> {
    let host = canonical(&named.host);
    let name = match host.as_str() == DOCKER_HUB && !named.name.as_str().contains('/') {
        true => format!("library/{}", named.name).parse()?,
        false => named.name,
    };
    Ok(Repository { host, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(host: &str, name: &str) -> String {
        let named = Repository { host: host.parse().unwrap(), name: name.parse().unwrap() };
        in_full(named).unwrap().to_string()
    }

    #[test]
    fn docker_hub_has_many_names_and_official_images_are_in_library() {
        assert_eq!(full("docker.io", "alpine"), "docker.io/library/alpine");
        assert_eq!(full("registry-1.docker.io", "a/b"), "docker.io/a/b");
        assert_eq!(full("index.docker.io", "alpine"), "docker.io/library/alpine");
        assert_eq!(full("ghcr.io", "alpine"), "ghcr.io/alpine");
    }
}
