//! The task that owns the record of the own name.

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::first_root::Known;
use super::former::Former;
use super::{
    Command, OwnStatus, PublishError, PublishState, RECORD_TTL, RETRY_PAUSE, Signer, SigningKey, own_record,
};
use crate::ipfs::{Ipfs, IpfsError, Signing};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::unixfs::encode_directory;
use crate::mirror::chain;
use crate::mirror::commit::{Commits, Fresh};
use crate::store::{OwnRecord, State, StoreError, off_thread};
use crate::tasks::jittered;

/// A new root leaves when none has followed it for this long …
const QUIET: Duration = Duration::from_millis(300);
/// … or this long after the first.
const LATEST: Duration = Duration::from_secs(3);
/// How often a record is put again.
const PUT_AGAIN_INTERVAL: Duration = Duration::from_secs(4 * 3600);
/// How often the network is asked whether somebody else publishes with our key, besides being told so.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);
/// Without a peer nothing was tried, so the next one is worth trying soon.
const NO_PEERS_PAUSE_MAX: Duration = Duration::from_secs(4);

pub(super) struct Task {
    pub(super) ipfs: Arc<dyn Ipfs>,
    pub(super) state: State,
    pub(super) signer: Signer,
    /// What was signed last, or taken over.
    pub(super) record: Option<OwnRecord>,
    /// What another writer published, while it keeps ours back.
    pub(super) rival: Option<IpnsRecord>,
    /// The names that lead to this one.
    pub(super) former: Vec<Former>,
    pub(super) commits: Commits,
    pub(super) status: watch::Sender<OwnStatus>,
    pub(super) asked: watch::Sender<bool>,
    /// The network has said what it knows of this name, or nobody can know it.
    pub(super) settled: bool,
    /// When the root is to be signed.
    pub(super) due: Option<Instant>,
    /// The signed record has not been taken by the network yet.
    pub(super) put_pending: bool,
    /// The same for the records of names that were given up.
    pub(super) former_pending: bool,
    /// The network could not be reached, or refused a record: it may know another one since.
    pub(super) unsure: bool,
    pause: Duration,
    /// The root of a tree without anything in it.
    empty: Cid,
    /// What the next sequence must exceed, after the user chose to go over that of another writer.
    pub(super) sequence_floor: u64,
    /// The highest sequence of a record of this name that was seen, whoever signed it.
    pub(super) seen_sequence: Option<u64>,
    /// What the name points to, as far as this run knows.
    put_root: Option<Cid>,
}

impl Task {
    pub(super) fn new(
        ipfs: Arc<dyn Ipfs>,
        state: State,
        signer: Signer,
        known: Known,
        commits: Commits,
    ) -> (Self, watch::Receiver<OwnStatus>, watch::Receiver<bool>) {
        let former = Former::load(known.former, &signer);
        let status = watch::Sender::new(OwnStatus {
            name: signer.name(),
            root: commits.root(),
            sequence: known.record.as_ref().map(|record| record.sequence),
            published_at: None,
            state: PublishState::Pending,
            error: None,
            rival: None,
            former: former.iter().map(Former::name).collect(),
        });
        let asked = watch::Sender::new(signer.fresh);
        let (told, answered) = (status.subscribe(), asked.subscribe());
        let mut task = Self {
            ipfs,
            state,
            settled: signer.fresh,
            signer,
            record: known.record,
            rival: None,
            former_pending: !former.is_empty(),
            former,
            commits,
            status,
            asked,
            due: None,
            put_pending: true,
            unsure: false,
            empty: *encode_directory(Vec::new()).cid(),
            pause: RETRY_PAUSE.0,
            sequence_floor: 0,
            seen_sequence: None,
            put_root: None,
        };
        task.seen_sequence = task.signed().map(|record| record.sequence());
        task.due = task.changed_since_signed().then(Instant::now);
        if let Some(rival) = &known.rival {
            task.recall(rival);
        }
        (task, told, answered)
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut updates: broadcast::Receiver<IpnsRecord>,
        stop: CancellationToken,
    ) {
        let mut committed = self.commits.watch();
        // The start itself is the first occasion.
        let mut put_again = Box::pin(tokio::time::sleep(jittered(PUT_AGAIN_INTERVAL)));
        let mut checking = self.check();
        let mut retry = Instant::now();
        let mut first_change = None;
        loop {
            let work = !self.is_blocked() && (self.due.is_some() || self.put_pending || !self.settled);
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
                    self.hear(&record).await;
                },
                answer = &mut checking => {
                    if let Ok(record) = answer { self.hear(&record).await }
                    checking = self.check();
                }
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    // It is large, and seldom.
                    Box::pin(self.obey(command)).await;
                }
                () = &mut put_again => {
                    self.renew().await;
                    put_again.as_mut().reset(Instant::now() + jittered(PUT_AGAIN_INTERVAL));
                }
                () = tokio::time::sleep_until(at), if work || self.former_pending => {
                    first_change = None;
                    retry = Instant::now() + self.step().await;
                }
            }
        }
        self.last_words().await;
    }

    /// Asks the network, apart from the rest, what it knows of the own name; after a while.
    fn check(&self) -> BoxFuture<'static, Result<IpnsRecord, IpfsError>> {
        let (ipfs, name) = (self.ipfs.clone(), self.signer.name());
        async move {
            tokio::time::sleep(jittered(CHECK_INTERVAL)).await;
            ipfs.resolve(&name).await
        }
        .boxed()
    }

    /// What cannot be decided now is asked for again.
    async fn hear(&mut self, record: &IpnsRecord) {
        if let Err(error) = self.compare(record).await {
            tracing::debug!(error = %chain(&error), "a record of the own name is not compared yet");
        }
    }

    /// Has the record put again; one that has lived half its life is signed anew.
    async fn renew(&mut self) {
        self.put_pending = true;
        if self.is_past_half_its_life() && !self.is_blocked() {
            self.due.get_or_insert_with(Instant::now);
        }
        self.renew_former().await;
    }

    pub(super) fn is_past_half_its_life(&self) -> bool {
        self.signed().is_some_and(|record| self.is_old(&record))
    }

    pub(super) fn is_old(&self, record: &IpnsRecord) -> bool {
        let left = record.valid_until().duration_since(Timestamp::now());
        left < SignedDuration::try_from(self.signer.record_validity / 2).unwrap_or(SignedDuration::MAX)
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
                self.unsure |= matches!(error, PublishError::Ipfs(_));
                let text = chain(&error);
                tracing::debug!(error = %text, "not published yet");
                // Pushes wait for an answer, not for a network.
                self.asked.send_replace(true);
                if !self.is_blocked() {
                    self.status.send_modify(|status| status.error = Some(text));
                }
                let pause = self.pause;
                self.pause = (pause * 2).min(if no_peers { NO_PEERS_PAUSE_MAX } else { RETRY_PAUSE.1 });
                pause
            }
        }
    }

    async fn advance(&mut self) -> Result<(), PublishError> {
        if self.is_blocked() {
            return self.put_former().await;
        }
        // First of all: a record that is older than what the network has would be refused, time and again.
        let asked = match (self.settled, self.unsure) {
            (false, _) => self.settle().await,
            (true, true) => self.ask_again().await,
            (true, false) => Ok(()),
        };
        if self.is_blocked() {
            return asked;
        }
        if self.due.is_some() && asked.is_ok() {
            self.sign().await?;
        }
        // What was signed before is put without an answer too: where there is nobody yet, it waits for who comes.
        if self.put_pending {
            self.put().await?;
        }
        self.put_former().await?;
        asked
    }

    /// An empty tree that never was anything else is not worth a record. A row without a record was only meant to become
    /// one.
    pub(super) fn changed_since_signed(&self) -> bool {
        match &self.record {
            Some(own) => own.bytes.is_empty() || own.root != self.commits.root(),
            None => self.empty != self.commits.root(),
        }
    }

    async fn obey(&mut self, command: Command) {
        // Who asked may have gone.
        match command {
            Command::Publish(reply) => {
                self.publish_at_once().await;
                let _ = reply.send(());
            }
            Command::Overwrite(reply) => {
                self.overrule();
                self.publish_at_once().await;
                let _ = reply.send(());
            }
            Command::Adopted(record, reply) => {
                let outcome = self.on_adopted(&record).await;
                self.step().await;
                if let Err(error) = outcome {
                    tracing::error!(error = %chain(&error), "the adopted tree is not published");
                }
                let _ = reply.send(());
            }
            Command::Rotate(key, reply) => {
                let rotated = self.rotate(*key).await;
                if rotated.is_ok() {
                    self.step().await;
                }
                let _ = reply.send(rotated);
            }
        }
    }

    async fn publish_at_once(&mut self) {
        if !self.is_blocked() {
            self.due = Some(Instant::now());
            self.step().await;
        }
    }

    /// Signs the root under the next sequence, which is on disk when this returns.
    async fn sign(&mut self) -> Result<(), PublishError> {
        let root = self.commits.root();
        let last = self.record.as_ref().map_or(0, |record| record.sequence);
        let highest = last.max(self.sequence_floor);
        let sequence = highest.checked_add(1).ok_or(PublishError::Exhausted { sequence: highest })?;
        let valid_until = self.valid_until();
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
        let seen = self.seen_sequence;
        let signing = Signing { name, root, sequence, seen, validity, ttl: RECORD_TTL };
        let signed = self.ipfs.sign(&signing).await;
        // It may know of a newer record than we do.
        self.settled &= signed.is_ok();
        let record = signed?;
        self.seen_sequence = seen.max(Some(record.sequence()));
        Ok(record)
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

    /// Of a record that is signed now.
    pub(super) fn valid_until(&self) -> Timestamp {
        let validity = SignedDuration::try_from(self.signer.record_validity).unwrap_or(SignedDuration::MAX);
        Timestamp::now().checked_add(validity).unwrap_or(Timestamp::MAX)
    }

    pub(super) async fn remember(&mut self, record: OwnRecord) -> Result<(), StoreError> {
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
        if let Err(error) = self.ipfs.publish(&record).await {
            // Whoever knows its CID finds the root all the same; that this failed too is told of with the next try.
            let _ = self.ipfs.provide(&[root]).await;
            return Err(error.into());
        }
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
                (status.root, status.state) = (root, PublishState::Published);
            }
        });
        let Fresh { mut roots, digests } = self.commits.take_fresh();
        roots.push(root);
        self.ipfs.provide(&roots).await?;
        self.ipfs.provide_digests(&digests).await?;
        tracing::debug!(roots = roots.len(), digests = digests.len(), "new blobs are announced");
        Ok(())
    }

    /// A root that is not signed yet is signed before the end, so that the next start puts it at once.
    async fn last_words(mut self) {
        let is_ours = matches!(self.signer.key, SigningKey::Ours(_));
        let may_sign = is_ours && self.settled && !self.is_blocked();
        if may_sign
            && self.changed_since_signed()
            && let Err(error) = self.sign().await
        {
            tracing::warn!(error = %chain(&error), "the last root was not signed");
        }
    }
}
