//! IPFS over plain HTTP, beside the protocols of the node: delegated routers as a second source of providers and records
//! (specification "Delegated Routing V1 HTTP API"), trustless gateways as a second source of blocks ("Trustless Gateway").
//!
//! Nobody here is trusted: blocks are held to their CIDs and records to their names before they leave this module. What
//! fails rests, for longer each time; what sends wrong bytes is left for a while. Knows nothing of the swarm: the node
//! dials the providers that are found, and asks here beside its own search, never instead of it.

mod ahead;
mod client;
mod gateways;
mod health;
mod places;
mod providers;
mod routers;

use std::sync::Arc;

use cid::Cid;
use futures::stream::{FuturesUnordered, Stream};
use libp2p::Multiaddr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::ipfs::Want;
use crate::ipld::Block;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::tasks::Tasks;
use client::Http;
pub use client::WebError;
use gateways::Gateways;
pub use places::Reach;
pub use providers::{Provider, fuzz};
use routers::Router;

/// Providers of one search that may wait.
const PROVIDERS_QUEUED_MAX: usize = 16;

/// Who is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebConfig {
    /// Delegated routers: URLs above `/routing/v1`.
    pub routers: Vec<Url>,
    /// Trustless gateways: URLs above `/ipfs/`.
    pub gateways: Vec<Url>,
}

/// How it stands with one of those of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebStatus {
    pub url: String,
    pub is_router: bool,
    /// Whether it is asked: not for a while after a failure.
    pub is_asked: bool,
    /// The last failure, unless an answer came since.
    pub error: Option<String>,
}

/// Asks routers and gateways. Cheap to clone.
#[derive(Clone)]
pub struct Web {
    tasks: Tasks,
    routers: Arc<[Arc<Router>]>,
    gateways: Gateways,
}

impl Web {
    /// Starts what gives records to the routers. Reads the system's certificate authorities.
    pub fn start(tasks: &Tasks, config: &WebConfig) -> Result<Self, WebError> {
        let http = Http::new()?;
        let routers: Arc<[Arc<Router>]> =
            config.routers.iter().map(|url| Arc::new(Router::new(http.clone(), url.clone()))).collect();
        for router in routers.iter() {
            let router = router.clone();
            tasks.spawn("router-records", |stop| async move {
                stop.run_until_cancelled(router.give_records()).await;
            });
        }
        let gateways = Gateways::new(http, tasks.clone(), &config.gateways);
        Ok(Self { tasks: tasks.clone(), routers, gateways })
    }

    pub fn has_routers(&self) -> bool {
        !self.routers.is_empty()
    }

    /// Asks all routers for providers of a DAG. Gateways among them are noted here; what is left to dial comes out.
    /// Dropping the receiver ends the search; it ends by itself within a quarter of a minute.
    pub fn find_providers(&self, root: Cid) -> mpsc::Receiver<Provider> {
        let (found, providers) = mpsc::channel(PROVIDERS_QUEUED_MAX);
        for router in self.routers.iter() {
            let (router, gateways, found) = (router.clone(), self.gateways.clone(), found.clone());
            self.tasks.spawn_short("router-providers", |stop| async move {
                let searching = router.find_providers(&root, &gateways, &found);
                if let Some(Err(error)) = stop.run_until_cancelled(searching).await {
                    tracing::debug!(%root, %error, "a router found no providers");
                }
            });
        }
        providers
    }

    /// Where a provider of a DAG is said to be: gateways among the addresses are noted.
    pub fn provider_at(&self, root: &Cid, addresses: &[Multiaddr], reach: Reach) {
        for url in addresses.iter().filter_map(|address| places::gateway_url(address, reach)) {
            self.gateways.found(root, url, reach);
        }
    }

    /// Why a router could not be asked lately, if one could not: what nobody else has may be known to it.
    pub fn silent_router(&self) -> Option<WebError> {
        self.routers.iter().find_map(|router| router.silence())
    }

    /// What each router has for a name, as the answers come: verified and not expired. `Ok(None)`: it has no record.
    pub fn resolve<'a>(
        &'a self,
        name: &'a IpnsName,
    ) -> impl Stream<Item = Result<Option<IpnsRecord>, WebError>> + Send + 'a {
        self.routers.iter().map(|router| router.resolve(name)).collect::<FuturesUnordered<_>>()
    }

    /// Gives a record to all routers, again until each has taken it or a newer one of the same name is given. The
    /// receiver says so for each that took it.
    pub fn put(&self, record: &IpnsRecord) -> mpsc::Receiver<()> {
        let (taken, took) = mpsc::channel(self.routers.len().max(1));
        self.routers.iter().for_each(|router| router.put(record.clone(), taken.clone()));
        took
    }

    /// A block that came ahead of its want in an archive, verified.
    pub fn held(&self, cid: &Cid) -> Option<Block> {
        self.gateways.held(cid)
    }

    /// Whether the last block below this root came from a gateway, so that the next one is asked for there at once.
    pub fn leads(&self, root: &Cid) -> bool {
        self.gateways.leads(root)
    }

    /// A block below this root came from elsewhere.
    pub fn came_elsewhere(&self, want: &Want) {
        self.gateways.came_elsewhere(want);
    }

    /// A block from the gateways, verified. They are waited for, and those that are found meanwhile, until `others` is
    /// cancelled: nobody else looks any more. Then `Ok(None)`: each said that it has none, or there are none. May be dropped midway.
    pub async fn fetch(&self, want: &Want, others: &CancellationToken) -> Result<Option<Block>, WebError> {
        self.gateways.fetch(want, others).await
    }

    pub fn status(&self) -> Vec<WebStatus> {
        let routers = self.routers.iter().map(|router| router.status());
        routers.chain(self.gateways.status()).collect()
    }
}
