//! The registries we mirror: how each is asked, with what credentials, and when it is left in peace. Knows the
//! distribution API as a client does; nothing of caches and trees.

mod auth;
mod body;
mod breaker;
mod client;
mod credentials;
mod endpoint;
mod error;
mod lists;
mod public;
mod registry;
mod said;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::config::{PullThrough, RegistryConfig};
use crate::oci::Host;

pub use body::BlobBody;
use client::Connector;
pub use error::{Refuser, UpstreamError};
pub use public::{NotPublic, PublicOnly, is_public};
use registry::Registry;
pub use registry::{Fetched, Head, Upstream};
pub use said::Said;

/// Registries that are known by `"*"` alone; of more, those that were not asked for longest are forgotten.
const ON_DEMAND_MAX: u64 = 256;
/// The longest `Via` that is passed on; a longer one must be a loop.
const VIA_BYTES_MAX: usize = 1024;

/// All registries that are mirrored. Cheap to clone.
#[derive(Clone)]
pub struct Upstreams(Arc<Shared>);

struct Shared {
    config: PullThrough,
    named: HashMap<Host, Arc<Registry>>,
    /// What registries by `"*"` share.
    any: Option<Connector>,
    on_demand: Cache<Host, Arc<Registry>>,
    /// What we call ourselves in `Via`.
    pseudonym: String,
}

/// What `status` tells of a registry.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    pub host: Host,
    /// Whether it is asked for manifests at all; `false` after repeated failures, or if it asked for it, for a while.
    pub is_asked: bool,
    /// The last failure, unless an answer came since.
    pub error: Option<String>,
    /// As Docker Hub tells it: pulls that are left, of how many.
    pub rate_limit: Option<(u64, u64)>,
}

impl Upstreams {
    /// `identity` tells us from other mirrors. An error names the config key that has to be mended.
    pub fn new(config: PullThrough, identity: &str) -> Result<Self, UpstreamError> {
        Self::with_guard(config, identity, PublicOnly::default())
    }

    /// `guard`: what registries that are known by `"*"` alone may lead to.
    fn with_guard(config: PullThrough, identity: &str, guard: PublicOnly) -> Result<Self, UpstreamError> {
        let named = config.registries.iter().map(|(host, config)| {
            let connector = client::connector(host.as_str(), config, None)?;
            Ok((host.clone(), Arc::new(Registry::new(host.clone(), config.clone(), &connector))))
        });
        let named = named.collect::<Result<_, UpstreamError>>()?;
        let any = config.any.as_ref().map(|any| client::connector("*", any, Some(guard))).transpose()?;
        let on_demand =
            Cache::builder().max_capacity(ON_DEMAND_MAX).eviction_policy(EvictionPolicy::lru()).build();
        let pseudonym = format!("shoal-{identity}");
        Ok(Self(Arc::new(Shared { config, named, any, on_demand, pseudonym })))
    }

    /// A registry by the name that users write before a repository. `None`: it is not mirrored.
    pub fn get(&self, host: &Host) -> Option<Upstream> {
        let registry = match self.0.named.get(host) {
            Some(registry) => registry.clone(),
            None => self.on_demand(host)?,
        };
        Some(Upstream::new(registry, self.via(None)))
    }

    /// Any registry by its name, where the config says so. Names that only this network can know are none.
    fn on_demand(&self, host: &Host) -> Option<Arc<Registry>> {
        let config = self.0.config.any.as_ref().filter(|_| registry::is_public(host))?;
        let connector = self.0.any.as_ref()?;
        if let Some(registry) = self.0.on_demand.get(host) {
            return Some(registry);
        }
        let config = registry::by_name(host, config)?;
        let new = || Arc::new(Registry::new(host.clone(), config, connector));
        Some(self.0.on_demand.get_with_by_ref(host, new))
    }

    /// What a request means that names no registry.
    pub fn default_registry(&self) -> Option<&Host> {
        self.0.config.default_registry.as_ref()
    }

    /// Whether a request with this `Via` (RFC 9110, section 7.6.3) has been here before.
    pub fn is_loop(&self, via: Option<&str>) -> bool {
        let Some(via) = via else { return false };
        let ours = |hop: &str| hop.split_whitespace().any(|word| word == self.0.pseudonym);
        via.len() > VIA_BYTES_MAX || via.split(',').any(ours)
    }

    /// The `Via` of what we ask for the sake of a request that came with `via`.
    pub fn via(&self, via: Option<&str>) -> String {
        let ours = format!("1.1 {}", self.0.pseudonym);
        via.map_or(ours.clone(), |via| format!("{via}, {ours}"))
    }

    /// Whether what is pulled through of every registry may be given to peers.
    pub fn all_are_shared(&self) -> bool {
        self.configs().all(|config| config.share)
    }

    pub fn any_is_shared(&self) -> bool {
        self.configs().any(|config| config.share)
    }

    fn configs(&self) -> impl Iterator<Item = &RegistryConfig> {
        self.0.config.registries.values().chain(&self.0.config.any)
    }

    /// Sorted by name.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        let on_demand = self.0.on_demand.iter().map(|(_, registry)| registry.status());
        let mut all: Vec<_> = self.0.named.values().map(|one| one.status()).chain(on_demand).collect();
        all.sort_by(|a, b| a.host.cmp(&b.host));
        all
    }
}

/// Gives `bytes` to every decoder of this module. For fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    auth::fuzz(bytes);
    lists::fuzz(bytes);
    said::fuzz(bytes);
}
