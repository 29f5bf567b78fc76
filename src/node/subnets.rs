//! Where a connection comes from: a /24 of IPv4, a /56 of IPv6, or one relay. Whoever has many peer ids seldom has many
//! networks, so that one network has a share of the places only. Private networks, where a whole cluster may be, have a
//! larger one. Pure.

use std::collections::HashMap;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::routing::is_public;

/// The shares of one subnet, in percent of what all may have.
const PUBLIC_SHARE_PERCENT: u32 = 25;
const PRIVATE_SHARE_PERCENT: u32 = 75;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subnet {
    V4([u8; 3]),
    V6([u8; 7]),
    Relay(PeerId),
    Unknown,
}

impl Subnet {
    /// `local`: our end, which names the relay if there is one.
    pub(super) fn of(local: &Multiaddr, remote: &Multiaddr) -> Self {
        if local.iter().any(|part| part == Protocol::P2pCircuit) {
            let relay = local.iter().find_map(|part| match part {
                Protocol::P2p(peer) => Some(peer),
                _ => None,
            });
            return relay.map_or(Self::Unknown, Self::Relay);
        }
        match remote.iter().next() {
            Some(Protocol::Ip4(ip)) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            Some(Protocol::Ip6(ip)) => match ip.to_ipv4_mapped().map(|ip| ip.octets()) {
                Some([a, b, c, _]) => Self::V4([a, b, c]),
                None => {
                    let [a, b, c, d, e, f, g, ..] = ip.octets();
                    Self::V6([a, b, c, d, e, f, g])
                }
            },
            _ => Self::Unknown,
        }
    }
}

/// How many of `of` places the subnet of `remote` may have.
pub(super) fn share(of: u32, remote: &Multiaddr) -> u32 {
    let is_private =
        remote.iter().any(|part| matches!(part, Protocol::Ip4(_) | Protocol::Ip6(_))) && !is_public(remote);
    let percent = if is_private { PRIVATE_SHARE_PERCENT } else { PUBLIC_SHARE_PERCENT };
    (of * percent / 100).max(1)
}

/// How many of some connections each subnet has.
#[derive(Clone, Default)]
pub(super) struct Counts(HashMap<Subnet, u32>);

impl Counts {
    pub(super) fn get(&self, subnet: Subnet) -> u32 {
        self.0.get(&subnet).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, subnet: Subnet) {
        *self.0.entry(subnet).or_default() += 1;
    }

    pub(super) fn remove(&mut self, subnet: Subnet) {
        if let Some(count) = self.0.get_mut(&subnet) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&subnet);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(remote: &str) -> Subnet {
        Subnet::of(&"/ip4/0.0.0.0/tcp/4001".parse().unwrap(), &remote.parse().unwrap())
    }

    #[test]
    fn a_subnet_is_a_24_or_a_56() {
        assert_eq!(subnet("/ip4/8.8.8.1/tcp/1"), subnet("/ip4/8.8.8.250/udp/2/quic-v1"));
        assert_eq!(subnet("/ip4/8.8.8.1/tcp/1"), subnet("/ip6/::ffff:8.8.8.2/tcp/1"));
        assert_ne!(subnet("/ip4/8.8.8.1/tcp/1"), subnet("/ip4/8.8.9.1/tcp/1"));
        assert_eq!(subnet("/ip6/2001:db8:0:1::1/tcp/1"), subnet("/ip6/2001:db8:0:ff::1/tcp/1"));
        assert_ne!(subnet("/ip6/2001:db8:0:1::1/tcp/1"), subnet("/ip6/2001:db8:0:100::1/tcp/1"));
    }

    #[test]
    fn a_private_subnet_has_a_larger_share() {
        let share_of = |remote: &str| share(100, &remote.parse().unwrap());
        assert_eq!((share_of("/ip4/8.8.8.8/tcp/1"), share_of("/ip4/10.0.0.1/tcp/1")), (25, 75));
        assert_eq!(share(1, &"/ip4/8.8.8.8/tcp/1".parse().unwrap()), 1, "somebody may always come");
    }

    #[test]
    fn connections_through_a_relay_count_for_the_relay() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let local = format!("/ip4/8.8.8.8/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap();
        let remote = format!("/p2p/{peer}").parse().unwrap();
        assert_eq!(Subnet::of(&local, &remote), Subnet::Relay(relay));
    }
}
