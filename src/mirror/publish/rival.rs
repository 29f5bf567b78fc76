//! Another writer with the same key: how it is noticed, and what keeps publishing back until somebody decides.

use std::time::Duration;

use cid::Cid;
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::task::Task;
use super::{IpnsRecord, PublishError, PublishState, own_record};
use crate::dag::DagError;
use crate::ipfs::IpfsError;
use crate::mirror::chain;
use crate::store::{StoreError, off_thread};

/// Nodes of directories that a tree may have beyond those of the own one to be taken over at a start.
const NODES_MAX: usize = 100_000;
/// How long fetching them may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

impl Task {
    /// Asks once what the network knows of the own name, before anything new is signed.
    pub(super) async fn settle(&mut self) -> Result<(), PublishError> {
        let answer = self.ipfs.resolve(&self.signer.name()).await;
        match answer {
            Ok(record) => self.compare(&record).await?,
            Err(IpfsError::NoRecord(_)) => (),
            Err(error) => return Err(error.into()),
        }
        (self.settled, self.unsure) = (true, false);
        self.asked.send_replace(true);
        self.resume();
        Ok(())
    }

    /// Asks before something is put to a network that could not be reached, or refused a record. Without an answer it is put
    /// all the same: where there is nobody, it waits for who comes.
    pub(super) async fn ask_again(&mut self) -> Result<(), PublishError> {
        match self.ipfs.resolve(&self.signer.name()).await {
            Ok(record) => self.compare(&record).await?,
            Err(IpfsError::NoRecord(_)) => (),
            Err(_) => return Ok(()),
        }
        self.unsure = false;
        Ok(())
    }

    /// Has signed what there is to be signed, unless another writer is in the way.
    pub(super) fn resume(&mut self) {
        let due = self.changed_since_signed() || self.is_past_half_its_life();
        self.due = (!self.is_blocked() && due).then(Instant::now);
    }

    /// Whether somebody else signed `theirs`, and the network prefers it to ours, or may: each of our sequences is on disk
    /// with its value before it leaves.
    fn is_rival(&self, theirs: &IpnsRecord) -> bool {
        self.record.as_ref().is_none_or(|ours| {
            theirs.sequence() > ours.sequence
                || theirs.sequence() == ours.sequence && theirs.root() != Some(ours.root)
        })
    }

    /// The rival that is on disk from a run before, unless it was settled.
    pub(super) fn recall(&mut self, bytes: &[u8]) {
        match IpnsRecord::decode(&self.signer.name(), bytes) {
            Ok(record) => {
                self.seen_sequence = self.seen_sequence.max(Some(record.sequence()));
                // Expired or not: its tree may hold what ours does not.
                if self.is_rival(&record) {
                    self.block(record);
                }
            }
            Err(error) => tracing::error!(%error, "the record of another writer on disk is not usable"),
        }
    }

    /// Holds a record that the network has of our name against the one that we signed last. An error: it cannot be said
    /// yet whether the tree in it may be taken over.
    pub(super) async fn compare(&mut self, theirs: &IpnsRecord) -> Result<(), PublishError> {
        let is_of_us = *theirs.name() == self.signer.name();
        if !is_of_us || theirs.check_validity(Timestamp::now()).is_err() {
            return Ok(());
        }
        self.seen_sequence = self.seen_sequence.max(Some(theirs.sequence()));
        if !self.is_rival(theirs) {
            return Ok(());
        }
        let current = self.commits.root();
        // Until the first answer the tree on disk may simply be old: a restored backup, a key that moved here.
        let may_follow = !self.settled && !self.is_blocked() && !self.changed_since_signed();
        let taken = match theirs.root() {
            Some(root) if root == current => true,
            Some(root) if may_follow => {
                self.covers(root, current).await? && self.commits.adopt(current, root).await.is_ok()
            }
            _ => false,
        };
        if taken {
            return Ok(self.take_over(theirs).await?);
        }
        let known = self.rival.as_ref();
        if known.is_none_or(|known| theirs.is_better_than(known)) {
            self.remember_rival(theirs).await;
            self.block(theirs.clone());
        }
        Ok(())
    }

    /// Whether the tree `theirs` has something at every path of `ours`, so that nothing goes with ours.
    async fn covers(&self, theirs: Cid, ours: Cid) -> Result<bool, PublishError> {
        let tree = self.commits.tree();
        let fetched = tree.fetch_directories(Some(&ours), &theirs, NODES_MAX);
        let covers = async {
            match fetched.await? {
                true => Ok::<_, DagError>(tree.additions(&theirs, &ours).await?.edits.is_empty()),
                false => Ok(false),
            }
        };
        match timeout(FETCH_TIMEOUT, covers).await {
            Ok(Ok(covers)) => Ok(covers),
            Ok(Err(error)) if error.is_fetch() => Err(PublishError::Unread(Box::new(error))),
            Ok(Err(error)) => {
                tracing::warn!(root = %theirs, error = %chain(&error), "the tree of a newer record is not usable");
                Ok(false)
            }
            Err(_) => Err(PublishError::Unread(Box::new(DagError::Cancelled("it took too long")))),
        }
    }

    /// Goes on from a record with the tree that is ours by now.
    async fn take_over(&mut self, theirs: &IpnsRecord) -> Result<(), StoreError> {
        let root = self.commits.root();
        self.remember(own_record(theirs, root)).await?;
        tracing::info!(sequence = theirs.sequence(), %root, "the network knows a newer record of this key: taken over");
        self.unblock();
        self.put_pending = true;
        Ok(())
    }

    async fn remember_rival(&self, theirs: &IpnsRecord) {
        let (state, name, bytes) = (self.state.clone(), self.signer.name(), theirs.bytes().clone());
        if let Err(error) = off_thread(move || state.set_rival(&name, &bytes)).await {
            tracing::error!(error = %chain(&error), "cannot remember the record of another writer on disk");
        }
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.rival.is_some()
    }

    fn block(&mut self, theirs: IpnsRecord) {
        let (sequence, value) = (theirs.sequence(), theirs.value());
        let error = match theirs.leads_to() {
            Some(to) => format!(
                "this name was given up for {to} by another daemon with the same key (sequence {sequence}): nothing is \
                 published from here until `shoal name overwrite`, or writeipnskey is another key; pushes are kept"
            ),
            None => format!(
                "another writer published sequence {sequence} ({value}) with this key: nothing is published from here \
                 until `shoal name adopt`, which merges its tree into ours, or `shoal name overwrite`; pushes are kept"
            ),
        };
        // Once: what that writer publishes next changes nothing.
        match self.rival.is_none() {
            true => tracing::error!(ipns = %self.signer.name(), "{error}"),
            false => {
                tracing::debug!(ipns = %self.signer.name(), sequence, "the other writer published again")
            }
        }
        // Pushes wait for an answer, and this is one.
        self.asked.send_replace(true);
        self.due = None;
        self.status.send_modify(|status| {
            status.state = PublishState::Blocked;
            status.error = Some(error);
            status.rival = Some(theirs.clone());
        });
        self.rival = Some(theirs);
    }

    fn unblock(&mut self) {
        self.rival = None;
        self.status.send_modify(|status| {
            status.state = PublishState::Pending;
            status.error = None;
            status.rival = None;
        });
    }

    /// The next record goes over that of the other writer, who is not in the way any more. On disk it is until that record
    /// is signed.
    pub(super) fn overrule(&mut self) {
        if let Some(rival) = &self.rival {
            self.sequence_floor = self.sequence_floor.max(rival.sequence());
            self.settled = true;
            self.unblock();
        }
    }

    /// The own tree has all that is in that of `adopted`.
    pub(super) async fn on_adopted(&mut self, adopted: &IpnsRecord) -> Result<(), PublishError> {
        if self.rival.as_ref().is_some_and(|rival| rival.is_better_than(adopted)) {
            return Ok(());
        }
        let is_theirs = adopted.root() == Some(self.commits.root());
        if is_theirs && adopted.check_validity(Timestamp::now()).is_ok() {
            self.settled = true;
            self.take_over(adopted).await?;
            self.resume();
        } else {
            self.overrule();
            // Also if nothing came of it: a newer record than theirs is wanted.
            self.due = Some(Instant::now());
        }
        Ok(())
    }
}
