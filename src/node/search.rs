//! Searches for providers go to the delegated routers as well: beside the DHTs, whom they do not keep waiting.

use std::collections::HashMap;

use libp2p::PeerId;
use tokio::sync::mpsc;

use super::SEARCHES_QUEUED_MAX;
use super::bitswap::FindProviders;
use super::command::Command;
use crate::ipld::Cid;
use crate::tasks::Tasks;
use crate::web::Web;

/// Providers that are remembered until it shows whether they can be dialled.
const DIALLED_MAX: usize = 1024;

/// Passes searches on, and has the routers asked as well, if there are any: providers of theirs are dialled by command, and then told to who
/// searches. A search ends when both have ended.
pub(super) fn beside(
    tasks: &Tasks,
    web: Option<&Web>,
    mut searches: mpsc::Receiver<FindProviders>,
    commands: &mpsc::Sender<Command>,
) -> mpsc::Receiver<FindProviders> {
    let Some(web) = web.filter(|web| web.has_routers()).cloned() else { return searches };
    let commands = commands.clone();
    let (onward, passed_on) = mpsc::channel(SEARCHES_QUEUED_MAX);
    let spawning = tasks.clone();
    tasks.spawn("router-searches", |stop| async move {
        while let Some(Some(search)) = stop.run_until_cancelled(searches.recv()).await {
            let (root, reply) = (search.root, search.reply.clone());
            let (mut providers, commands) = (web.find_providers(root), commands.clone());
            spawning.spawn_short("router-search", |stop| async move {
                let taking = async {
                    while let Some(provider) = providers.recv().await {
                        let peer = provider.peer;
                        let dial = Command::DialProvider { root, peer, addresses: provider.addresses };
                        if commands.send(dial).await.is_err() || reply.send(peer).await.is_err() {
                            return;
                        }
                    }
                };
                stop.run_until_cancelled(taking).await;
            });
            if onward.send(search).await.is_err() {
                return;
            }
        }
    });
    passed_on
}

/// Which DAG a provider is dialled for: one that has no address of libp2p may have gateways.
#[derive(Default)]
pub(super) struct Dialled(HashMap<PeerId, Cid>);

impl Dialled {
    pub(super) fn note(&mut self, peer: PeerId, root: Cid) {
        if self.0.len() < DIALLED_MAX {
            self.0.insert(peer, root);
        }
    }

    /// It shows now.
    pub(super) fn take(&mut self, peer: &PeerId) -> Option<Cid> {
        self.0.remove(peer)
    }
}
