//! The connections of each peer, as those see them who open streams: a direct one goes before one through a relay.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, ping};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::streams::OpenRequest;

/// How long a connection through a relay carries no stream of ours, in the hope of a direct one.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A transfer is one that moves so many bytes in so long.
const TRANSFER_STEP_BYTES: u64 = 64 * 1024;
const TRANSFER_STEP_TIMEOUT: Duration = Duration::from_secs(15);

/// The connections of each peer. Entries come and go with the swarm's events, which are paired.
#[derive(Clone, Default)]
pub(super) struct Peers {
    connections: Arc<Mutex<HashMap<PeerId, Vec<Connection>>>>,
    /// A connection was made, or ended.
    changed: Arc<Notify>,
}

pub(super) struct Connection {
    pub(super) id: ConnectionId,
    /// Since when it goes through a relay; `None`: it is direct.
    pub(super) relayed_since: Option<Instant>,
    pub(super) requests: mpsc::Sender<OpenRequest>,
    pub(super) usage: Usage,
}

/// Why a connection is of use, whatever its streams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The peer is one of those that are to be connected.
    Wanted = 1,
    /// Bitswap waits for it, or owes it something.
    Exchange = 2,
    /// It is a relay for us, or we are one for it.
    Relay = 4,
    /// It is in our gossip mesh.
    Gossip = 8,
    /// It is among the closest to us in a routing table.
    Near = 16,
}

/// For these reasons a connection stays also when it is idle.
const KEEPING: u8 = Reason::Wanted as u8 | Reason::Exchange as u8;

/// What a connection is for. Its handler and its streams share it.
#[derive(Clone, Debug)]
pub(super) struct Usage(Arc<Uses>);

#[derive(Debug)]
struct Uses {
    since: Instant,
    reasons: AtomicU8,
    /// Bytes of transfers so far.
    moved: AtomicU64,
    /// When it was last used, and when a transfer last had moved on, in milliseconds after `since`.
    used_ms: AtomicU64,
    moved_ms: AtomicU64,
}

impl Usage {
    pub(super) fn new(since: Instant) -> Self {
        let [moved, used_ms, moved_ms] = [(); 3].map(|()| AtomicU64::new(0));
        Self(Arc::new(Uses { since, reasons: AtomicU8::new(0), moved, used_ms, moved_ms }))
    }

    fn set(&self, reason: Reason, holds: bool, now: Instant) {
        let bit = reason as u8;
        let reasons = &self.0.reasons;
        let before = if holds {
            reasons.fetch_or(bit, Ordering::Relaxed)
        } else {
            reasons.fetch_and(!bit, Ordering::Relaxed)
        };
        if (before & bit > 0) != holds {
            self.used(now);
        }
    }

    /// Takes over the reasons of another connection to the same peer.
    fn share(&self, other: &Self) {
        self.0.reasons.fetch_or(other.0.reasons.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether the connection stays although no stream is open on it, or none that counts.
    pub(super) fn is_kept(&self) -> bool {
        self.0.reasons.load(Ordering::Relaxed) & KEEPING > 0
    }

    /// Notes that a stream was opened.
    pub(super) fn used(&self, now: Instant) {
        self.0.used_ms.fetch_max(self.ms(now), Ordering::Relaxed);
    }

    /// Notes bytes of a transfer. One that trickles is none.
    pub(super) fn moved(&self, bytes: usize, now: Instant) {
        let bytes = bytes as u64;
        let before = self.0.moved.fetch_add(bytes, Ordering::Relaxed);
        if before / TRANSFER_STEP_BYTES != (before + bytes) / TRANSFER_STEP_BYTES {
            self.0.moved_ms.fetch_max(self.ms(now), Ordering::Relaxed);
            self.used(now);
        }
    }

    /// Whether it has to keep its place: for a reason, or since it is in the middle of a transfer.
    pub(super) fn is_of_use(&self, now: Instant) -> bool {
        let uses = &self.0;
        let in_transfer = uses.moved.load(Ordering::Relaxed) >= TRANSFER_STEP_BYTES
            && self.ms(now).saturating_sub(uses.moved_ms.load(Ordering::Relaxed))
                < TRANSFER_STEP_TIMEOUT.as_millis() as u64;
        in_transfer || uses.reasons.load(Ordering::Relaxed) > 0
    }

    pub(super) fn since(&self) -> Instant {
        self.0.since
    }

    pub(super) fn last_used(&self) -> Instant {
        self.0.since + Duration::from_millis(self.0.used_ms.load(Ordering::Relaxed))
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0.since).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Vec<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Direct ones first, and older ones before newer ones.
    pub(super) fn connections(&self, peer: &PeerId) -> Vec<mpsc::Sender<OpenRequest>> {
        let peers = self.lock();
        let mut connections: Vec<_> = peers.get(peer).into_iter().flatten().collect();
        connections.sort_by_key(|connection| connection.relayed_since.is_some());
        connections.into_iter().map(|connection| connection.requests.clone()).collect()
    }

    /// Waits until a peer has a connection.
    pub(super) async fn await_any(&self, peer: &PeerId) {
        loop {
            let changed = self.changed.notified();
            if self.lock().contains_key(peer) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until a peer has a direct connection, or there is none to wait for.
    pub(super) async fn await_direct(&self, peer: &PeerId) {
        loop {
            let changed = self.changed.notified();
            let Some(until) = self.direct_until(peer) else { return };
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    /// How long a direct connection to the peer may be hoped for, if it has others only.
    fn direct_until(&self, peer: &PeerId) -> Option<Instant> {
        let peers = self.lock();
        let since = peers.get(peer)?.iter().map(|connection| connection.relayed_since);
        let oldest = since.collect::<Option<Vec<Instant>>>()?.into_iter().min()?;
        let until = oldest + DIRECT_TIMEOUT;
        (until > Instant::now()).then_some(until)
    }

    pub(super) fn keep(&self, peer: &PeerId, reason: Reason, holds: bool) {
        let now = Instant::now();
        for connection in self.lock().get(peer).into_iter().flatten() {
            connection.usage.set(reason, holds, now);
        }
    }

    /// What each connection is for.
    pub(super) fn usages(&self) -> HashMap<ConnectionId, Usage> {
        let peers = self.lock();
        peers.values().flatten().map(|connection| (connection.id, connection.usage.clone())).collect()
    }

    /// Of the connection to a peer that streams go over first.
    pub(super) fn usage(&self, peer: &PeerId) -> Option<Usage> {
        let peers = self.lock();
        let first = peers.get(peer)?.iter().min_by_key(|connection| connection.relayed_since.is_some())?;
        Some(first.usage.clone())
    }

    /// A further connection is of use for what those before are: whoever said so may not say it again.
    pub(super) fn insert(&self, peer: PeerId, connection: Connection) {
        let mut peers = self.lock();
        let connections = peers.entry(peer).or_default();
        if let Some(first) = connections.first() {
            connection.usage.share(&first.usage);
        }
        connections.push(connection);
        drop(peers);
        self.changed.notify_waiters();
    }

    pub(super) fn remove(&self, peer: &PeerId, id: ConnectionId) {
        let mut peers = self.lock();
        if let Some(connections) = peers.get_mut(peer) {
            connections.retain(|connection| connection.id != id);
            if connections.is_empty() {
                peers.remove(peer);
            }
        }
        drop(peers);
        self.changed.notify_waiters();
    }
}

/// Whether a ping failed for want of any answer. The first failure in a row is not told of, and the stream of the next ping
/// is then in vain agreed on, which counts as another one; so that it must not be taken for something else.
pub(super) fn is_dead(failure: &ping::Failure) -> bool {
    match failure {
        ping::Failure::Timeout => true,
        ping::Failure::Other { error } => {
            error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
        }
        ping::Failure::Unsupported => false,
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use libp2p::Multiaddr;
    use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError};
    use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, NetworkBehaviour, StreamUpgradeError};

    use super::*;

    /// What a connection tells of its pings after as many streams for one as it takes could not be agreed on.
    fn failure_after(upgrade_error: fn() -> StreamUpgradeError<std::convert::Infallible>) -> ping::Failure {
        let (mut pings, peer, nowhere) = (ping::Behaviour::default(), PeerId::random(), Multiaddr::empty());
        let id = ConnectionId::new_unchecked(0);
        let mut handler = pings.handle_established_inbound_connection(id, peer, &nowhere, &nowhere).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match handler.poll(&mut context) {
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { .. }) => {
                    let error = DialUpgradeError { info: (), error: upgrade_error() };
                    handler.on_connection_event(ConnectionEvent::DialUpgradeError(error));
                }
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Err(failure))) => return failure,
                _ => std::thread::yield_now(), // Its clock is not ours.
            }
        }
    }

    #[test]
    fn a_connection_is_dead_on_which_nobody_answers_and_no_other() {
        assert!(is_dead(&ping::Failure::Timeout));
        assert!(is_dead(&failure_after(|| StreamUpgradeError::Timeout)));
        assert!(!is_dead(&failure_after(|| StreamUpgradeError::NegotiationFailed)));
        assert!(!is_dead(&failure_after(|| StreamUpgradeError::Io(io::ErrorKind::ConnectionReset.into()))));
    }

    #[test]
    fn a_connection_stays_until_the_last_reason_has_gone() {
        let (peers, peer) = (Peers::default(), PeerId::random());
        let (connection, _inbox) = connection(0, false);
        let usage = connection.usage.clone();
        peers.insert(peer, connection);
        assert!(!usage.is_kept());
        peers.keep(&peer, Reason::Wanted, true);
        peers.keep(&peer, Reason::Exchange, true);
        peers.keep(&peer, Reason::Exchange, false);
        assert!(usage.is_kept(), "Bitswap has done with a peer that is wanted");
        peers.keep(&peer, Reason::Wanted, false);
        assert!(!usage.is_kept());
        peers.keep(&peer, Reason::Near, true);
        assert!(!usage.is_kept() && usage.is_of_use(Instant::now()), "it has its place, while it stays");
    }

    #[test]
    fn a_further_connection_is_of_use_for_what_the_first_is() {
        let (peers, peer) = (Peers::default(), PeerId::random());
        let [(first, _), (further, _), (other, _)] = [1, 2, 3].map(|n| connection(n, false));
        let usages = [&further, &other].map(|connection| connection.usage.clone());
        peers.insert(peer, first);
        peers.keep(&peer, Reason::Exchange, true);
        peers.insert(peer, further);
        peers.insert(PeerId::random(), other);
        peers.remove(&peer, ConnectionId::new_unchecked(1));
        assert_eq!(usages.each_ref().map(Usage::is_kept), [true, false]);
        peers.keep(&peer, Reason::Exchange, false);
        assert!(!usages[0].is_kept());
    }

    #[test]
    fn a_transfer_is_of_use_while_it_moves_on() {
        let start = Instant::now();
        let (usage, at) = (Usage::new(start), |seconds| start + Duration::from_secs(seconds));
        (0..100).for_each(|second| usage.moved(1, at(second)));
        assert!(!usage.is_of_use(at(100)), "it trickles");
        assert_eq!(usage.last_used(), start);
        usage.moved(1 << 20, at(200));
        assert!(usage.is_of_use(at(200)) && usage.is_of_use(at(214)) && !usage.is_of_use(at(215)));
        assert_eq!(usage.last_used(), at(200));
        usage.used(at(300));
        assert!(!usage.is_of_use(at(300)));
        assert_eq!(usage.last_used(), at(300));
    }

    fn connection(n: usize, relayed: bool) -> (Connection, mpsc::Receiver<OpenRequest>) {
        let (requests, inbox) = mpsc::channel(1);
        let id = ConnectionId::new_unchecked(n);
        let relayed_since = relayed.then(Instant::now);
        (Connection { id, relayed_since, requests, usage: Usage::new(Instant::now()) }, inbox)
    }

    #[tokio::test(start_paused = true)]
    async fn a_direct_connection_is_awaited_for_a_while_and_taken_first() {
        let (peers, peer, start) = (Peers::default(), PeerId::random(), Instant::now());
        peers.await_direct(&peer).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "who is not connected is not waited for");
        let (relayed, _relayed) = connection(1, true);
        peers.insert(peer, relayed);
        peers.await_direct(&peer).await;
        assert_eq!(start.elapsed(), DIRECT_TIMEOUT);
        peers.await_direct(&peer).await;
        assert_eq!(start.elapsed(), DIRECT_TIMEOUT, "it was waited for");

        let (direct, inbox) = connection(2, false);
        peers.insert(peer, direct);
        drop(inbox);
        let order: Vec<bool> = peers.connections(&peer).iter().map(mpsc::Sender::is_closed).collect();
        assert_eq!(order, [true, false], "the direct one is first");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_is_awaited() {
        let (peers, peer, start) = (Peers::default(), PeerId::random(), Instant::now());
        let comes = async {
            for (n, who) in [(1, PeerId::random()), (2, peer)] {
                tokio::time::sleep(Duration::from_secs(1)).await;
                peers.insert(who, connection(n, true).0);
            }
        };
        tokio::join!(comes, peers.await_any(&peer));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_with_the_upgrade() {
        let (peers, peer, start) = (Peers::default(), PeerId::random(), Instant::now());
        let (relayed, _relayed) = connection(1, true);
        peers.insert(peer, relayed);
        let upgraded = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (direct, inbox) = connection(2, false);
            peers.insert(peer, direct);
            inbox
        };
        let (_inbox, ()) = tokio::join!(upgraded, peers.await_direct(&peer));
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }
}
