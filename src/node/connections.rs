//! The connections of each peer, as those see them who open streams: a direct one goes before one through a relay.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, ping};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::streams::OpenRequest;

/// How long a connection through a relay carries no stream of ours, in the hope of a direct one.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(3);

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
    pub(super) kept: Kept,
}

/// Why a connection stays although no stream is open on it, or none that counts.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Reason {
    /// The peer is one of those that are to be connected.
    Wanted = 1,
    /// Bitswap waits for it, or owes it something.
    Exchange = 2,
}

/// The reasons for which a connection stays. Its handler shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<AtomicU8>);

impl Kept {
    fn set(&self, reason: Reason, holds: bool) {
        if holds {
            self.0.fetch_or(reason as u8, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!(reason as u8), Ordering::Relaxed);
        }
    }

    pub(super) fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
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
        for connection in self.lock().get(peer).into_iter().flatten() {
            connection.kept.set(reason, holds);
        }
    }

    pub(super) fn insert(&self, peer: PeerId, connection: Connection) {
        self.lock().entry(peer).or_default().push(connection);
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
        let kept = connection.kept.clone();
        peers.insert(peer, connection);
        assert!(!kept.is_any());
        peers.keep(&peer, Reason::Wanted, true);
        peers.keep(&peer, Reason::Exchange, true);
        peers.keep(&peer, Reason::Exchange, false);
        assert!(kept.is_any(), "Bitswap has done with a peer that is wanted");
        peers.keep(&peer, Reason::Wanted, false);
        assert!(!kept.is_any());
    }

    fn connection(n: usize, relayed: bool) -> (Connection, mpsc::Receiver<OpenRequest>) {
        let (requests, inbox) = mpsc::channel(1);
        let id = ConnectionId::new_unchecked(n);
        let relayed_since = relayed.then(Instant::now);
        (Connection { id, relayed_since, requests, kept: Kept::default() }, inbox)
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
