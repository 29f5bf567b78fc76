//! The section `p2p`: where the node listens, whom it dials, whom it trusts.

use std::path::PathBuf;

use ipnet::IpNet;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use url::Url;

use super::check::value_error;
use super::{ConfigError, raw};

/// What `default` stands for in `p2p.bootstrap`: the public IPFS bootstrap peers.
const BOOTSTRAP: &[&str] = &[
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
    "/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
];
/// Delegated routers, and gateways.
const URLS_MAX: usize = 16;
/// Each address is looked up in all of them.
const NETWORKS_MAX: usize = 256;
const LISTEN: &[&str] = &["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct P2pConfig {
    pub listen: Vec<Multiaddr>,
    pub announce: Vec<Multiaddr>,
    /// Networks that nothing is dialled in and nobody is let in from.
    pub filters: Vec<IpNet>,
    /// Each with `/p2p/` at its end.
    pub bootstrap: Vec<Multiaddr>,
    /// With `/p2p/` at its end, or a host and port where whoever answers is meant.
    pub peers: Vec<Multiaddr>,
    /// URLs above `/routing/v1`.
    pub delegated_routers: Vec<Url>,
    /// URLs above `/ipfs/`.
    pub gateways: Vec<Url>,
    /// The key file of a private network.
    pub swarm_key: Option<PathBuf>,
    /// Never for a node that listens nowhere.
    pub mdns: bool,
    /// Whether records are pushed and heard over gossipsub.
    pub pubsub: bool,
    /// Whether a node that cannot be reached finds a way round: by relays and hole punching.
    pub nat: bool,
    /// Whether a port is asked of the gateway of the local network.
    pub upnp: bool,
    /// Whether this node is a relay for others.
    pub relay: bool,
    /// Relays that are asked first, each with `/p2p/` at its end.
    pub relays: Vec<Multiaddr>,
}

pub(super) fn check(raw: raw::P2p) -> Result<P2pConfig, ConfigError> {
    let swarm_key = raw.swarmkey.filter(|path| !path.is_empty()).map(PathBuf::from);
    let is_private = swarm_key.is_some();
    let listen = match raw.listen {
        Some(words) => addresses("p2p.listen", &words)?,
        None => {
            let mut listen = addresses("p2p.listen", &owned(LISTEN))?;
            listen.retain(|address| !is_private || !is_udp(address));
            listen
        }
    };
    if let (true, Some(n)) = (is_private, listen.iter().position(is_udp)) {
        let reason = "a private network (p2p.swarmkey) has no QUIC: a TCP address is expected, such as /ip4/0.0.0.0/tcp/4001";
        return Err(value_error(&format!("p2p.listen[{n}]"), &listen[n].to_string(), reason));
    }
    let default = || owned(if is_private { &[] } else { BOOTSTRAP });
    let bootstrap = raw.bootstrap.unwrap_or_else(|| owned(&["default"]));
    let bootstrap: Vec<String> = bootstrap
        .into_iter()
        .flat_map(|word| if word == "default" { default() } else { vec![word] })
        .collect();
    let nat = raw.nat.unwrap_or(true) && !listen.is_empty();
    let relays = relays(&raw.relays.unwrap_or_default(), nat, is_private)?;
    if raw.relay == Some(true) && listen.is_empty() {
        let reason = "a relay has to be reached: an address is expected in p2p.listen";
        return Err(value_error("p2p.relay", "true", reason));
    }
    Ok(P2pConfig {
        nat,
        upnp: raw.upnp.unwrap_or(true) && nat,
        relay: raw.relay.unwrap_or(false),
        relays,
        mdns: raw.mdns.unwrap_or(true) && !listen.is_empty(),
        pubsub: raw.pubsub.unwrap_or(true),
        listen,
        announce: addresses("p2p.announce", &raw.announce.unwrap_or_default())?,
        filters: networks("p2p.addressfilters", &raw.addressfilters.unwrap_or_default())?,
        bootstrap: bootstrap_peers(&bootstrap)?,
        peers: trusted_peers(&raw.peers.unwrap_or_default())?,
        delegated_routers: urls("p2p.delegatedrouters", &raw.delegatedrouters.unwrap_or_default())?,
        gateways: urls("p2p.gateways", &raw.gateways.unwrap_or_default())?,
        swarm_key,
    })
}

fn urls(key: &str, words: &[String]) -> Result<Vec<Url>, ConfigError> {
    let expected = "an http or https URL is expected, without credentials, query and fragment";
    if words.len() > URLS_MAX {
        let reason = format!("at most {URLS_MAX} URLs are taken");
        return Err(value_error(key, &words.len().to_string(), &reason));
    }
    let parse = |(n, word): (usize, &String)| {
        let url = word.parse::<Url>().ok();
        let is_plain = |url: &Url| {
            let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
            let is_bare = url.username().is_empty() && url.password().is_none();
            is_web && is_bare && url.query().is_none() && url.fragment().is_none()
        };
        url.filter(is_plain)
            .ok_or_else(|| value_error(&format!("{key}[{n}]"), &without_credentials(word), expected))
    };
    words.iter().enumerate().map(parse).collect()
}

/// A password in a URL stays out of what is printed.
fn without_credentials(word: &str) -> String {
    match word.rsplit_once('@') {
        Some((_, rest)) => format!("…@{rest}"),
        None => word.to_owned(),
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn addresses(key: &str, words: &[String]) -> Result<Vec<Multiaddr>, ConfigError> {
    let parse = |(n, word): (usize, &String)| {
        word.parse().map_err(|error| {
            let reason = format!("a multiaddr is expected, such as /ip4/0.0.0.0/tcp/4001 ({error})");
            value_error(&format!("{key}[{n}]"), word, &reason)
        })
    };
    words.iter().enumerate().map(parse).collect()
}

/// Networks as Kubo writes them, `/ip4/10.0.0.0/ipcidr/8`, or as everybody else does, `10.0.0.0/8`.
fn networks(key: &str, words: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    if words.len() > NETWORKS_MAX {
        let reason = format!("at most {NETWORKS_MAX} networks are taken");
        return Err(value_error(key, &words.len().to_string(), &reason));
    }
    let parse = |(n, word): (usize, &String)| {
        let parts: Vec<&str> = word.split('/').collect();
        let network: Option<IpNet> = match parts[..] {
            ["", "ip4" | "ip6", ip, "ipcidr", bits] => format!("{ip}/{bits}").parse().ok(),
            _ => word.parse().ok(),
        };
        let is_said = |network: &IpNet| match parts[..] {
            ["", family, ..] => (family == "ip4") == network.addr().is_ipv4(),
            _ => true,
        };
        let reason = "a network is expected, such as 10.0.0.0/8 or /ip4/10.0.0.0/ipcidr/8";
        network.filter(is_said).ok_or_else(|| value_error(&format!("{key}[{n}]"), word, reason))
    };
    words.iter().enumerate().map(parse).collect()
}

fn bootstrap_peers(words: &[String]) -> Result<Vec<Multiaddr>, ConfigError> {
    let reason = "the peer id is missing: a multiaddr with /p2p/<peer id> at its end is expected";
    checked("p2p.bootstrap", words, has_peer_id, reason)
}

fn trusted_peers(words: &[String]) -> Result<Vec<Multiaddr>, ConfigError> {
    let reason = "a multiaddr with /p2p/<peer id> at its end is expected, or one of a host and port, \
                  such as /dns4/shoal.example.org/tcp/4001, where whoever answers is trusted";
    checked("p2p.peers", words, |address| has_peer_id(address) || is_host_and_port(address), reason)
}

fn relays(words: &[String], nat: bool, is_private: bool) -> Result<Vec<Multiaddr>, ConfigError> {
    let reason = "a relay's own multiaddr with /p2p/<peer id> at its end is expected, \
                  such as /dns4/relay.example.org/tcp/4001/p2p/12D3…";
    let relays =
        checked("p2p.relays", words, |address| has_peer_id(address) && !is_relayed(address), reason)?;
    if let (false, Some(first)) = (nat, relays.first()) {
        let reason = "no relay is asked while p2p.nat is false or p2p.listen is empty";
        return Err(value_error("p2p.relays[0]", &first.to_string(), reason));
    }
    if let (true, Some(n)) = (is_private, relays.iter().position(is_udp)) {
        let reason = "a private network (p2p.swarmkey) has no QUIC: a TCP address is expected";
        return Err(value_error(&format!("p2p.relays[{n}]"), &relays[n].to_string(), reason));
    }
    Ok(relays)
}

fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

fn checked(
    key: &str,
    words: &[String],
    is_right: impl Fn(&Multiaddr) -> bool,
    reason: &str,
) -> Result<Vec<Multiaddr>, ConfigError> {
    let addresses = addresses(key, words)?;
    match addresses.iter().position(|address| !is_right(address)) {
        Some(n) => Err(value_error(&format!("{key}[{n}]"), &addresses[n].to_string(), reason)),
        None => Ok(addresses),
    }
}

fn has_peer_id(address: &Multiaddr) -> bool {
    matches!(address.iter().last(), Some(Protocol::P2p(_)))
}

/// `/ip4`, `/ip6`, `/dns`, `/dns4` or `/dns6`, then `/tcp` or `/udp/…/quic-v1`, and nothing else.
fn is_host_and_port(address: &Multiaddr) -> bool {
    let parts: Vec<Protocol<'_>> = address.iter().collect();
    let Some((host, rest)) = parts.split_first() else { return false };
    let is_host = matches!(
        host,
        Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)
    );
    is_host && matches!(rest, [Protocol::Tcp(_)] | [Protocol::Udp(_), Protocol::QuicV1])
}

fn is_udp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Udp(_)))
}
