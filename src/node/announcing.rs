//! Tells peers what we provide. A region of the keyspace at a time: one look-up of the closest peers, and then one stream to
//! each of them, over which they are told of all keys of the region.
//!
//! The message is ADD_PROVIDER of the libp2p specification "Kademlia DHT", behind its length; nobody answers it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::kad::store::RecordStore;
use libp2p::kad::{
    GetClosestPeersError, GetClosestPeersOk, GetClosestPeersResult, ProviderRecord, RecordKey,
};
use libp2p::swarm::StreamProtocol;
use libp2p::{Multiaddr, PeerId};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::event_loop::EventLoop;
use super::queries::Waiting;
use super::routing::{self, Dht};
use super::streams::{Control, OpenError};

/// Regions of a DHT that are begun in one round.
const BEGUN_PER_ROUND: usize = 4;
/// How long a peer may take to take what it is told.
const TELL_TIMEOUT: Duration = Duration::from_secs(60);
/// Addresses of ours that are told; a peer keeps no more than some.
const ADDRESSES_MAX: usize = 16;
/// Bytes of messages that are written at a time.
const WRITE_BYTES: usize = 16 * 1024;

/// A message of the DHT, as far as an announcement fills it in.
#[derive(Clone, PartialEq, Message)]
struct AddProvider {
    #[prost(enumeration = "Kind", tag = "1")]
    kind: i32,
    /// A multihash.
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "9")]
    providers: Vec<Provider>,
}

#[derive(Clone, PartialEq, Message)]
struct Provider {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    addresses: Vec<Bytes>,
    #[prost(enumeration = "Connection", tag = "3")]
    connection: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
enum Kind {
    PutValue = 0,
    AddProvider = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
enum Connection {
    NotConnected = 0,
    Connected = 1,
}

/// Keys of a DHT that were told, and to how many peers.
pub(super) struct Told {
    dht: Dht,
    keys: Vec<RecordKey>,
    peers: usize,
}

/// Why a peer was not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the stream broke off")]
    Io(#[from] std::io::Error),
    #[error("it took nothing within {} s", TELL_TIMEOUT.as_secs())]
    Timeout,
}

impl EventLoop {
    pub(super) fn provide(&mut self, roots: &[Cid]) {
        let own = *self.swarm.local_peer_id();
        for dht in Dht::BOTH {
            let mut refused = 0;
            for key in roots.iter().map(routing::provider_key) {
                if !self.providing.entry(dht).or_default().add(key.clone()) {
                    refused += 1;
                    continue;
                }
                // Who asks us is answered, and at our addresses of then.
                let record = ProviderRecord::new(key, own, Vec::new());
                if let Err(error) = self.swarm.behaviour_mut().kad(dht).store_mut().add_provider(record) {
                    tracing::error!(%error, "an own provider record is not stored");
                }
            }
            if refused > 0 {
                tracing::warn!(roots = refused, "not announced: too many roots are announced already");
            }
        }
    }

    /// What waits to be announced where there is somebody to tell, or anywhere if there is nobody.
    pub(super) fn announcements_waiting(&self) -> usize {
        let is_there = |dht: &Dht| self.peers.values().any(|peer| peer.dhts.contains(dht));
        let nobody = !Dht::BOTH.iter().any(is_there);
        let counted = self.providing.iter().filter(|(dht, _)| nobody || is_there(dht));
        counted.map(|(_, providing)| providing.waiting()).max().unwrap_or_default()
    }

    /// Begins look-ups where there is somebody to tell.
    pub(super) fn announce_some(&mut self) {
        for dht in self.dhts() {
            let providing = self.providing.entry(dht).or_default();
            for target in std::iter::from_fn(|| providing.next()).take(BEGUN_PER_ROUND) {
                let id = self.swarm.behaviour_mut().kad(dht).get_closest_peers(target.to_vec());
                self.waiting.insert((dht, id), Waiting::Region(target));
            }
        }
    }

    /// Tells those closest to `target` of all that is in its region.
    pub(super) fn on_region(&mut self, dht: Dht, target: &RecordKey, found: GetClosestPeersResult) {
        let (Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. })) = found;
        let peers: Vec<PeerId> = peers.into_iter().map(|peer| peer.peer_id).collect();
        let keys = self.providing.entry(dht).or_default().take(target, &peers, Instant::now());
        if keys.is_empty() {
            return;
        }
        let addresses = self.swarm.external_addresses().filter(|address| dht.admits(address));
        let provider = provider(self.swarm.local_peer_id(), addresses.take(ADDRESSES_MAX));
        let (control, told) = (self.control.clone(), self.told.clone());
        self.tasks.spawn_short("announce", |stop| async move {
            let announce = announce(control, dht, peers, keys, &provider, &told);
            stop.run_until_cancelled(announce).await;
        });
    }

    pub(super) fn on_told(&mut self, told: &Told) {
        let Told { dht, keys, peers } = told;
        tracing::debug!(?dht, keys = keys.len(), peers, "announced");
        self.providing.entry(*dht).or_default().told(keys, *peers);
    }
}

fn provider<'a>(own: &PeerId, addresses: impl Iterator<Item = &'a Multiaddr>) -> Provider {
    Provider {
        id: own.to_bytes().into(),
        addresses: addresses.map(|address| address.to_vec().into()).collect(),
        connection: Connection::Connected.into(),
    }
}

/// Tells peers, and the loop how that went: for as long as the loop is behind, the region stays under way.
async fn announce(
    control: Control,
    dht: Dht,
    peers: Vec<PeerId>,
    keys: Vec<RecordKey>,
    provider: &Provider,
    told: &mpsc::Sender<Told>,
) {
    let peers = tell_all(control, dht, peers, &keys, provider).await;
    // Nobody takes it when the node has ended.
    let _ = told.send(Told { dht, keys, peers }).await;
}

/// Returns how many of them took it. The look-up has left connections to them: none is dialled.
async fn tell_all(
    control: Control,
    dht: Dht,
    peers: Vec<PeerId>,
    keys: &[RecordKey],
    provider: &Provider,
) -> usize {
    let telling = peers.into_iter().map(|peer| {
        let control = &control;
        async move {
            let outcome = timeout(TELL_TIMEOUT, tell(control, dht, peer, keys, provider)).await;
            outcome
                .unwrap_or(Err(TellError::Timeout))
                .inspect_err(|error| tracing::debug!(peer.id = %peer, %error, "not told what we provide"))
        }
    });
    let outcomes: Vec<_> = telling.collect::<futures::stream::FuturesUnordered<_>>().collect().await;
    outcomes.into_iter().filter(Result::is_ok).count()
}

async fn tell(
    control: &Control,
    dht: Dht,
    peer: PeerId,
    keys: &[RecordKey],
    provider: &Provider,
) -> Result<(), TellError> {
    let (_, mut stream) = control.open(peer, vec![StreamProtocol::new(dht.protocol())]).await?;
    let mut written = Vec::with_capacity(WRITE_BYTES);
    for key in keys {
        let message = AddProvider {
            kind: Kind::AddProvider.into(),
            key: key.to_vec(),
            providers: vec![provider.clone()],
        };
        written.extend(message.encode_length_delimited_to_vec());
        if written.len() >= WRITE_BYTES {
            stream.write_all(&written).await?;
            written.clear();
        }
    }
    stream.write_all(&written).await?;
    Ok(stream.close().await?)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;
    use crate::node::providing::{Place, Providing, REGIONS_MAX};
    use crate::node::streams;

    #[tokio::test]
    async fn while_the_loop_is_behind_no_region_is_lost_and_none_is_begun() {
        const KEYS: usize = 1000;
        let (_behaviour, control) = streams::Behaviour::new(Vec::new(), mpsc::channel(1).0);
        let (told, mut telling) = mpsc::channel(1);
        let mut providing = Providing::default();
        assert!((0..KEYS).all(|n| providing.add(RecordKey::new(&n.to_be_bytes()))));
        // Peers that are not connected any more: nobody is told.
        let peers: Vec<PeerId> = std::iter::repeat_with(PeerId::random).take(1000).collect();
        let provider = provider(&peers[0], std::iter::empty());
        let mut announcing = Vec::new();
        while let Some(target) = providing.next() {
            let place = Place::of_key(&target);
            let mut closest = peers.clone();
            closest.sort_by_key(|peer| std::cmp::Reverse(place.shared_bits(&Place::of_peer(peer))));
            closest.truncate(20);
            let keys = providing.take(&target, &closest, Instant::now());
            announcing.push(announce(control.clone(), Dht::Lan, closest, keys, &provider, &told));
        }
        assert_eq!((announcing.len(), providing.under_way()), (REGIONS_MAX, REGIONS_MAX));

        let mut announcing = Box::pin(join_all(announcing));
        assert!(announcing.as_mut().now_or_never().is_none(), "they wait for the loop");
        assert!(providing.next().is_none(), "and others wait for them");
        let reading = async {
            for left in (0..REGIONS_MAX).rev() {
                let Told { keys, peers, .. } = telling.recv().await.unwrap();
                providing.told(&keys, peers);
                assert_eq!(providing.under_way(), left);
            }
        };
        futures::join!(announcing, reading);
        assert_eq!((providing.waiting(), providing.next().is_some()), (KEYS, true), "all of them wait again");
    }
}
