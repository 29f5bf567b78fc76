//! Where parts meet: opens the store, starts in order, stops in reverse.

mod parts;

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use self::parts::{
    attach, embedded, finish_rotation, followed, mirror_config, node_config, pull_through, tls, web,
};
use crate::api;
use crate::auth::{Auth, AuthError};
use crate::config::{Config, Net};
use crate::http::access_log::logged;
use crate::http::control::{Daemon, control_router, debug_router};
use crate::http::describe::{describe_fill, describe_followed, describe_own};
use crate::http::listen::{self, ListenError};
use crate::http::peer;
use crate::http::public::public;
use crate::http::server::{Listener, serve};
use crate::http::tls::TlsError;
use crate::ipld::ipns::IpnsName;
use crate::keystore::{Keystore, KeystoreError, SELF};
use crate::kubo::KuboError;
use crate::metrics::Metrics;
use crate::mirror::{Mirror, MirrorError, PublishError, PublishState, PullThroughStatus, chain};
use crate::naming::NamingError;
use crate::network::{KeyError, Keys, Network};
use crate::node::{NodeError, SwarmKeyError};
use crate::store::{Store, StoreError, StoreOptions, off_thread};
use crate::tasks::Tasks;
use crate::upstream::{UpstreamError, UpstreamStatus};
use crate::web::WebError;

/// What the parts below the servers have to end in, beyond what requests left of their time.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a daemon does not start, or does not end well. All but the last two are mended in the config or its surroundings.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    #[error("config key storage.ipfs.rootdirectory")]
    Store(#[source] StoreError),
    #[error("config key {key}")]
    Listen { key: &'static str, source: ListenError },
    #[error("config key http.tls")]
    Tls(#[source] TlsError),
    #[error("config key p2p")]
    Node(#[from] NodeError),
    #[error("config key p2p.swarmkey")]
    SwarmKey(#[from] SwarmKeyError),
    #[error(transparent)]
    Kubo(#[from] KuboError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("cannot make the control socket")]
    Socket(#[source] std::io::Error),
    #[error(transparent)]
    Upstream(Box<UpstreamError>),
    #[error("config key p2p")]
    Web(#[from] WebError),
    #[error(transparent)]
    Naming(#[from] NamingError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

impl DaemonError {
    /// Whether the user has to mend the config: exit code 2.
    pub fn is_config(&self) -> bool {
        !matches!(self, Self::Mirror(_) | Self::Socket(_))
    }
}

/// Runs until SIGTERM or SIGINT; a second one ends the process at once. `ready` is called when everything serves, with
/// the line for standard output.
pub async fn run(config: Config, ready: impl FnOnce(&str)) -> Result<(), DaemonError> {
    let mut stop = Stop::new().map_err(DaemonError::Socket)?;
    let (tasks, servers) = (Tasks::new(), Tasks::new());
    let running = tokio::select! {
        started = start(&tasks, &servers, config.clone()) => started?,
        () = stop.wait() => {
            servers.shutdown(Duration::ZERO).await;
            tasks.shutdown(Duration::ZERO).await;
            return Ok(());
        }
    };
    ready(&running.ready_line());
    stop.wait().await;
    tracing::info!("stopping");
    let ended = tokio::select! {
        ended = end(&running, config.http.drain_timeout) => ended,
        () = stop.wait() => {
            tracing::warn!("stopped at once");
            return Ok(());
        }
    };
    // A socket that is left behind is replaced at the next start.
    let _ = std::fs::remove_file(config.store.root_directory.join(api::SOCKET));
    if config.http.net == Net::Unix {
        let _ = std::fs::remove_file(&config.http.addr);
    }
    ended.map_err(DaemonError::Store)
}

/// Stops in reverse: requests that run are finished first, with everything below them still at work; within
/// `drain_timeout`, and [`REST_TIMEOUT`] for the rest.
async fn end(running: &Running, drain_timeout: Duration) -> Result<(), StoreError> {
    let begun = Instant::now();
    let aborted = running.servers.shutdown(drain_timeout).await;
    if aborted > 0 {
        tracing::warn!(tasks = aborted, "requests were cut off that did not end within http.draintimeout");
    }
    let aborted = running.tasks.shutdown(drain_timeout.saturating_sub(begun.elapsed()) + REST_TIMEOUT).await;
    if aborted > 0 {
        tracing::warn!(tasks = aborted, "not everything ended in time");
    }
    let stores = std::iter::once(running.store.clone()).chain(running.cache.clone()).collect::<Vec<_>>();
    off_thread(move || stores.iter().try_for_each(Store::close)).await
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

/// A daemon that serves.
struct Running {
    store: Store,
    /// What was pulled through.
    cache: Option<Store>,
    network: Network,
    mirror: Mirror,
    tasks: Tasks,
    /// Listeners and their connections, which stop before the others.
    servers: Tasks,
    /// The URL of the registry.
    registry: String,
    keystore: Keystore,
    write_key: Option<String>,
    started_at: Instant,
}

async fn start(tasks: &Tasks, servers: &Tasks, config: Config) -> Result<Arc<Running>, DaemonError> {
    let mut limits = config.limits.http;
    limits.connections_max = listen::connections_that_fit(limits.connections_max);
    let wrong = |key| move |source| DaemonError::Listen { key, source };
    let debug = match &config.http.debug_addr {
        Some(addr) => Some(listen::tcp(addr).await.map_err(wrong("http.debug.addr"))?),
        None => None,
    };
    let (registry, registry_url) = listen::registry(&config.http).await.map_err(wrong("http.addr"))?;
    let scheme = if config.http.tls.is_some() { "https" } else { "http" };
    let auth = Auth::open(config.auth.clone(), scheme, config.http.prefix.clone()).await?;
    let root_directory = config.store.root_directory.clone();
    let store = off_thread(move || Store::open(&root_directory, StoreOptions::default())).await;
    let store = store.map_err(DaemonError::Store)?;
    let keystore = Keystore::open(&config.store.root_directory)?;
    let former = finish_rotation(&keystore, &store, &config)?;
    let (identity, fresh) = keystore.get_or_generate(SELF)?;
    let tls = tls(tasks, &config, &limits).await?;
    let attached = attach(tasks, &store, &config).await?;
    let api = config.kubo.as_ref().map(|kubo| kubo.api.to_string());
    let kubo = api.as_deref().zip(attached.as_ref().map(|(_, keys)| keys.as_ref()));
    let keys = Keys { keystore: &keystore, self_is_fresh: fresh, kubo, former: &former };
    let (signer, readonly) = (keys.signer(&config)?, keys.readonly(&config)?);
    let metrics = Metrics::default();
    let pull_through = pull_through(&config, &identity, metrics.clone()).await?;
    let cache = pull_through.as_ref().map(|pull_through| pull_through.store.clone());
    let followed = followed(&store, signer.as_ref(), &readonly, &former)?;
    let (network, peer_streams) = match attached {
        Some((kubo, _)) => (Network::Kubo(kubo), None),
        None => {
            embedded(tasks, &store, identity, node_config(&config, followed)?, web(tasks, &config)?).await?
        }
    };
    let mirror_config = mirror_config(&config, signer, readonly, pull_through)?;
    let mirror =
        Mirror::start(tasks, &store, network.ipfs(), network.record_updates(), mirror_config).await?;

    let running = Arc::new(Running {
        store,
        cache,
        network,
        mirror: mirror.clone(),
        tasks: tasks.clone(),
        servers: servers.clone(),
        registry: registry_url,
        keystore,
        write_key: config.names.write_key.clone(),
        started_at: Instant::now(),
    });
    if let Some(peer_streams) = peer_streams {
        let gateway = peer::gateway::gateway(mirror.clone());
        let mesh = gateway.clone().merge(peer::mesh::router(mirror.clone()));
        let anybody = gateway.merge(peer::blobs::router(mirror.clone()));
        peer::serve(servers, peer_streams, anybody, mesh);
    }
    let router = public(crate::http::router(auth, mirror.clone(), metrics.clone()), &config.http);
    let router = if config.log.access { logged(router) } else { router };
    serve(servers, "registry", registry, router, tls, limits);
    let control = control_router(mirror.clone(), metrics.clone(), running.clone());
    let socket = control_socket(&config.store.root_directory).map_err(DaemonError::Socket)?;
    serve(servers, "control", Listener::Unix(socket), control, None, limits);
    if let Some((debug, address)) = debug {
        tracing::info!(%address, "serving metrics, health and status");
        let pages = debug_router(mirror, metrics, running.clone(), config.http.metrics_path.as_deref());
        serve(servers, "debug", Listener::Tcp(debug), pages, None, limits);
    }
    Ok(running)
}

/// Replaces the socket of an earlier run: the lock of the store says that nobody uses it.
fn control_socket(root_directory: &Path) -> std::io::Result<UnixListener> {
    let path = root_directory.join(api::SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let socket = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

impl Running {
    /// `ready registry=… p2p=… ipns=…`: fields without spaces, lists joined by commas.
    fn ready_line(&self) -> String {
        let addresses = self.network.addresses();
        let ipns = self.mirror.status().own.map(|own| own.name.to_string()).unwrap_or_default();
        format!("ready registry={} p2p={} ipns={ipns}", self.registry, addresses.join(","))
    }
}

fn describe_upstream(upstream: UpstreamStatus) -> api::Upstream {
    api::Upstream {
        host: upstream.host.to_string(),
        state: if upstream.is_asked { "asked" } else { "resting" }.to_owned(),
        error: upstream.error,
        rate_limit: upstream.rate_limit.map(|(remaining, limit)| api::RateLimit { remaining, limit }),
    }
}

fn describe_cache(status: &PullThroughStatus) -> api::Cache {
    let (live_bytes, disk_bytes) = (status.store.live_bytes, status.store.disk_bytes);
    api::Cache { live_bytes, disk_bytes, quota_bytes: status.quota_bytes }
}

impl Daemon for Running {
    fn status(&self) -> api::Status {
        let (mirror, store) = (self.mirror.status(), self.store.blocks().stats());
        let (fetches, received_bytes, sent_bytes) = self.network.transfers();
        let cache = mirror.pull_through.as_ref().map(describe_cache);
        let (fills, upstreams) = match mirror.pull_through {
            Some(PullThroughStatus { fills, upstreams, .. }) => (fills, upstreams),
            None => (Vec::new(), Vec::new()),
        };
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started_at.elapsed().as_secs(),
            registry: self.registry.clone(),
            node: self.network.status(),
            own: mirror.own.map(describe_own),
            readonly: mirror.readonly.into_iter().map(describe_followed).collect(),
            store: api::Store {
                blocks: store.blocks,
                live_bytes: store.live_bytes,
                disk_bytes: store.disk_bytes,
            },
            cache,
            upstreams: upstreams.into_iter().map(describe_upstream).collect(),
            fills: fills.into_iter().map(describe_fill).collect(),
            transfers: api::Transfers {
                uploads: mirror.uploads,
                downloads: mirror.downloads,
                fetches,
                received_bytes,
                sent_bytes,
            },
            tasks: self.tasks.len() + self.servers.len(),
        }
    }

    fn resolve<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<api::Resolved, String>> + Send + 'a>> {
        Box::pin(async move {
            let name: IpnsName = name.parse().map_err(|error| chain(&error))?;
            let record = self.network.ipfs().resolve(&name).await.map_err(|error| chain(&error))?;
            Ok(api::Resolved {
                name: name.to_string(),
                value: record.value().to_owned(),
                sequence: record.sequence(),
                valid_until: record.valid_until().to_string(),
            })
        })
    }

    fn rotate(
        &self,
        name: Option<String>,
    ) -> Pin<Box<dyn Future<Output = Result<api::Rotated, String>> + Send + '_>> {
        Box::pin(async move {
            let Some(key) = self.write_key.clone() else { return Err(chain(&MirrorError::ReadOnly)) };
            if let Some(name) = name.filter(|name| *name != key) {
                return Err(format!(
                    "key {name:?} is not published under: this daemon publishes under {key:?}"
                ));
            }
            let own = self.mirror.status().own.ok_or_else(|| chain(&MirrorError::ReadOnly))?;
            if own.state == PublishState::Blocked {
                return Err(chain(&MirrorError::Rotate(PublishError::Blocked)));
            }
            let former_name = own.name.to_string();
            let on_disk = |error: KeystoreError| chain(&error);
            let (keystore, of, name) = (self.keystore.clone(), key.clone(), own.name);
            let successor = off_thread(move || Ok(keystore.successor(&of, &name))).await;
            let successor = successor.map_err(|error| chain(&error))?.map_err(on_disk)?;
            let elsewhere = || chain(&MirrorError::Rotate(PublishError::Elsewhere(Box::new(own.name))));
            let successor = successor.ok_or_else(elsewhere)?;
            let own = self.mirror.rotate(successor).await.map_err(|error| chain(&error))?;
            // What is left to be done from here on, the next start does as well.
            let keystore = self.keystore.clone();
            let rotated = off_thread(move || Ok(keystore.rotate(&key))).await;
            let former_key = rotated.map_err(|error| chain(&error))?.map_err(on_disk)?;
            Ok(api::Rotated { name: own.name.to_string(), former_name, former_key })
        })
    }

    fn refresh(&self, metrics: &Metrics) {
        let status = self.status();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        metrics.peers.set(count(status.node.peers));
        metrics.mesh_peers.set(count(status.node.mesh_peers));
        let nat = &status.node.nat;
        metrics.reachable.set(u64::from(nat.reachability == "public"));
        metrics.relay_reservations.set(count(nat.relayed_addresses.len()));
        metrics.direct_peers.set(count(nat.direct_peers));
        metrics.relayed_peers.set(count(nat.relayed_peers));
        metrics.relayed_circuits.set(count(nat.circuits));
        metrics.fills.set(count(status.fills.len()));
        if let Some(cache) = &status.cache {
            metrics.cache_live_bytes.set(cache.live_bytes);
            metrics.cache_disk_bytes.set(cache.disk_bytes);
        }
        metrics.blocks.set(status.store.blocks);
        metrics.store_live_bytes.set(status.store.live_bytes);
        metrics.store_disk_bytes.set(status.store.disk_bytes);
        metrics.uploads.set(count(status.transfers.uploads));
        metrics.downloads.set(count(status.transfers.downloads));
        metrics.fetches.set(count(status.transfers.fetches));
        metrics.bitswap_received_bytes.set(status.transfers.received_bytes);
        metrics.bitswap_sent_bytes.set(status.transfers.sent_bytes);
        metrics.tasks.set(count(status.tasks));
        metrics.publish_blocked.set(u64::from(status.own.is_some_and(|own| own.state == "blocked")));
    }
}
