//! Which addresses of a provider are gateways, and which ones strangers may send us to. Pure.

use std::net::IpAddr;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use url::Url;

use crate::upstream::is_public;

/// What may be dialled for whoever named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Anything: the config says so, or somebody in a private network does.
    Any,
    /// The public network alone.
    Public,
}

impl Reach {
    /// That of what is told by somebody at this address: who is in a private network may know others there.
    pub(super) fn of_teller(address: Option<IpAddr>) -> Self {
        if address.is_some_and(|address| !is_public(address)) { Self::Any } else { Self::Public }
    }

    pub(super) fn admits(self, address: &Multiaddr) -> bool {
        self == Self::Any
            || match address.iter().next() {
                Some(Protocol::Ip4(ip)) => is_public(ip.into()),
                Some(Protocol::Ip6(ip)) => is_public(ip.into()),
                // Looked up when it is dialled, and held to the rule then if it is a gateway.
                Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
                _ => false,
            }
    }
}

/// Whether an address is one of HTTP, of which libp2p's transports know nothing.
pub(super) fn is_http(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Http | Protocol::Https))
}

/// The URL of a gateway at `/…/tcp/PORT` and then `/http`, `/https` or `/tls/http`, if it may be asked.
pub(super) fn gateway_url(address: &Multiaddr, reach: Reach) -> Option<Url> {
    if !is_http(address) || !reach.admits(address) {
        return None;
    }
    let parts: Vec<Protocol<'_>> = address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect();
    let [host, Protocol::Tcp(port), rest @ ..] = parts.as_slice() else { return None };
    let host = match host {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => format!("[{ip}]"),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.to_string(),
        _ => return None,
    };
    let scheme = match rest {
        [Protocol::Http] => "http",
        [Protocol::Https] | [Protocol::Tls, Protocol::Http] => "https",
        _ => return None,
    };
    let url: Url = format!("{scheme}://{host}:{port}").parse().ok()?;
    // A name with something else in it is none.
    (url.path() == "/" && url.username().is_empty() && url.query().is_none()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_told_by_their_addresses() {
        let url = |text: &str, reach| gateway_url(&text.parse().unwrap(), reach).map(|url| url.to_string());
        let peer = libp2p::PeerId::random();
        for (address, expected) in [
            ("/dns4/gateway.example/tcp/443/tls/http", Some("https://gateway.example/")),
            ("/dns/gateway.example/tcp/8443/https", Some("https://gateway.example:8443/")),
            ("/ip4/8.8.8.8/tcp/8080/http", Some("http://8.8.8.8:8080/")),
            ("/ip6/2606:4700::1111/tcp/443/https", Some("https://[2606:4700::1111]/")),
            ("/ip4/8.8.8.8/tcp/8080/ws", None),
            ("/ip4/8.8.8.8/tcp/8080", None),
            ("/ip4/8.8.8.8/udp/443/quic-v1", None),
            ("/ip4/8.8.8.8/udp/443/http", None),
            ("/dns4/a@b/tcp/1/http", None),
            ("/dns4/a?b/tcp/1/http", None),
        ] {
            assert_eq!(url(address, Reach::Public).as_deref(), expected, "{address}");
            assert_eq!(url(&format!("{address}/p2p/{peer}"), Reach::Any).as_deref(), expected, "{address}");
        }
        for private in
            ["/ip4/127.0.0.1/tcp/1/http", "/ip4/169.254.169.254/tcp/80/http", "/ip6/::1/tcp/1/http"]
        {
            assert_eq!(url(private, Reach::Public), None, "{private}");
            assert!(url(private, Reach::Any).is_some(), "{private}");
        }
    }

    #[test]
    fn who_is_at_a_private_address_may_tell_of_others_there() {
        assert_eq!(Reach::of_teller(Some([127, 0, 0, 1].into())), Reach::Any);
        assert_eq!(Reach::of_teller(Some([8, 8, 8, 8].into())), Reach::Public);
        assert_eq!(Reach::of_teller(None), Reach::Public);
    }
}
