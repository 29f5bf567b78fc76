//! QUIC first on long paths: where a public host is dialled by both, TCP begins a little later, as Happy Eyeballs (RFC 8305)
//! and go-libp2p have it. What is set up in fewer round trips, and shares no window among its streams, is taken then. In a
//! local network, where TCP carries more for less, both begin at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use libp2p::core::transport::{DialOpts, ListenerId, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Transport, TransportError};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::routing::is_public;

/// How long QUIC is ahead.
const HEAD_START: Duration = Duration::from_millis(250);
/// Within this time all dials to a host have begun that are made at once.
const BEGUN: Duration = Duration::from_millis(10);

/// The public hosts that are being dialled over QUIC. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct QuicDials(Arc<Dials>);

#[derive(Default)]
struct Dials {
    hosts: Mutex<HashMap<IpAddr, usize>>,
    ended: Notify,
}

/// A dial over QUIC, for as long as it takes.
struct QuicDial {
    dials: QuicDials,
    host: IpAddr,
}

impl QuicDials {
    /// A panic leaves what was counted before.
    fn hosts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a dial, unless its host is near.
    fn begin(&self, address: &Multiaddr) -> Option<QuicDial> {
        let host = public_host(address)?;
        *self.hosts().entry(host).or_default() += 1;
        Some(QuicDial { dials: self.clone(), host })
    }

    /// Waits while the host of this address is dialled over QUIC, as long as QUIC is ahead.
    async fn give_way(&self, address: &Multiaddr) {
        let Some(host) = public_host(address) else { return };
        let others = async {
            sleep(BEGUN).await;
            loop {
                let ended = self.0.ended.notified();
                if !self.hosts().contains_key(&host) {
                    return;
                }
                ended.await;
            }
        };
        // It is the turn of TCP then.
        let _ = timeout(HEAD_START, others).await;
    }
}

impl Drop for QuicDial {
    fn drop(&mut self) {
        let mut hosts = self.dials.hosts();
        if let Some(count) = hosts.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                hosts.remove(&self.host);
            }
        }
        drop(hosts);
        self.dials.0.ended.notify_waiters();
    }
}

fn public_host(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next().filter(|_| is_public(address))? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(IpAddr::from(ip).to_canonical()),
        _ => None,
    }
}

/// A transport whose dials are ahead of others, or give way to them.
pub(super) struct Paced<T> {
    inner: T,
    dials: QuicDials,
    is_quic: bool,
}

impl<T> Paced<T> {
    pub(super) fn quic(inner: T, dials: QuicDials) -> Self {
        Self { inner, dials, is_quic: true }
    }

    pub(super) fn tcp(inner: T, dials: QuicDials) -> Self {
        Self { inner, dials, is_quic: false }
    }
}

impl<T> Transport for Paced<T>
where
    T: Transport + Unpin,
    T::Dial: Send + 'static,
    T::Output: 'static,
    T::Error: 'static,
{
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<T::Output, T::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<T::Error>> {
        let dial = self.inner.dial(address.clone(), options)?;
        if self.is_quic {
            let under_way = self.dials.begin(&address);
            return Ok(dial.inspect(move |_| drop(under_way)).boxed());
        }
        let dials = self.dials.clone();
        Ok(async move {
            dials.give_way(&address).await;
            dial.await
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    async fn waited(dials: &QuicDials, address: &str) -> Duration {
        let begun = Instant::now();
        dials.give_way(&address.parse().unwrap()).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn tcp_gives_way_while_the_same_public_host_is_dialled_over_quic() {
        let dials = QuicDials::default();
        let begin = |address: &str| dials.begin(&address.parse().unwrap());
        assert_eq!(waited(&dials, "/ip4/8.8.8.8/tcp/1").await, BEGUN);
        let dial = begin("/ip4/8.8.8.8/udp/1/quic-v1").unwrap();
        assert_eq!(waited(&dials, "/ip4/8.8.8.8/tcp/1").await, HEAD_START);
        assert_eq!(waited(&dials, "/ip6/::ffff:8.8.8.8/tcp/1").await, HEAD_START, "it is the same host");
        assert_eq!(waited(&dials, "/ip4/8.8.4.4/tcp/1").await, BEGUN, "another host");
        let another = begin("/ip4/8.8.8.8/udp/2/quic-v1").unwrap();
        drop(another);
        let ends = async {
            sleep(Duration::from_millis(100)).await;
            drop(dial);
        };
        let ((), took) = tokio::join!(ends, waited(&dials, "/ip4/8.8.8.8/tcp/1"));
        assert_eq!(took, Duration::from_millis(100), "it could not be reached over QUIC");
        assert!(dials.hosts().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_local_network_nobody_gives_way() {
        let dials = QuicDials::default();
        for host in ["/ip4/192.168.0.1", "/ip6/fd00::1", "/ip6/::ffff:192.168.0.1"] {
            assert!(dials.begin(&format!("{host}/udp/1/quic-v1").parse().unwrap()).is_none());
            assert_eq!(waited(&dials, &format!("{host}/tcp/1")).await, Duration::ZERO);
        }
    }
}
