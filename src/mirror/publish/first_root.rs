//! The tree to begin with, and what else of the own name is known at a start.

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;

use super::{RETRY_PAUSE, Signer, own_record};
use crate::dag::Tree;
use crate::ipfs::{Ipfs, IpfsError, Want};
use crate::ipld::ipns::IpnsName;
use crate::mirror::{MirrorError, chain};
use crate::store::{FormerName, OwnRecord, State, off_thread};

/// How long a start without a tree on disk waits for the network to say whether there is one.
pub(super) const FIRST_ROOT_TIMEOUT: Duration = Duration::from_secs(30);

/// What is on disk of the own name, besides its root.
#[derive(Default)]
pub(in crate::mirror) struct Known {
    pub(super) record: Option<OwnRecord>,
    /// The newest record of somebody else, whether or not it was settled since.
    pub(super) rival: Option<Vec<u8>>,
    pub(super) former: Vec<FormerName>,
}

/// The tree to begin with: the one on disk; else the one that the network knows under this key; else an empty one.
/// Not being able to ask is no proof that there is none, so an older key waits for an answer, within a bound.
pub(in crate::mirror) async fn first_root(
    ipfs: &Arc<dyn Ipfs>,
    tree: &Tree,
    state: &State,
    signer: &Signer,
) -> Result<(Cid, Known), MirrorError> {
    let name = signer.name();
    let (root, known) = {
        let state = state.clone();
        let read = move || {
            let (record, rival) = (state.own_record(&name)?, state.rival(&name)?);
            Ok((state.root(name)?, Known { record, rival, former: state.former_names()? }))
        };
        off_thread(read).await?
    };
    if let Some(root) = root {
        return Ok((root, known));
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
                return Ok((root, Known { record: Some(record), ..known }));
            }
            Ok(None) => (),
            // Not on disk: the next start asks again.
            Err(_elapsed) => return Ok((tree.empty().await?.cid, known)),
        }
    }
    let empty = tree.empty().await?.cid;
    tree.blocks().flush().await?;
    let state = state.clone();
    off_thread(move || state.set_root(name, &empty)).await?;
    Ok((empty, known))
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
