//! What the names among the addresses of the config stand for: a name may have many addresses, as that of a headless
//! service has, and they come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::tasks::jittered;

/// Between two looks at the same name, give or take a quarter.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while a name is unknown.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name.
const ADDRESSES_MAX: usize = 1024;

/// An address of the config, and what it stands for.
struct Name {
    address: Multiaddr,
    /// `None` until it is known. When a name server fails, what was known holds.
    known: Option<BTreeSet<Multiaddr>>,
}

/// Keeps `places` up to date: those of `addresses` that have an IP address in them as they are, the others resolved by
/// the system's resolver, with its search domains. Ends when `places` is dropped on the other side, or at a stop.
pub(super) async fn resolve(
    addresses: Vec<Multiaddr>,
    places: watch::Sender<BTreeSet<Multiaddr>>,
    stop: CancellationToken,
) {
    let mut names: Vec<Name> = addresses.into_iter().map(|address| Name { address, known: None }).collect();
    loop {
        for name in &mut names {
            let Some(found) = stop.run_until_cancelled(look_up(&name.address)).await else { return };
            match found {
                Ok(found) => name.known = Some(found),
                Err(error) if name.known.is_none() => {
                    tracing::warn!(address = %name.address, %error, "no peers are known by this name yet");
                }
                Err(error) => tracing::debug!(address = %name.address, %error, "name not resolved again"),
            }
        }
        let all: BTreeSet<Multiaddr> =
            names.iter().flat_map(|name| name.known.clone().unwrap_or_default()).collect();
        places.send_if_modified(|known| {
            let changed = *known != all;
            *known = all;
            changed
        });
        let unknown = names.iter().any(|name| name.known.is_none());
        let pause = jittered(if unknown { RETRY_INTERVAL } else { INTERVAL });
        tokio::select! {
            () = stop.cancelled() => return,
            () = places.closed() => return,
            () = tokio::time::sleep(pause) => (),
        }
    }
}

async fn look_up(address: &Multiaddr) -> std::io::Result<BTreeSet<Multiaddr>> {
    let mut parts = address.iter();
    let (host, family): (_, fn(&IpAddr) -> bool) = match parts.next() {
        Some(Protocol::Dns(host)) => (host.into_owned(), |_| true),
        Some(Protocol::Dns4(host)) => (host.into_owned(), IpAddr::is_ipv4),
        Some(Protocol::Dns6(host)) => (host.into_owned(), IpAddr::is_ipv6),
        _ => return Ok([address.clone()].into()),
    };
    let rest: Multiaddr = parts.collect();
    // The port belongs to the rest; the resolver has to be given one.
    let found = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, 0))).await??;
    let found = found.map(|socket| socket.ip()).filter(family).take(ADDRESSES_MAX);
    let at = |ip| rest.iter().fold(Multiaddr::from(ip), Multiaddr::with);
    Ok(found.map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_stands_for_its_addresses_of_the_family_that_is_asked() {
        let found = look_up(&"/dns4/localhost/tcp/4001".parse().unwrap()).await.unwrap();
        assert_eq!(found, ["/ip4/127.0.0.1/tcp/4001".parse().unwrap()].into());
        let any = look_up(&"/dns/localhost/udp/1/quic-v1".parse().unwrap()).await.unwrap();
        assert!(any.contains(&"/ip4/127.0.0.1/udp/1/quic-v1".parse().unwrap()), "{any:?}");
        let plain: Multiaddr = "/ip6/::1/tcp/1".parse().unwrap();
        assert_eq!(look_up(&plain).await.unwrap(), [plain].into());
        assert!(look_up(&"/dns4/no.such.name.invalid/tcp/1".parse().unwrap()).await.is_err());
    }
}
