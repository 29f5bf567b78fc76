//! The queries of the two DHTs, paired with who waits for them; and what peers ask us to store.

use std::collections::HashSet;
use std::time::Instant;

use cid::Cid;
use jiff::Timestamp;
use libp2p::PeerId;
use libp2p::kad::store::{MemoryStore, RecordStore};
use libp2p::kad::{self, InboundRequest, QueryId, QueryResult, Quorum, RecordKey};
use tokio::sync::mpsc;

use super::behaviour::RECORDS_MAX;
use super::bitswap::FindProviders;
use super::event_loop::EventLoop;
use super::providers::{self, Gone, Room};
use super::routing::{self, Dht};
use crate::ipld::ipns::IpnsRecord;

/// Connected peers that a record is put to directly, besides those closest to its key.
const PUT_DIRECTLY_MAX: usize = 64;
/// Providers that one search dials.
const PROVIDERS_MAX: usize = 20;
/// Peers on a topic that one search dials.
const COMPANY_MAX: usize = 8;
/// Newer records under way to one peer in answer to its older ones.
const CORRECTIONS_PER_PEER_MAX: usize = 8;
/// Room that inbound records leave for those we publish or follow.
const RECORDS_RESERVED: usize = 256;

/// What a lookup of a record yields; the channel closes when both DHTs are through.
pub(super) enum Answer {
    Record { value: Vec<u8>, from: Option<PeerId> },
    Finished { answered: usize },
}

/// Who waits for a query.
pub(super) enum Waiting {
    Record(mpsc::Sender<Answer>),
    /// `to`: the one peer that it is put to; else those closest to its key.
    Put {
        reply: mpsc::Sender<PeerId>,
        to: Option<PeerId>,
    },
    /// A newer record for a peer that put an older one.
    Correction(PeerId),
    Providers {
        root: Cid,
        reply: mpsc::Sender<PeerId>,
        found: usize,
    },
    /// The peers closest to this key, which waits to be announced.
    Region(RecordKey),
    /// Others on a topic of ours, whom we then dial.
    Company {
        found: usize,
    },
    Nobody,
}

impl Waiting {
    /// Whether who waited has gone.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Record(reply) => reply.is_closed(),
            Self::Providers { reply, .. } => reply.is_closed(),
            // A record on its way is put also when nobody waits for it any more.
            Self::Put { .. }
            | Self::Correction(_)
            | Self::Region(_)
            | Self::Company { .. }
            | Self::Nobody => false,
        }
    }
}

impl EventLoop {
    /// Stores a record here, puts it to those closest to its key, and to whom we are connected: a reader that follows the
    /// name learns of it at once.
    pub(super) fn put_record(&mut self, record: &IpnsRecord, reply: &mpsc::Sender<PeerId>) {
        let now = Timestamp::now();
        for dht in Dht::BOTH {
            match routing::store(self.swarm.behaviour_mut().kad(dht).store_mut(), record, now) {
                Ok(_) => (),
                Err(error @ routing::Refused::Older) => {
                    // Nobody who has the newer one would take it, and here it would be overwritten.
                    tracing::debug!(ipns = %record.name(), %error, "record not put");
                    return;
                }
                Err(error) => tracing::debug!(ipns = %record.name(), %error, "record not stored here"),
            }
        }
        let told = self.say_again(record);
        let put = routing::dht_record(record, now);
        let connected: Vec<PeerId> = self.peers.keys().copied().take(PUT_DIRECTLY_MAX).collect();
        let by_dht = self.by_dht(connected.into_iter());
        if let (true, Some(peer)) = (by_dht.is_empty(), told) {
            // Who published may have gone.
            let _ = reply.try_send(peer);
        }
        for (dht, peers) in by_dht {
            let kad = self.swarm.behaviour_mut().kad(dht);
            // A query for each, so that the answer of one is known before that of the slowest.
            for peer in peers {
                let id = kad.put_record_to(put.clone(), std::iter::once(peer), Quorum::One);
                self.waiting.insert((dht, id), Waiting::Put { reply: reply.clone(), to: Some(peer) });
            }
            match kad.put_record(put.clone(), Quorum::All) {
                Ok(id) => {
                    self.waiting.insert((dht, id), Waiting::Put { reply: reply.clone(), to: None });
                }
                Err(error) => tracing::debug!(ipns = %record.name(), %error, "record not put"),
            }
        }
    }

    /// Gives the best record to peers that had an older one; and keeps it if its name is followed, since others learn of
    /// it from us when its author is gone.
    pub(super) fn on_found(&mut self, record: &IpnsRecord, behind: Vec<PeerId>) {
        let now = Timestamp::now();
        if self.followed.contains(record.name()) {
            for dht in Dht::BOTH {
                let records = self.swarm.behaviour_mut().kad(dht).store_mut();
                if let Err(error) = routing::store(records, record, now) {
                    tracing::debug!(ipns = %record.name(), %error, "record not stored here");
                }
            }
            self.spread(record);
        }
        let put = routing::dht_record(record, now);
        for (dht, peers) in self.by_dht(behind.into_iter()) {
            let kad = self.swarm.behaviour_mut().kad(dht);
            let id = kad.put_record_to(put.clone(), peers.into_iter(), Quorum::All);
            self.waiting.insert((dht, id), Waiting::Nobody);
        }
    }

    /// Those of the peers that take part in each DHT; a DHT without any is left out.
    pub(super) fn by_dht(&self, peers: impl Iterator<Item = PeerId>) -> Vec<(Dht, Vec<PeerId>)> {
        let peers: Vec<PeerId> = peers.collect();
        let takes_part =
            |dht| move |peer: &&PeerId| self.peers.get(peer).is_some_and(|known| known.dhts.contains(&dht));
        let split =
            Dht::BOTH.map(|dht| (dht, peers.iter().filter(takes_part(dht)).copied().collect::<Vec<_>>()));
        split.into_iter().filter(|(_, peers)| !peers.is_empty()).collect()
    }

    pub(super) fn find_providers(&mut self, search: FindProviders) {
        for dht in Dht::BOTH {
            let id = self.swarm.behaviour_mut().kad(dht).get_providers(routing::provider_key(&search.root));
            let waiting = Waiting::Providers { root: search.root, reply: search.reply.clone(), found: 0 };
            self.waiting.insert((dht, id), waiting);
        }
    }

    /// The DHTs that somebody who is connected takes part in.
    pub(super) fn dhts(&self) -> HashSet<Dht> {
        self.peers.values().flat_map(|peer| peer.dhts.iter().copied()).collect()
    }

    pub(super) fn on_kad(&mut self, dht: Dht, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, stats, step } => {
                self.on_progress(dht, id, result, stats.num_successes());
                if step.last {
                    self.waiting.remove(&(dht, id));
                }
            }
            kad::Event::InboundRequest {
                request: InboundRequest::PutRecord { source, record: Some(record), .. },
            } => {
                self.on_put(dht, source, &record);
            }
            kad::Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                self.on_add_provider(dht, record);
            }
            _ => (),
        }
    }

    fn on_progress(&mut self, dht: Dht, id: QueryId, result: QueryResult, answered: u32) {
        let Some(waiting) = self.waiting.get_mut(&(dht, id)) else { return };
        match (waiting, result) {
            (Waiting::Record(reply), QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(found)))) => {
                // A full channel has more than enough to choose from.
                let _ = reply.try_send(Answer::Record { value: found.record.value, from: found.peer });
            }
            (Waiting::Record(reply), QueryResult::GetRecord(_)) => {
                let _ = reply
                    .try_send(Answer::Finished { answered: usize::try_from(answered).unwrap_or(usize::MAX) });
            }
            (Waiting::Put { reply, to }, QueryResult::PutRecord(outcome)) => {
                let stored = match outcome {
                    Ok(_) => to.map(|peer| vec![peer]),
                    Err(
                        kad::PutRecordError::QuorumFailed { success, .. }
                        | kad::PutRecordError::Timeout { success, .. },
                    ) => Some(success),
                };
                // A met quorum does not name the peers: any one stands for them.
                for peer in stored.unwrap_or_else(|| self.peers.keys().copied().take(1).collect()) {
                    let _ = reply.try_send(peer);
                }
            }
            (Waiting::Region(target), QueryResult::GetClosestPeers(found)) => {
                let target = target.clone();
                self.on_region(dht, &target, found);
            }
            (
                Waiting::Providers { root, reply, found },
                QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
            ) => {
                let (own, root) = (*self.swarm.local_peer_id(), *root);
                let fresh = first_of(providers, own, PROVIDERS_MAX, found);
                for peer in &fresh {
                    let _ = reply.try_send(*peer);
                }
                for peer in fresh {
                    self.dial_provider(root, peer, Vec::new());
                }
            }
            (
                Waiting::Company { found },
                QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
            ) => {
                let own = *self.swarm.local_peer_id();
                for peer in first_of(providers, own, COMPANY_MAX, found) {
                    self.dial(peer, Vec::new());
                }
            }
            _ => (),
        }
    }

    /// A record that a peer wants stored. Nothing that is invalid or older gets past here.
    fn on_put(&mut self, dht: Dht, source: PeerId, put: &kad::Record) {
        let now = Timestamp::now();
        let outcome = routing::check(&put.key, &put.value, now).and_then(|record| {
            let records = self.swarm.behaviour_mut().kad(dht).store_mut();
            let followed = self.followed.contains(record.name());
            if !followed && !has_room(records, &put.key) {
                return Err(routing::Refused::Full);
            }
            routing::store(records, &record, now)?;
            Ok((record, followed))
        });
        match outcome {
            Ok((record, true)) => {
                self.spread(&record);
                // Nobody may be listening for updates.
                let _ = self.updates.send(record);
            }
            Ok((_, false)) => (),
            Err(error) => {
                tracing::debug!(peer.id = %source, %error, "record of a peer refused");
                if matches!(error, routing::Refused::Older) {
                    self.correct(dht, source, &put.key);
                }
            }
        }
    }

    /// Gives our newer record to a peer that put an older one: it may be another writer with the same key, who would not
    /// learn of it otherwise, since a refusal is not told.
    fn correct(&mut self, dht: Dht, peer: PeerId, key: &RecordKey) {
        let under_way =
            self.waiting.values().filter(|waiting| matches!(waiting, Waiting::Correction(to) if *to == peer));
        if under_way.count() >= CORRECTIONS_PER_PEER_MAX {
            return;
        }
        let kad = self.swarm.behaviour_mut().kad(dht);
        let Some(newer) = kad.store_mut().get(key).map(|record| record.into_owned()) else { return };
        let id = kad.put_record_to(newer, std::iter::once(peer), Quorum::One);
        self.waiting.insert((dht, id), Waiting::Correction(peer));
    }

    /// A provider record that a peer wants kept: of itself, the protocol sees to that.
    fn on_add_provider(&mut self, dht: Dht, mut record: kad::ProviderRecord) {
        let expires = record.expires.unwrap_or_else(Instant::now);
        match self.providers.admit(dht, &record, expires) {
            Room::Free => (),
            Room::InPlaceOf(gone) => self.forget_provider(&gone),
            Room::None => {
                tracing::debug!(peer.id = %record.provider, "provider record refused: there are too many");
                return;
            }
        }
        providers::trim(&mut record);
        if let Err(error) = self.swarm.behaviour_mut().kad(dht).store_mut().add_provider(record) {
            tracing::debug!(%error, "provider record not stored");
        }
    }

    fn forget_provider(&mut self, gone: &Gone) {
        self.swarm.behaviour_mut().kad(gone.dht).store_mut().remove_provider(&gone.key, &gone.provider);
    }

    /// Drops provider records that have expired.
    pub(super) fn expire_providers(&mut self) {
        for gone in self.providers.expire(Instant::now()) {
            self.forget_provider(&gone);
        }
    }
}

/// Providers other than ourselves, so many that `found` stays within `max`.
fn first_of(providers: HashSet<PeerId>, own: PeerId, max: usize, found: &mut usize) -> Vec<PeerId> {
    let others = providers.into_iter().filter(|peer| *peer != own);
    let fresh: Vec<PeerId> = others.take(max.saturating_sub(*found)).collect();
    *found += fresh.len();
    fresh
}

/// Whether a record of a stranger may be stored under `key`. When there is no room, those that expired make it.
fn has_room(records: &mut MemoryStore, key: &RecordKey) -> bool {
    let is_free = |records: &MemoryStore| records.records().count() < RECORDS_MAX - RECORDS_RESERVED;
    if records.get(key).is_some() || is_free(records) {
        return true;
    }
    let now = Instant::now();
    records.retain(|_, record| !record.is_expired(now));
    is_free(records)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::kad::store::MemoryStoreConfig;

    use super::*;

    fn full_of(expires: Instant) -> MemoryStore {
        let config = MemoryStoreConfig { max_records: RECORDS_MAX, ..MemoryStoreConfig::default() };
        let mut records = MemoryStore::with_config(PeerId::random(), config);
        for n in 0..RECORDS_MAX - RECORDS_RESERVED {
            let mut record = kad::Record::new(n.to_be_bytes().to_vec(), Vec::new());
            record.expires = Some(expires);
            records.put(record).unwrap();
        }
        records
    }

    #[test]
    fn strangers_leave_room_for_what_is_followed() {
        let mut records = full_of(Instant::now() + Duration::from_secs(60));
        assert!(!has_room(&mut records, &RecordKey::new(b"new")));
        assert!(
            has_room(&mut records, &RecordKey::new(&0_usize.to_be_bytes())),
            "one that is there is replaced"
        );
        records.put(kad::Record::new(b"followed".to_vec(), Vec::new())).unwrap();
    }

    #[test]
    fn what_expired_makes_room() {
        let mut records = full_of(Instant::now());
        assert!(has_room(&mut records, &RecordKey::new(b"new")));
        assert_eq!(records.records().count(), 0);
    }
}
