//! The queries of the two DHTs, paired with who waits for them; and what peers ask us to store.

use std::collections::HashSet;
use std::time::Instant;

use jiff::Timestamp;
use libp2p::PeerId;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{self, InboundRequest, QueryId, QueryResult, Quorum};
use tokio::sync::mpsc;

use super::behaviour::RECORDS_MAX;
use super::bitswap::FindProviders;
use super::event_loop::EventLoop;
use super::routing::{self, Dht};
use crate::ipld::ipns::IpnsRecord;

/// Announcements begun in one round; each is a lookup in both DHTs.
const ANNOUNCED_PER_ROUND: usize = 8;
/// Announcements under way at once.
const ANNOUNCING_MAX: usize = 32;
/// Connected peers that a record is put to directly, besides those closest to its key.
const PUT_DIRECTLY_MAX: usize = 64;
/// Providers that one search dials.
const PROVIDERS_MAX: usize = 20;
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
    Put(mpsc::Sender<PeerId>),
    Providers { reply: mpsc::Sender<PeerId>, found: usize },
    Announcement,
    Nobody,
}

impl Waiting {
    /// Whether who waited has gone.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Record(reply) => reply.is_closed(),
            Self::Providers { reply, .. } => reply.is_closed(),
            // A record on its way is put also when nobody waits for it any more.
            Self::Put(_) | Self::Announcement | Self::Nobody => false,
        }
    }
}

impl EventLoop {
    /// Stores a record here, puts it to those closest to its key, and to whom we are connected: a reader that follows the
    /// name learns of it at once.
    pub(super) fn put_record(&mut self, record: &IpnsRecord, reply: &mpsc::Sender<PeerId>) {
        let now = Timestamp::now();
        for dht in Dht::BOTH {
            let kad = self.swarm.behaviour_mut().kad(dht);
            if let Err(error) = routing::store(kad.store_mut(), record, now) {
                tracing::debug!(ipns = %record.name(), %error, "own record not stored here");
            }
        }
        let put = routing::dht_record(record, now);
        let connected: Vec<PeerId> = self.peers.keys().copied().take(PUT_DIRECTLY_MAX).collect();
        for (dht, peers) in self.by_dht(connected.into_iter()) {
            let kad = self.swarm.behaviour_mut().kad(dht);
            let id = kad.put_record_to(put.clone(), peers.into_iter(), Quorum::All);
            self.waiting.insert((dht, id), Waiting::Put(reply.clone()));
            let kad = self.swarm.behaviour_mut().kad(dht);
            match kad.put_record(put.clone(), Quorum::All) {
                Ok(id) => {
                    self.waiting.insert((dht, id), Waiting::Put(reply.clone()));
                }
                Err(error) => tracing::debug!(ipns = %record.name(), %error, "record not put"),
            }
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
            self.waiting.insert((dht, id), Waiting::Providers { reply: search.reply.clone(), found: 0 });
        }
    }

    pub(super) fn announce_some(&mut self) {
        let running =
            self.waiting.values().filter(|waiting| matches!(waiting, Waiting::Announcement)).count();
        let dhts: HashSet<Dht> = self.peers.values().flat_map(|peer| peer.dhts.iter().copied()).collect();
        if dhts.is_empty() || running >= ANNOUNCING_MAX {
            return;
        }
        for _ in 0..ANNOUNCED_PER_ROUND {
            let Some(key) = self.providing.next(Instant::now()) else { return };
            for dht in &dhts {
                match self.swarm.behaviour_mut().kad(*dht).start_providing(key.clone()) {
                    Ok(id) => {
                        self.waiting.insert((*dht, id), Waiting::Announcement);
                    }
                    Err(error) => tracing::debug!(%error, "root not announced"),
                }
            }
        }
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
                let kad = self.swarm.behaviour_mut().kad(dht);
                if let Err(error) = kad.store_mut().add_provider(record) {
                    tracing::debug!(%error, "provider not stored");
                }
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
            (Waiting::Put(reply), QueryResult::PutRecord(outcome)) => {
                let stored = match outcome {
                    Ok(_) => None,
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
            (
                Waiting::Providers { reply, found },
                QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
            ) => {
                let own = *self.swarm.local_peer_id();
                let fresh = providers
                    .into_iter()
                    .filter(|peer| *peer != own)
                    .take(PROVIDERS_MAX.saturating_sub(*found));
                let fresh: Vec<PeerId> = fresh.collect();
                *found += fresh.len();
                for peer in &fresh {
                    let _ = reply.try_send(*peer);
                }
                for peer in fresh {
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
            let room = followed
                || records.get(&put.key).is_some()
                || records.records().count() < RECORDS_MAX - RECORDS_RESERVED;
            if !room {
                return Err(routing::Refused::Full);
            }
            routing::store(records, &record, now)?;
            Ok((record, followed))
        });
        match outcome {
            // Nobody may be listening for updates.
            Ok((record, true)) => drop(self.updates.send(record)),
            Ok((_, false)) => (),
            Err(error) => tracing::debug!(peer.id = %source, %error, "record of a peer refused"),
        }
    }
}
