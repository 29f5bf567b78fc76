//! New roots into IPNS records: coalesced, signed, put, and put again before they expire.
//!
//! Owns the record of the own name. A sequence is on disk before its record leaves. A record of this name that somebody
//! else signed with our key, and that the network prefers to ours, stops publishing, never pushes: see
//! [`PublishState::Blocked`]. It is on disk before anything is done about it, so that a restart stops too.

mod first_root;
mod former;
mod rival;
mod task;

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use jiff::Timestamp;
use libp2p::identity::Keypair;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::MirrorError;
use super::commit::Commits;
use super::signer::{Signer, SigningKey, name_of};
use crate::dag::DagError;
use crate::ipfs::{Ipfs, IpfsError};
use crate::ipld::ipns::{IpnsError, IpnsName, IpnsRecord};
use crate::store::{OwnRecord, State, StoreError};
use crate::tasks::Tasks;
pub(super) use first_root::{Known, first_root};
use task::Task;

/// Pauses between tries: doubled from the first to the second.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What a reader may cache a record for.
const RECORD_TTL: Duration = Duration::from_secs(60);
/// Commands that may wait.
const COMMANDS_QUEUED_MAX: usize = 16;

/// How far the own root has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishState {
    /// Waits to be signed or put.
    Pending,
    /// Out, and the newest that the network knows.
    Published,
    /// Somebody else signed a newer record with this key, or another one with the same sequence. Pushes are taken, nothing
    /// is published until `shoal name adopt` or `shoal name overwrite`.
    Blocked,
}

/// What `status` tells of the own name.
#[derive(Clone, Debug)]
pub struct OwnStatus {
    pub name: IpnsName,
    pub root: Cid,
    pub sequence: Option<u64>,
    pub published_at: Option<Timestamp>,
    pub state: PublishState,
    pub error: Option<String>,
    /// What another writer has published, while that keeps ours back.
    pub rival: Option<IpnsRecord>,
    /// Names of ours that lead to this one, the oldest first.
    pub former: Vec<IpnsName>,
}

enum Command {
    Publish(oneshot::Sender<()>),
    /// Over the record of another writer.
    Overwrite(oneshot::Sender<()>),
    /// The own tree has all that is in that record's.
    Adopted(IpnsRecord, oneshot::Sender<()>),
    /// Gives the name up for that of another key.
    Rotate(Box<Keypair>, oneshot::Sender<Result<(), PublishError>>),
}

/// The door to the publisher. Cheap to clone.
#[derive(Clone)]
pub(super) struct Publisher {
    commits: Commits,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<OwnStatus>,
    asked: watch::Receiver<bool>,
}

impl Publisher {
    pub(super) fn start(
        tasks: &Tasks,
        ipfs: Arc<dyn Ipfs>,
        state: State,
        signer: Signer,
        known: Known,
        commits: Commits,
        updates: broadcast::Receiver<IpnsRecord>,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (task, status, asked) = Task::new(ipfs, state, signer, known, commits.clone());
        tasks.spawn("publish", |stop| task.run(inbox, updates, stop));
        Self { commits, commands, status, asked }
    }

    pub(super) fn status(&self) -> OwnStatus {
        let mut status = self.status.borrow().clone();
        let root = self.commits.root();
        // The task may not have heard of it yet, and who has pushed it must not be told that it is out.
        if status.root != root && status.state == PublishState::Published {
            status.state = PublishState::Pending;
        }
        OwnStatus { root, ..status }
    }

    /// Waits until the network was asked once whether it knows a newer root of this name; at most half a minute.
    pub(super) async fn asked(&self) {
        let mut asked = self.asked.clone();
        let answer = asked.wait_for(|asked| *asked);
        // When nobody answers, pushes are taken all the same: they are kept here, and published only after an answer.
        let _ = tokio::time::timeout(first_root::FIRST_ROOT_TIMEOUT, answer).await;
    }

    /// Publishes the root at once, unless another writer is in the way.
    pub(super) async fn publish_now(&self) -> Result<OwnStatus, MirrorError> {
        self.command(Command::Publish).await?;
        Ok(self.status())
    }

    /// Publishes the root at once, also over the record of another writer.
    pub(super) async fn overwrite(&self) -> Result<OwnStatus, MirrorError> {
        self.command(Command::Overwrite).await?;
        Ok(self.status())
    }

    /// Publishes over `record`, all of whose tree is in the own one by now. What another writer has put since then stays in
    /// the way.
    pub(super) async fn adopted(&self, record: IpnsRecord) -> Result<OwnStatus, MirrorError> {
        self.command(|reply| Command::Adopted(record, reply)).await?;
        Ok(self.status())
    }

    /// Gives the name up for that of `key`: publishes the root there, and a record that leads there under the old name.
    /// Both are on disk when this returns, and are put behind it.
    pub(super) async fn rotate(&self, key: Keypair) -> Result<OwnStatus, MirrorError> {
        let outcome = self.command(|reply| Command::Rotate(Box::new(key), reply)).await?;
        outcome.map_err(MirrorError::Rotate)?;
        Ok(self.status())
    }

    async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, MirrorError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| MirrorError::Closed)?;
        answer.await.map_err(|_| MirrorError::Closed)
    }
}

fn own_record(record: &IpnsRecord, root: Cid) -> OwnRecord {
    OwnRecord { sequence: record.sequence(), root, bytes: record.bytes().to_vec() }
}

/// Why the own root is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(
        "no record can be newer than sequence {sequence}, which somebody signed with this key: a new key is needed \
         (`shoal key gen`, then storage.ipfs.writeipnskey)"
    )]
    Exhausted { sequence: u64 },
    #[error("another writer published with this key: run `shoal name adopt` or `shoal name overwrite` first")]
    Blocked,
    #[error("the network has not said yet what it knows of this name: try again when a peer is connected")]
    Unsettled,
    #[error(
        "the key of {0} is not in the keystore of this daemon: rotate it where it is, and name the new one in storage.ipfs.writeipnskey"
    )]
    Elsewhere(Box<IpnsName>),
    #[error("{0} names were given up before, and more are not kept alive")]
    TooManyFormer(usize),
    /// Of a record that is newer than ours.
    #[error("the tree of a newer record cannot be read yet")]
    Unread(#[source] Box<DagError>),
    #[error("the tree cannot be kept under another name")]
    Move(#[source] Box<MirrorError>),
    #[error(transparent)]
    Ipfs(#[from] IpfsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ipns(#[from] IpnsError),
}
