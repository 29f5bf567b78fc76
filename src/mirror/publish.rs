//! New roots into IPNS records: coalesced, signed, put, and put again before they expire.
//!
//! Owns the record of the own name. A sequence is on disk before its record leaves. A record of this name that somebody
//! else signed with our key and a higher sequence stops publishing, never pushes: see [`PublishState::Blocked`].

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::commit::Commits;
use super::signer::{Signer, SigningKey};
use super::{MirrorError, chain};
use crate::ipfs::{Ipfs, IpfsError, Signing};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::unixfs::encode_directory;
use crate::store::{OwnRecord, State, StoreError, off_thread};
use crate::tasks::Tasks;

/// A new root leaves when none has followed it for this long …
const QUIET: Duration = Duration::from_millis(300);
/// … or this long after the first.
const LATEST: Duration = Duration::from_secs(3);
/// How often a record is put again.
const PUT_AGAIN_INTERVAL: Duration = Duration::from_secs(4 * 3600);
/// Pauses between tries: doubled from the first to the second.
pub(super) const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Without a peer nothing was tried, so the next one is worth trying soon.
const NO_PEERS_PAUSE_MAX: Duration = Duration::from_secs(4);
/// How long a start without a tree on disk waits for the network to say whether there is one.
pub(super) const FIRST_ROOT_TIMEOUT: Duration = Duration::from_secs(30);
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
    /// Somebody else signed a newer record with this key. Pushes are taken, nothing is published until
    /// `shoal name publish --overwrite`.
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
}

struct Command {
    overwrite: bool,
    reply: oneshot::Sender<()>,
}

/// The door to the publisher. Cheap to clone.
#[derive(Clone)]
pub(super) struct Publisher {
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
        record: Option<OwnRecord>,
        commits: Commits,
        updates: broadcast::Receiver<IpnsRecord>,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let status = watch::Sender::new(OwnStatus {
            name: signer.name(),
            root: commits.root(),
            sequence: record.as_ref().map(|record| record.sequence),
            published_at: None,
            state: PublishState::Pending,
            error: None,
        });
        let asked = watch::Sender::new(signer.fresh);
        let publisher = Self { commands, status: status.subscribe(), asked: asked.subscribe() };
        let mut task = Task {
            ipfs,
            state,
            settled: signer.fresh,
            signer,
            record,
            commits,
            status,
            asked,
            due: None,
            put_pending: true,
            empty: *encode_directory(Vec::new()).cid(),
            pause: RETRY_PAUSE.0,
            sequence_seen: 0,
            sequence_floor: 0,
            put_root: None,
        };
        task.due = task.changed_since_signed().then(Instant::now);
        tasks.spawn("publish", |stop| task.run(inbox, updates, stop));
        publisher
    }

    pub(super) fn status(&self) -> OwnStatus {
        self.status.borrow().clone()
    }

    /// Waits until the network was asked once whether it knows a newer root of this name; at most half a minute.
    pub(super) async fn asked(&self) {
        let mut asked = self.asked.clone();
        let answer = asked.wait_for(|asked| *asked);
        // When nobody answers, pushes are taken all the same: they are kept here, and published only after an answer.
        let _ = tokio::time::timeout(FIRST_ROOT_TIMEOUT, answer).await;
    }

    /// Publishes the root at once; with `overwrite` also over a newer record of somebody else.
    pub(super) async fn publish_now(&self, overwrite: bool) -> Result<OwnStatus, MirrorError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { overwrite, reply }).await.map_err(|_| MirrorError::Closed)?;
        answer.await.map_err(|_| MirrorError::Closed)?;
        Ok(self.status())
    }
}

pub(super) fn own_record(record: &IpnsRecord, root: Cid) -> OwnRecord {
    OwnRecord { sequence: record.sequence(), root, bytes: record.bytes().to_vec() }
}

struct Task {
    ipfs: Arc<dyn Ipfs>,
    state: State,
    signer: Signer,
    record: Option<OwnRecord>,
    commits: Commits,
    status: watch::Sender<OwnStatus>,
    asked: watch::Sender<bool>,
    /// The network has said what it knows of this name, or nobody can know it.
    settled: bool,
    /// When the root is to be signed.
    due: Option<Instant>,
    /// The signed record has not been taken by the network yet.
    put_pending: bool,
    pause: Duration,
    /// The root of a tree without anything in it.
    empty: Cid,
    /// The highest sequence of a foreign record.
    sequence_seen: u64,
    /// What the next sequence must exceed, after the user chose to overwrite.
    sequence_floor: u64,
    /// What the name points to, as far as this run knows.
    put_root: Option<Cid>,
}

impl Task {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut updates: broadcast::Receiver<IpnsRecord>,
        stop: CancellationToken,
    ) {
        let mut committed = self.commits.watch();
        // The start itself is the first occasion.
        let mut put_again = tokio::time::interval_at(Instant::now() + PUT_AGAIN_INTERVAL, PUT_AGAIN_INTERVAL);
        let mut retry = Instant::now();
        let mut first_change = None;
        loop {
            let blocked = self.status.borrow().state == PublishState::Blocked;
            let work = !blocked && (self.due.is_some() || self.put_pending || !self.settled);
            let at = self.due.unwrap_or(retry).max(retry);
            tokio::select! {
                () = stop.cancelled() => break,
                changed = committed.changed() => {
                    if changed.is_err() { break }
                    let first = *first_change.get_or_insert_with(Instant::now);
                    self.due = Some((Instant::now() + QUIET).min(first + LATEST));
                    self.pending(committed.borrow_and_update().root);
                }
                told = updates.recv() => if let Ok(record) = told {
                    self.compare(&record).await;
                },
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    self.obey(command).await;
                }
                _ = put_again.tick() => self.renew(),
                () = tokio::time::sleep_until(at), if work => {
                    first_change = None;
                    retry = Instant::now() + self.step().await;
                }
            }
        }
        self.last_words().await;
    }

    /// Has the record put again; one that has lived half its life is signed anew.
    fn renew(&mut self) {
        self.put_pending = true;
        if self.is_past_half_its_life() {
            self.due.get_or_insert_with(Instant::now);
        }
    }

    fn is_past_half_its_life(&self) -> bool {
        let record = self.signed();
        let left = record.map(|record| record.valid_until().duration_since(Timestamp::now()));
        let half = SignedDuration::try_from(self.signer.record_validity / 2).unwrap_or(SignedDuration::MAX);
        left.is_some_and(|left| left < half)
    }

    /// The record that was signed last; expired or not.
    fn signed(&self) -> Option<IpnsRecord> {
        self.record.as_ref().and_then(|own| IpnsRecord::decode(&self.signer.name(), &own.bytes).ok())
    }

    fn pending(&self, root: Cid) {
        self.status.send_modify(|status| {
            status.root = root;
            if status.state == PublishState::Published {
                status.state = PublishState::Pending;
            }
        });
    }

    /// One try of what is to be done; returns the pause before the next.
    async fn step(&mut self) -> Duration {
        match self.advance().await {
            Ok(()) => {
                self.pause = RETRY_PAUSE.0;
                Duration::ZERO
            }
            Err(error) => {
                let no_peers = matches!(&error, PublishError::Ipfs(error) if error.is_nobody_there());
                let text = chain(&error);
                tracing::debug!(error = %text, "not published yet");
                // Pushes wait for an answer, not for a network.
                self.asked.send_replace(true);
                self.status.send_modify(|status| status.error = Some(text));
                let pause = self.pause;
                self.pause = (pause * 2).min(if no_peers { NO_PEERS_PAUSE_MAX } else { RETRY_PAUSE.1 });
                pause
            }
        }
    }

    async fn advance(&mut self) -> Result<(), PublishError> {
        // First of all: a record that is older than what the network has would be refused, time and again.
        let asked = if self.settled { Ok(()) } else { self.settle().await };
        if self.status.borrow().state == PublishState::Blocked {
            return asked;
        }
        if self.due.is_some() && asked.is_ok() {
            self.sign().await?;
        }
        // What was signed before is put without an answer too: where there is nobody yet, it waits for who comes.
        if self.put_pending {
            self.put().await?;
        }
        asked
    }

    /// Asks once what the network knows of the own name, before anything new is signed.
    async fn settle(&mut self) -> Result<(), PublishError> {
        let answer = self.ipfs.resolve(&self.signer.name()).await;
        match answer {
            Ok(record) => self.compare(&record).await,
            Err(IpfsError::NoRecord(_)) => (),
            Err(error) => return Err(error.into()),
        }
        self.settled = true;
        self.asked.send_replace(true);
        let blocked = self.status.borrow().state == PublishState::Blocked;
        let due = self.changed_since_signed() || self.is_past_half_its_life();
        self.due = (!blocked && due).then(Instant::now);
        Ok(())
    }

    /// An empty tree that never was anything else is not worth a record. A row without a record was only meant to become
    /// one.
    fn changed_since_signed(&self) -> bool {
        match &self.record {
            Some(own) => own.bytes.is_empty() || own.root != self.commits.root(),
            None => self.empty != self.commits.root(),
        }
    }

    /// Holds a record that the network has of our name against the one that we signed last.
    async fn compare(&mut self, theirs: &IpnsRecord) {
        if *theirs.name() != self.signer.name() || theirs.check_validity(Timestamp::now()).is_err() {
            return;
        }
        let ours = self.record.as_ref();
        let newer = ours.is_none_or(|ours| {
            theirs.sequence() > ours.sequence
                || theirs.sequence() == ours.sequence && theirs.root() != Some(ours.root)
        });
        let (Some(root), true) = (theirs.root(), newer) else { return };
        let current = self.commits.root();
        let unchanged = !self.changed_since_signed();
        // Until the first answer the tree on disk may simply be old: a restored backup, a key that moved here.
        let adoptable = unchanged && !self.settled;
        if root != current && !(adoptable && self.commits.adopt(current, root).await.is_ok()) {
            self.block(theirs.sequence(), root);
            return;
        }
        tracing::info!(sequence = theirs.sequence(), %root, "the network knows a newer record of this key: taken over");
        if let Err(error) = self.remember(own_record(theirs, root)).await {
            tracing::error!(error = %chain(&error), "cannot remember the record on disk");
        }
    }

    fn block(&mut self, sequence: u64, root: Cid) {
        self.sequence_seen = self.sequence_seen.max(sequence);
        let error = format!(
            "another writer published sequence {sequence} ({root}) with this key: nothing is published from here until \
             `shoal name publish --overwrite`; pushes are kept"
        );
        tracing::error!(ipns = %self.signer.name(), "{error}");
        self.status.send_modify(|status| {
            status.state = PublishState::Blocked;
            status.error = Some(error);
        });
    }

    async fn obey(&mut self, command: Command) {
        if command.overwrite && self.status.borrow().state == PublishState::Blocked {
            self.status.send_modify(|status| status.state = PublishState::Pending);
            self.sequence_floor = self.sequence_seen;
            self.settled = true;
        }
        if self.status.borrow().state != PublishState::Blocked {
            self.due = Some(Instant::now());
            self.step().await;
        }
        // Who asked may have gone.
        let _ = command.reply.send(());
    }

    /// Signs the root under the next sequence, which is on disk when this returns.
    async fn sign(&mut self) -> Result<(), PublishError> {
        let root = self.commits.root();
        let last = self.record.as_ref().map_or(0, |record| record.sequence);
        let highest = last.max(self.sequence_floor);
        let sequence = highest.checked_add(1).ok_or(PublishError::Exhausted { sequence: highest })?;
        let validity = SignedDuration::try_from(self.signer.record_validity).unwrap_or(SignedDuration::MAX);
        let valid_until = Timestamp::now().checked_add(validity).unwrap_or(Timestamp::MAX);
        let record = match &self.signer.key {
            SigningKey::Ours(keypair) => IpnsRecord::sign(keypair, &root, sequence, valid_until, RECORD_TTL)?,
            SigningKey::Network(name) => self.sign_there(*name, root, sequence).await?,
        };
        self.remember(own_record(&record, root)).await?;
        self.due = None;
        self.put_pending = true;
        Ok(())
    }

    /// Has the network sign. That it was asked is on disk before: a record that it made is then known as ours, whatever
    /// happens meanwhile.
    async fn sign_there(
        &mut self,
        name: IpnsName,
        root: Cid,
        sequence: u64,
    ) -> Result<IpnsRecord, PublishError> {
        self.keep(root).await?;
        self.remember(OwnRecord { sequence, root, bytes: Vec::new() }).await?;
        let validity = self.signer.record_validity;
        let signing = Signing { name, root, sequence, validity, ttl: RECORD_TTL };
        let signed = self.ipfs.sign(&signing).await;
        // It may know of a newer record than we do.
        self.settled &= signed.is_ok();
        Ok(signed?)
    }

    /// Has the root kept before the name moves there; besides it only what the name points to.
    async fn keep(&self, root: Cid) -> Result<(), IpfsError> {
        let label = self.label();
        self.ipfs.keep(&label, &root).await?;
        match self.put_root {
            Some(put) => self.ipfs.let_go(&label, &[put, root]).await,
            None => Ok(()),
        }
    }

    fn label(&self) -> String {
        format!("shoal {}", self.signer.name())
    }

    async fn remember(&mut self, record: OwnRecord) -> Result<(), StoreError> {
        let (state, name, row) = (self.state.clone(), self.signer.name(), record.clone());
        off_thread(move || state.set_own_record(&name, &row)).await?;
        self.status.send_modify(|status| status.sequence = Some(record.sequence));
        self.record = Some(record);
        Ok(())
    }

    /// Puts the signed record, and has what is new announced.
    async fn put(&mut self) -> Result<(), PublishError> {
        // One that has expired is signed anew as soon as the network could be asked.
        let in_force = self.signed().filter(|record| record.check_validity(Timestamp::now()).is_ok());
        let Some((record, root)) = in_force.zip(self.record.as_ref().map(|own| own.root)) else {
            self.put_pending = false;
            return Ok(());
        };
        self.keep(root).await?;
        self.ipfs.publish(&record).await?;
        self.put_pending = false;
        self.put_root = Some(root);
        if let Err(error) = self.ipfs.let_go(&self.label(), &[root]).await {
            tracing::debug!(%error, "what was kept of earlier roots stays until the next is published");
        }
        let (sequence, current) = (record.sequence(), self.commits.root());
        tracing::info!(ipns = %self.signer.name(), sequence, %root, "published");
        self.status.send_modify(|status| {
            status.published_at = Some(Timestamp::now());
            status.error = None;
            if root == current && status.state == PublishState::Pending {
                status.state = PublishState::Published;
            }
        });
        let roots: Vec<Cid> = std::iter::once(root).chain(self.commits.take_fresh()).collect();
        Ok(self.ipfs.provide(&roots).await?)
    }

    /// A root that is not signed yet is signed before the end, so that the next start puts it at once.
    async fn last_words(mut self) {
        let is_ours = matches!(self.signer.key, SigningKey::Ours(_));
        let may_sign = is_ours && self.settled && self.status.borrow().state != PublishState::Blocked;
        if may_sign
            && self.changed_since_signed()
            && let Err(error) = self.sign().await
        {
            tracing::warn!(error = %chain(&error), "the last root was not signed");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(
        "no record can be newer than sequence {sequence}, which somebody signed with this key: a new key is needed \
         (`shoal key gen`, then storage.ipfs.writeipnskey)"
    )]
    Exhausted { sequence: u64 },
    #[error(transparent)]
    Ipfs(#[from] IpfsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ipns(#[from] crate::ipld::ipns::IpnsError),
}
