//! What the parts are opened and started with, as the config has it.

use libp2p::identity::Keypair;

use super::DaemonError;
use crate::config::{Config, FollowMode, HttpLimits, SELF_SIGNED_FOLDER};
use crate::http::tls::Tls;
use crate::ipfs::{Peer, PeerStreams};
use crate::ipld::TreeName;
use crate::ipld::ipns::IpnsName;
use crate::keystore::Keystore;
use crate::kubo::{KuboClient, KuboError, KuboKeys};
use crate::metrics::Metrics;
use crate::mirror::{MirrorConfig, PullThroughConfig, Signer};
use crate::naming::Naming;
use crate::network::Network;
use crate::node::{self, NodeConfig, SwarmKey};
use crate::store::{CACHE_FOLDER, FormerName, Store, StoreOptions, off_thread};
use crate::tasks::Tasks;
use crate::upstream::Upstreams;
use crate::web::{Web, WebConfig};

pub(super) async fn tls(
    tasks: &Tasks,
    config: &Config,
    limits: &HttpLimits,
) -> Result<Option<Tls>, DaemonError> {
    let Some(tls) = &config.http.tls else { return Ok(None) };
    let folder = config.store.root_directory.join(SELF_SIGNED_FOLDER);
    let tls = Tls::start(tasks, tls.clone(), config.http.http2, folder, limits).await;
    tls.map(Some).map_err(DaemonError::Tls)
}

/// The Kubo that is the network, if one is, and the keys that it has.
pub(super) async fn attach(
    tasks: &Tasks,
    store: &Store,
    config: &Config,
) -> Result<Option<(KuboClient, Option<KuboKeys>)>, KuboError> {
    match &config.kubo {
        Some(kubo) => Box::pin(KuboClient::start(tasks, store, kubo.clone())).await.map(Some),
        None => Ok(None),
    }
}

/// The embedded node, and the streams that its peers open.
pub(super) async fn embedded(
    tasks: &Tasks,
    store: &Store,
    identity: Keypair,
    config: NodeConfig,
    web: Option<Web>,
) -> Result<(Network, Option<PeerStreams>), DaemonError> {
    let (node, peer_streams) = node::start_with(tasks, store, identity, config, web).await?;
    Ok((Network::Node(Box::new(node)), Some(peer_streams)))
}

pub(super) fn mirror_config(
    config: &Config,
    signer: Option<Signer>,
    readonly: Vec<(TreeName, FollowMode)>,
    pull_through: Option<PullThroughConfig>,
) -> Result<MirrorConfig, DaemonError> {
    Ok(MirrorConfig {
        signer,
        readonly,
        follow_quota_bytes: config.names.follow_quota_bytes,
        uploads_max: config.limits.uploads_max,
        upload_idle_timeout: config.limits.upload_idle_timeout,
        delete_enabled: config.store.delete_enabled,
        validation: config.validation,
        pull_through,
        naming: Naming::new(&config.naming)?,
    })
}

pub(super) fn node_config(config: &Config, followed: Vec<IpnsName>) -> Result<NodeConfig, DaemonError> {
    let p2p = config.p2p.clone();
    let swarm_key = p2p.swarm_key.as_deref().map(SwarmKey::load).transpose()?;
    Ok(NodeConfig {
        listen: p2p.listen,
        announce: p2p.announce,
        filters: p2p.filters,
        bootstrap: p2p.bootstrap,
        peers: p2p.peers,
        followed,
        pubsub: p2p.pubsub,
        agent: concat!("shoal/", env!("CARGO_PKG_VERSION")).to_owned(),
        connections_max: config.limits.p2p_connections_max,
        swarm_key,
        mdns: p2p.mdns,
        nat: p2p.nat,
        upnp: p2p.upnp,
        relay: p2p.relay,
        relays: p2p.relays,
    })
}

/// Who is asked over HTTP besides the peers. Without any, providers that have gateways are still asked for blocks.
pub(super) fn web(tasks: &Tasks, config: &Config) -> Result<Option<Web>, DaemonError> {
    let config =
        WebConfig { routers: config.p2p.delegated_routers.clone(), gateways: config.p2p.gateways.clone() };
    Ok(Some(Web::start(tasks, &config)?))
}

/// What is needed to mirror other registries, if any is mirrored.
pub(super) async fn pull_through(
    config: &Config,
    identity: &Keypair,
    metrics: Metrics,
) -> Result<Option<PullThroughConfig>, DaemonError> {
    if config.pull_through.is_off() {
        return Ok(None);
    }
    let us = identity.public().to_peer_id().to_base58();
    let folder = config.store.root_directory.join(CACHE_FOLDER);
    let store = off_thread(move || Store::open(&folder, StoreOptions::default())).await;
    let upstreams = Upstreams::new(config.pull_through.clone(), &us);
    Ok(Some(PullThroughConfig {
        store: store.map_err(DaemonError::Store)?,
        upstreams: upstreams.map_err(|error| DaemonError::Upstream(Box::new(error)))?,
        quota_bytes: config.store.quota_bytes,
        us: Peer::new(&us),
        metrics,
    }))
}

/// The names that were given up. A rotation that was decided when the daemon ended is ended first.
pub(super) fn finish_rotation(
    keystore: &Keystore,
    store: &Store,
    config: &Config,
) -> Result<Vec<FormerName>, DaemonError> {
    let former = store.state().former_names().map_err(DaemonError::Store)?;
    let Some(key) = &config.names.write_key else { return Ok(former) };
    // A key that is not there is complained of where it is needed.
    let Ok(name) = keystore.resolve_name(key) else { return Ok(former) };
    if let Some(moved) = former.iter().find(|former| former.name == name)
        && let Some(aside) = keystore.finish_rotation(key, &moved.moved_to)?
    {
        tracing::info!(key, aside, "a rotation of the key that was broken off is ended");
    }
    Ok(former)
}

/// The names whose records the node is to hear of at once.
pub(super) fn followed(
    store: &Store,
    signer: Option<&Signer>,
    readonly: &[(TreeName, FollowMode)],
    former: &[FormerName],
) -> Result<Vec<IpnsName>, DaemonError> {
    let keys = readonly.iter().filter_map(|(name, _)| match name {
        TreeName::Key(name) => Some(*name),
        TreeName::Domain(_) => None,
    });
    let names = keys.chain(signer.map(Signer::name));
    Ok(names.chain(former.iter().map(|former| former.name)).chain(moved(store, readonly)?).collect())
}

/// The names that those that are followed lead on to, as far as they are known.
fn moved(store: &Store, readonly: &[(TreeName, FollowMode)]) -> Result<Vec<IpnsName>, DaemonError> {
    let mut names = Vec::new();
    for (name, _) in readonly {
        let row = store.state().followed(name).map_err(DaemonError::Store)?;
        names.extend(row.iter().flat_map(|row| row.moved.iter().map(|moved| moved.name)));
    }
    Ok(names)
}
