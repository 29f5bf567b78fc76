//! Keeps registries that are known by their name alone to the public network: whoever may name one could otherwise have us
//! ask what only we can reach, such as the metadata service of a cloud (OWASP, "Server-Side Request Forgery").

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Finds the addresses of a name.
type LookUp = Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Lets only public addresses be dialled. Cheap to clone.
#[derive(Clone)]
pub struct PublicOnly {
    look_up: LookUp,
    admits: fn(IpAddr) -> bool,
}

/// An address that is not dialled for somebody who named it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{name} is at {address}, which is no address of the public network")]
pub struct NotPublic {
    name: String,
    address: IpAddr,
}

impl PublicOnly {
    /// By other names and another rule.
    #[cfg(test)]
    pub(super) fn by(
        look_up: impl Fn(&str) -> Option<IpAddr> + Send + Sync + 'static,
        admits: fn(IpAddr) -> bool,
    ) -> Self {
        let look_up: LookUp = Arc::new(move |name| {
            let found = look_up(&name).map(|address| vec![SocketAddr::new(address, 0)]);
            Box::pin(async move { found.ok_or_else(|| std::io::ErrorKind::NotFound.into()) })
        });
        Self { look_up, admits }
    }

    /// Refuses an address that stands in a URL itself, which nobody looks up.
    pub fn check(&self, url: &Url) -> Result<(), NotPublic> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        self.admit(url.host_str().unwrap_or_default(), address)
    }

    fn admit(&self, name: &str, address: IpAddr) -> Result<(), NotPublic> {
        let refused = || NotPublic { name: name.to_owned(), address };
        (self.admits)(address).then_some(()).ok_or_else(refused)
    }
}

impl Default for PublicOnly {
    /// By the names that the system knows.
    fn default() -> Self {
        let look_up: LookUp =
            Arc::new(|name| Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) }));
        Self { look_up, admits: is_public }
    }
}

impl Resolve for PublicOnly {
    /// What has one address that is not public is refused as a whole.
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let addresses = (guard.look_up)(name.as_str().to_owned()).await?;
            addresses.iter().try_for_each(|address| guard.admit(name.as_str(), address.ip()))?;
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

/// Whether an address is one of the public network (the IANA registries of special-purpose addresses).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b, c) {
        // This network; loopback; multicast, reserved and broadcast.
        (0 | 127 | 224.., _, _) => true,
        // Behind carriers; protocol assignments; benchmarks.
        (100, 64..=127, _) | (192, 0, 0) | (198, 18 | 19, _) => true,
        _ => address.is_private() || address.is_link_local() || address.is_documentation(),
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // An address of IPv4 in other clothes: mapped, translated (RFC 6052), 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        // Teredo and other protocol assignments; documentation.
        [0x2001, ..0x200 | 0xdb8, ..] => false,
        // All else that was given out is in 2000::/3: no loopback, unique local, link-local, multicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_network_are_public() {
        for address in
            ["1.1.1.1", "172.15.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1111", "::ffff:8.8.8.8"]
        {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "192.0.0.1",
            "198.19.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "fec0::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }
}
