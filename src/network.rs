//! What the daemon has for a network: the embedded node, or a Kubo; and the keys that names mean there.

use std::sync::Arc;

use libp2p::identity::Keypair;
use tokio::sync::broadcast;

use crate::api;
use crate::config::{Config, FollowMode, Name};
use crate::ipfs::Ipfs;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::{Domain, TreeName};
use crate::keystore::{Keystore, KeystoreError, SELF};
use crate::kubo::{KuboClient, KuboError, KuboKeys};
use crate::mirror::{Signer, SigningKey};
use crate::node::{NatStats, NodeClient};
use crate::store::FormerName;
use crate::web::WebStatus;

/// The network, whichever it is. Cheap to clone.
#[derive(Clone)]
pub enum Network {
    Node(Box<NodeClient>),
    Kubo(KuboClient),
}

impl Network {
    pub fn ipfs(&self) -> Arc<dyn Ipfs> {
        match self {
            Self::Node(node) => Arc::new(NodeClient::clone(node)),
            Self::Kubo(kubo) => Arc::new(kubo.clone()),
        }
    }

    /// Valid records that come without being asked for.
    pub fn record_updates(&self) -> &broadcast::Sender<IpnsRecord> {
        match self {
            Self::Node(node) => node.record_updates(),
            Self::Kubo(kubo) => kubo.record_updates(),
        }
    }

    /// What others dial; of a Kubo that never answered, none.
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Self::Node(node) => node.listen_addresses().iter().map(ToString::to_string).collect(),
            Self::Kubo(kubo) => kubo.status().addresses,
        }
    }

    pub fn status(&self) -> api::Node {
        match self {
            Self::Node(node) => {
                let stats = node.stats();
                api::Node {
                    peer_id: node.peer_id().to_base58(),
                    addresses: self.addresses(),
                    peers: stats.peers,
                    mesh_peers: stats.mesh_peers,
                    announcements_waiting: stats.announcements_waiting,
                    pubsub_peers: stats.pubsub_peers,
                    nat: describe_nat(stats.nat),
                    web: stats.web.into_iter().map(describe_web).collect(),
                    kubo: None,
                }
            }
            Self::Kubo(kubo) => {
                let status = kubo.status();
                api::Node {
                    peer_id: status.peer_id,
                    addresses: status.addresses,
                    peers: status.peers,
                    mesh_peers: 0,
                    announcements_waiting: status.roots_waiting,
                    pubsub_peers: None,
                    nat: describe_nat(NatStats::default()),
                    web: Vec::new(),
                    kubo: Some(api::Kubo { api: status.api, version: status.version, error: status.error }),
                }
            }
        }
    }

    /// Fetches under way, and bytes received and sent by Bitswap; a Kubo does not tell.
    pub fn transfers(&self) -> (usize, u64, u64) {
        match self {
            Self::Node(node) => {
                let bitswap = node.stats().bitswap;
                (bitswap.fetches, bitswap.bytes_received, bitswap.bytes_sent)
            }
            Self::Kubo(_) => (0, 0, 0),
        }
    }
}

fn describe_nat(nat: NatStats) -> api::Nat {
    api::Nat {
        reachability: nat.reachability.as_str().to_owned(),
        relayed_addresses: nat.relayed_addresses.iter().map(ToString::to_string).collect(),
        direct_peers: nat.direct_peers,
        relayed_peers: nat.relayed_peers,
        reservations_given: nat.reservations,
        circuits: nat.circuits,
    }
}

fn describe_web(web: WebStatus) -> api::Web {
    api::Web {
        url: web.url,
        kind: if web.is_router { "router" } else { "gateway" }.to_owned(),
        state: if web.is_asked { "asked" } else { "resting" }.to_owned(),
        error: web.error,
    }
}

/// Where the names of keys lead.
pub struct Keys<'a> {
    pub keystore: &'a Keystore,
    /// The key of the node was made by this start.
    pub self_is_fresh: bool,
    /// The Kubo that is the network, and its keys, which go before ours; `None`: they are not known.
    pub kubo: Option<(&'a str, Option<&'a KuboKeys>)>,
    /// Names that were given up for the one that is published under.
    pub former: &'a [FormerName],
}

/// Why a key or name of the config leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("config key storage.ipfs.{key}")]
    Keystore { key: String, source: KeystoreError },
    #[error(transparent)]
    Former(#[from] KeystoreError),
    #[error(transparent)]
    Kubo(#[from] KuboError),
}

impl Keys<'_> {
    /// The key that is published under, if any is.
    pub fn signer(&self, config: &Config) -> Result<Option<Signer>, KeyError> {
        let Some(name) = &config.names.write_key else { return Ok(None) };
        let record_validity = config.names.record_validity;
        if let Some(id) = self.of_kubo("writeipnskey", name)? {
            return Ok(Some(Signer {
                key: SigningKey::Network(id),
                fresh: false,
                record_validity,
                former: Vec::new(),
            }));
        }
        let wrong = |source| KeyError::Keystore { key: "writeipnskey".to_owned(), source };
        let dir = config.store.root_directory.join("keystore");
        let unknown = || KeystoreError::Missing { name: name.clone(), dir };
        let keypair: Keypair =
            self.keystore.get(name).and_then(|key| key.ok_or_else(unknown)).map_err(wrong)?;
        let fresh = self.self_is_fresh && name == SELF;
        let (key, former) = (SigningKey::Ours(Box::new(keypair)), self.former_keys()?);
        Ok(Some(Signer { key, fresh, record_validity, former }))
    }

    /// The keys of names that were given up, as far as they are there.
    fn former_keys(&self) -> Result<Vec<Keypair>, KeyError> {
        let mut keys = Vec::with_capacity(self.former.len());
        // A file that is no key is of no concern where none is looked for.
        let all = if self.former.is_empty() { Vec::new() } else { self.keystore.list()? };
        for (name, ipns) in all {
            if self.former.iter().any(|former| former.name == ipns) {
                keys.extend(self.keystore.get(&name)?);
            }
        }
        Ok(keys)
    }

    /// The names that are read.
    pub fn readonly(&self, config: &Config) -> Result<Vec<(TreeName, FollowMode)>, KeyError> {
        let resolve = |(n, name): (usize, &Name)| {
            let key = format!("readonlyipnskeys[{n}]");
            if let Some(id) = self.of_kubo(&key, &name.text)? {
                return Ok((id.into(), name.follow));
            }
            let known = match (self.keystore.resolve_name(&name.text), name.text.parse()) {
                (Err(KeystoreError::NeitherKeyNorName { .. }), Ok(domain)) => TreeName::Domain(domain),
                (resolved, _) => resolved.map_err(|source| KeyError::Keystore { key, source })?.into(),
            };
            Ok((known, name.follow))
        };
        config.names.readonly.iter().enumerate().map(resolve).collect()
    }

    /// What a text means to the Kubo, if there is one. What is an IPNS name, a domain, or a key of ours but `self`, is known
    /// without it.
    fn of_kubo(&self, key: &str, text: &str) -> Result<Option<IpnsName>, KeyError> {
        let Some((api, keys)) = self.kubo else { return Ok(None) };
        if let Some(keys) = keys {
            return Ok(keys.find(text));
        }
        let is_name = text.parse::<IpnsName>().is_ok() || text.parse::<Domain>().is_ok();
        let is_name = is_name && key != "writeipnskey";
        let is_ours = text != SELF && self.keystore.get(text).is_ok_and(|found| found.is_some());
        if is_name || is_ours {
            return Ok(None);
        }
        let (api, key, name) = (api.to_owned(), format!("storage.ipfs.{key}"), text.to_owned());
        Err(KuboError::NoKeys { api, key, name }.into())
    }
}
