//! Who has the key of the own tree, and what the tree begins with.

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use libp2p::identity::Keypair;

use super::publish::{FIRST_ROOT_TIMEOUT, RETRY_PAUSE, own_record};
use super::{MirrorError, chain};
use crate::dag::Tree;
use crate::ipfs::{Ipfs, IpfsError, Want};
use crate::ipld::ipns::IpnsName;
use crate::store::{OwnRecord, State, off_thread};

/// Who has the key of the own name.
pub enum SigningKey {
    Ours(Box<Keypair>),
    /// Whoever is the network for us: see [`Ipfs::sign`].
    Network(IpnsName),
}

/// The key that the own tree is published under.
pub struct Signer {
    pub key: SigningKey,
    /// Made by this start: nobody can know a record of it.
    pub fresh: bool,
    /// From signing to the end of a record's life.
    pub record_validity: Duration,
}

impl Signer {
    pub fn name(&self) -> IpnsName {
        match &self.key {
            SigningKey::Ours(keypair) => IpnsName::from_peer_id(keypair.public().to_peer_id()),
            SigningKey::Network(name) => *name,
        }
    }
}

/// The tree to begin with: the one on disk; else the one that the network knows under this key; else an empty one.
/// Not being able to ask is no proof that there is none, so an older key waits for an answer, within a bound.
pub(super) async fn first_root(
    ipfs: &Arc<dyn Ipfs>,
    tree: &Tree,
    state: &State,
    signer: &Signer,
) -> Result<(Cid, Option<OwnRecord>), MirrorError> {
    let name = signer.name();
    let (root, record) = {
        let state = state.clone();
        off_thread(move || Ok((state.root(name)?, state.own_record(&name)?))).await?
    };
    if let Some(root) = root {
        return Ok((root, record));
    }
    if !signer.fresh {
        tracing::info!(ipns = %name, "no tree on disk for this key: asking the network for one");
        match tokio::time::timeout(FIRST_ROOT_TIMEOUT, ask_for_root(ipfs, tree, &name)).await {
            Ok(Some((root, record))) => {
                let (state, row) = (state.clone(), record.clone());
                off_thread(move || {
                    state.set_own_record(&name, &row)?;
                    state.set_root(name, &root)
                })
                .await?;
                tracing::info!(ipns = %name, %root, "took over the published tree of this key");
                return Ok((root, Some(record)));
            }
            Ok(None) => (),
            // Not on disk: the next start asks again.
            Err(_elapsed) => return Ok((tree.empty().await?.cid, record)),
        }
    }
    let empty = tree.empty().await?.cid;
    tree.blocks().flush().await?;
    let state = state.clone();
    off_thread(move || state.set_root(name, &empty)).await?;
    Ok((empty, record))
}

/// Asks until there is an answer: `None` is the network's "no such record".
async fn ask_for_root(ipfs: &Arc<dyn Ipfs>, tree: &Tree, name: &IpnsName) -> Option<(Cid, OwnRecord)> {
    loop {
        match ipfs.resolve(name).await {
            Ok(record) => {
                if let Some(root) = record.root() {
                    match tree.blocks().fetch(Want { cid: root, root }).await {
                        Ok(_) => return Some((root, own_record(&record, root))),
                        Err(error) => {
                            tracing::warn!(%root, error = %chain(&error), "published tree not fetched yet")
                        }
                    }
                }
            }
            Err(IpfsError::NoRecord(_)) => return None,
            Err(error) => tracing::debug!(%error, "no answer yet"),
        }
        tokio::time::sleep(RETRY_PAUSE.0).await;
    }
}
