//! Names that were given up for the one in force: each keeps a last record, which leads there, and which is kept alive
//! like any other. Readers follow it, ours and Kubo's (specification of the IPNS record, "Value").

use jiff::Timestamp;
use libp2p::identity::Keypair;

use super::task::Task;
use super::{PublishError, RECORD_TTL, Signer, SigningKey, name_of, own_record};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::mirror::chain;
use crate::store::{FormerName, StoreError, off_thread};

/// Names that may be given up.
const FORMER_MAX: usize = 64;

/// A name that was given up.
pub(super) struct Former {
    record: IpnsRecord,
    /// Absent if its file is gone: what was signed lives until it expires.
    key: Option<Keypair>,
}

impl Former {
    /// What is on disk and usable, but for the name in force itself.
    pub(super) fn load(rows: Vec<FormerName>, signer: &Signer) -> Vec<Self> {
        let load = |row: FormerName| {
            let record = IpnsRecord::decode(&row.name, &row.record)
                .inspect_err(|error| tracing::error!(ipns = %row.name, %error, "the last record of a former name is not usable"))
                .ok()?;
            let key = signer.former.iter().find(|key| name_of(key) == row.name).cloned();
            Some(Self { record, key })
        };
        rows.into_iter().filter(|row| row.name != signer.name()).filter_map(load).collect()
    }

    pub(super) fn name(&self) -> IpnsName {
        *self.record.name()
    }

    fn row(&self) -> Option<FormerName> {
        let moved_to = self.record.leads_to()?;
        Some(FormerName { name: self.name(), moved_to, record: self.record.bytes().to_vec() })
    }
}

impl Task {
    /// Gives the own name up for that of `key`. What has to be there after a crash is on disk in this order: a record of
    /// the new name, its root, the last record of the old one. The last decides.
    pub(super) async fn rotate(&mut self, key: Keypair) -> Result<(), PublishError> {
        if self.is_blocked() {
            return Err(PublishError::Blocked);
        }
        if !self.settled {
            return Err(PublishError::Unsettled);
        }
        if self.former.len() >= FORMER_MAX {
            return Err(PublishError::TooManyFormer(FORMER_MAX));
        }
        let (old, new) = (self.signer.name(), name_of(&key));
        let SigningKey::Ours(old_key) = &self.signer.key else {
            return Err(PublishError::Elsewhere(Box::new(old)));
        };
        let old_key = old_key.clone();
        let sequence = self.record.as_ref().map_or(0, |record| record.sequence).max(self.sequence_floor);
        let sequence = sequence.checked_add(1).ok_or(PublishError::Exhausted { sequence })?;
        let pointer = IpnsRecord::sign_pointer(&old_key, &new, sequence, self.valid_until(), RECORD_TTL)?;
        let root = self.commits.root();
        let first = IpnsRecord::sign(&key, &root, 1, self.valid_until(), RECORD_TTL)?;
        let row = own_record(&first, root);
        let (state, first_row) = (self.state.clone(), row.clone());
        off_thread(move || state.set_own_record(&new, &first_row)).await?;
        self.commits.move_to(new).await.map_err(|error| PublishError::Move(Box::new(error)))?;
        self.former.push(Former { record: pointer, key: Some(*old_key) });
        if let Err(error) = self.save_former().await {
            self.former.pop();
            self.commits.move_to(old).await.map_err(|error| PublishError::Move(Box::new(error)))?;
            return Err(error.into());
        }
        self.signer.key = SigningKey::Ours(Box::new(key));
        (self.record, self.sequence_floor, self.seen_sequence) = (Some(row), 0, None);
        (self.put_pending, self.former_pending) = (true, true);
        self.resume();
        self.ipfs.follow(&new).await;
        tracing::info!(from = %old, to = %new, "the own tree has a new name, to which the old one leads");
        self.status.send_modify(|status| {
            (status.name, status.sequence) = (new, Some(1));
            status.state = super::PublishState::Pending;
            status.former.push(old);
        });
        // Older names lead to the newest one directly.
        self.renew_former().await;
        Ok(())
    }

    /// Signs anew what has lived half its life, or leads to a name that was given up too, and has all of them put again.
    pub(super) async fn renew_former(&mut self) {
        self.former_pending = !self.former.is_empty();
        let to = self.signer.name();
        let mut signed = Vec::new();
        for (at, former) in self.former.iter().enumerate() {
            let is_due = self.is_old(&former.record) || former.record.leads_to() != Some(to);
            let (true, Some(key)) = (is_due, &former.key) else { continue };
            let Some(sequence) = former.record.sequence().checked_add(1) else { continue };
            match IpnsRecord::sign_pointer(key, &to, sequence, self.valid_until(), RECORD_TTL) {
                Ok(record) => signed.push((at, record)),
                Err(error) => {
                    tracing::error!(ipns = %former.name(), %error, "a former name is not signed anew")
                }
            }
        }
        if signed.is_empty() {
            return;
        }
        for (at, record) in signed {
            self.former[at].record = record;
        }
        if let Err(error) = self.save_former().await {
            tracing::error!(error = %chain(&error), "cannot remember the records of former names on disk");
        }
    }

    async fn save_former(&self) -> Result<(), StoreError> {
        let rows: Vec<FormerName> = self.former.iter().filter_map(Former::row).collect();
        let state = self.state.clone();
        off_thread(move || state.set_former_names(&rows)).await
    }

    /// Puts the last records of former names.
    pub(super) async fn put_former(&mut self) -> Result<(), PublishError> {
        if !self.former_pending {
            return Ok(());
        }
        for former in &self.former {
            if former.record.check_validity(Timestamp::now()).is_err() {
                continue;
            }
            match self.ipfs.publish(&former.record).await {
                Err(error) if error.is_nobody_there() => return Err(error.into()),
                // Whoever has a newer one refuses it, and that is no reason to keep on.
                Err(error) => tracing::debug!(%error, "the record of a former name is not put"),
                Ok(()) => (),
            }
        }
        self.former_pending = false;
        Ok(())
    }
}
