//! What the handles of the node ask of its event loop.

use cid::Cid;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};

use super::queries::Answer;
use crate::ipfs::IpfsError;
use crate::ipld::ipns::{IpnsName, IpnsRecord};

/// One thing to do. Answers come by `reply`, as far as there are any; who waits for them no more drops its end.
pub(super) enum Command {
    GetRecord {
        name: IpnsName,
        reply: mpsc::Sender<Answer>,
    },
    /// `reply` gets each peer that took the record.
    PutRecord {
        record: IpnsRecord,
        reply: mpsc::Sender<PeerId>,
    },
    /// The best record that a lookup found, and who gave an older one.
    Found {
        record: IpnsRecord,
        behind: Vec<PeerId>,
    },
    Provide(Vec<Cid>),
    /// One more name whose records are told of; it has no topic.
    Follow(IpnsName),
    /// Somebody who is said to have a DAG.
    DialProvider {
        root: Cid,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    Dial {
        address: Multiaddr,
        reply: oneshot::Sender<Result<(), IpfsError>>,
    },
}
