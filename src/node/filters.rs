//! Networks that nothing is dialled in and nobody is let in from, as Kubo's `Swarm.AddrFilters`: for hosts whose provider
//! takes dials to private networks for a scan.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ipnet::IpNet;
use libp2p::core::transport::{DialOpts, ListenerId, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Transport, TransportError};

/// The networks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters(Arc<[IpNet]>);

impl Filters {
    pub(super) fn new(networks: &[IpNet]) -> Self {
        Self(networks.into())
    }

    /// Whether an address lies in one of them. Names do not: what they stand for is dialled by its address.
    ///
    /// Of an address with several hosts, the transport over TCP dials the last one; none of them may be denied.
    fn deny(&self, address: &Multiaddr) -> bool {
        let is_denied = |ip: IpAddr| self.0.iter().any(|network| network.contains(&ip.to_canonical()));
        address.iter().any(|part| match part {
            Protocol::Ip4(ip) => is_denied(ip.into()),
            Protocol::Ip6(ip) => is_denied(ip.into()),
            _ => false,
        })
    }
}

/// A transport without these networks.
pub(super) struct Filtered<T> {
    inner: T,
    filters: Filters,
}

impl<T> Filtered<T> {
    pub(super) fn new(inner: T, filters: Filters) -> Self {
        Self { inner, filters }
    }
}

impl<T: Transport + Unpin> Transport for Filtered<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<T::Dial, TransportError<T::Error>> {
        if self.filters.deny(&address) {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.inner.dial(address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        loop {
            let event = ready!(Pin::new(&mut self.inner).poll(cx));
            match &event {
                // Dropped before a byte is exchanged.
                TransportEvent::Incoming { send_back_addr, .. } if self.filters.deny(send_back_addr) => {
                    tracing::debug!(address = %send_back_addr, "not let in: p2p.addressfilters");
                }
                _ => return Poll::Ready(event),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_network_is_denied_however_it_is_written() {
        let networks = ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"].map(|network| network.parse().unwrap());
        let filters = Filters::new(&networks);
        for (address, denied) in [
            ("/ip4/10.1.2.3/tcp/4001", true),
            ("/ip4/10.1.2.3/udp/4001/quic-v1", true),
            ("/ip6/::ffff:10.1.2.3/tcp/4001", true),
            ("/ip4/192.0.2.7/tcp/4001", true),
            ("/ip6/fd12::1/tcp/4001", true),
            ("/ip4/192.0.2.8/ip4/10.1.2.3/tcp/4001", true),
            ("/ip4/192.0.2.8/tcp/1/ip6/::ffff:10.1.2.3/tcp/4001", true),
            ("/ip6zone/eth0/ip6/fd12::1/tcp/4001", true),
            ("/dns4/example.com/ip4/10.1.2.3/tcp/4001", true),
            ("/ip4/192.0.2.8/tcp/4001", false),
            ("/ip6/2001:db8::1/tcp/4001", false),
            ("/dns4/example.com/tcp/4001", false),
        ] {
            assert_eq!(filters.deny(&address.parse().unwrap()), denied, "{address}");
        }
    }
}
