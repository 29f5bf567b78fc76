//! What the running daemon says of itself, or does when asked: `id`, `status`, `gc`.

use std::fmt::Write as _;

use hyper::Method;
use indicatif::HumanBytes;

use super::client::ask;
use super::transfer::progress::short;
use super::{CommandError, Which, print};
use crate::api;

pub(super) fn status(which: &Which, json: bool) -> Result<(), CommandError> {
    let status: api::Status = ask(which, &Method::GET, "/v0/status")?;
    if json {
        print_json(&status)
    } else {
        print(&readable(&status))
    }
    Ok(())
}

pub(super) fn id(which: &Which, json: bool) -> Result<(), CommandError> {
    let status: api::Status = ask(which, &Method::GET, "/v0/status")?;
    if json {
        print_json(&serde_json::json!({
            "peer_id": status.node.peer_id,
            "addresses": status.node.addresses,
            "ipns": status.own.map(|own| own.name),
        }));
        return Ok(());
    }
    print(&format!("peer id  {}", status.node.peer_id));
    print(&format!("ipns     {}", status.own.map_or_else(|| "none: read-only".to_owned(), |own| own.name)));
    status.node.addresses.iter().for_each(|address| print(&format!("address  {address}")));
    Ok(())
}

pub(super) fn collect_garbage(which: &Which, json: bool) -> Result<(), CommandError> {
    let freed: api::Collected = ask(which, &Method::POST, "/v0/gc")?;
    if json {
        print_json(&freed);
    } else {
        let (mib, links, blocks) = (freed.bytes >> 20, freed.links, freed.blocks);
        print(&format!("freed {mib} MiB: {blocks} blocks; {links} blobs left the tree"));
    }
    Ok(())
}

pub(super) fn print_json(value: &impl serde::Serialize) {
    // Plain values always serialise.
    print(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// How peers reach the node, and the node them.
fn reached(nat: &api::Nat) -> String {
    let how = match nat.reachability.as_str() {
        "public" => "from outside",
        "private" => "by relays only",
        _ => "not tested yet",
    };
    let mut text =
        format!("reached    {how}; {} peers directly, {} by a relay\n", nat.direct_peers, nat.relayed_peers);
    for address in &nat.relayed_addresses {
        let _ = writeln!(text, "           {address}");
    }
    if nat.reservations_given > 0 {
        let (peers, circuits) = (nat.reservations_given, nat.circuits);
        let _ = writeln!(text, "           a relay for {peers} peers, {circuits} connections passed on");
    }
    text
}

/// What is told of other registries: the cache, who is asked, what is on its way.
fn mirrored(status: &api::Status) -> String {
    let mut text = String::new();
    if let Some(cache) = &status.cache {
        let quota = cache.quota_bytes.map_or_else(
            || "no quota".to_owned(),
            |quota_bytes| format!("of {} that it may take", HumanBytes(quota_bytes)),
        );
        let (live, disk) = (HumanBytes(cache.live_bytes), HumanBytes(cache.disk_bytes));
        let _ = writeln!(text, "cache      {live}, {quota}; {disk} on disk");
    }
    for upstream in &status.upstreams {
        let _ = write!(text, "upstream   {}: {}", upstream.host, upstream.state);
        if let Some(api::RateLimit { remaining, limit }) = &upstream.rate_limit {
            let _ = write!(text, ", {remaining} of {limit} pulls left");
        }
        let error = upstream.error.iter().map(|error| format!("\n           {error}"));
        let _ = writeln!(text, "{}", error.collect::<String>());
    }
    for fill in &status.fills {
        let digest = fill.digest.parse().map_or_else(|_| fill.digest.clone(), |digest| short(&digest));
        let size = fill.size_bytes.map_or_else(|| "?".to_owned(), |size| HumanBytes(size).to_string());
        let from = fill.from.as_deref().unwrap_or("nobody yet");
        let (repository, received) = (&fill.repository, HumanBytes(fill.received_bytes));
        let _ = writeln!(text, "fill       {repository} {digest}, {received} of {size} from {from}");
    }
    text
}

/// A name that is followed: what is served of it, and whether that is still in force.
fn followed(followed: &api::Readonly) -> String {
    let mut text = String::new();
    let root = followed.root.as_deref().unwrap_or("not known yet");
    let age =
        |age: Option<u64>| age.map_or_else(|| "before this run".to_owned(), |age| format!("{age} s ago"));
    let (name, taken) = (&followed.name, age(followed.root_age_s));
    let _ = writeln!(text, "readonly   {name}\n           {root}, taken over {taken}");
    if let Some(sequence) = followed.sequence {
        let confirmed = age(followed.record_age_s);
        let _ = writeln!(text, "           sequence {sequence}, confirmed {confirmed}");
    }
    if let Some(to) = &followed.moved_to {
        let _ = writeln!(text, "           has moved to {to}: put that into storage.ipfs.readonlyipnskeys");
    }
    if let Some(seconds) = followed.expired_for_s {
        let _ = writeln!(
            text,
            "           its record expired {seconds} s ago: what was last known is served, and may be out of date"
        );
    }
    if let Some(error) = &followed.error {
        let _ = writeln!(text, "           {error}");
    }
    text.push_str(&replica(followed));
    text
}

/// What is brought here of a name, and how far that is.
fn replica(followed: &api::Readonly) -> String {
    let api::Replica { whole, blobs, blobs_held, received_bytes, error } = &followed.replica;
    let mut text = match (followed.follow.as_str(), *whole) {
        ("none", _) => return String::new(),
        ("all", false) => {
            let received = HumanBytes(*received_bytes);
            format!("           {blobs_held} of {blobs} blobs are here, {received} came in this run\n")
        }
        ("all", true) => format!("           all of its {blobs} blobs are here\n"),
        (_, true) => "           all tags and manifests are here\n".to_owned(),
        (_, false) => "           not all tags and manifests are here yet\n".to_owned(),
    };
    if let Some(error) = error {
        let _ = writeln!(text, "           {error}");
    }
    text
}

/// Who is asked over HTTP.
fn web(asked: &[api::Web]) -> String {
    let line = |web: &api::Web| {
        let error = web.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        format!("{:<10} {} is {}{error}\n", web.kind, web.url, web.state)
    };
    asked.iter().map(line).collect()
}

/// The embedded node, or the Kubo in its place.
fn network(node: &api::Node) -> String {
    let mut text = String::new();
    let api::Node { peer_id, peers, mesh_peers, announcements_waiting, pubsub_peers, kubo, .. } = node;
    if let Some(api::Kubo { api, version, error }) = kubo {
        let version = version.as_deref().map_or_else(String::new, |version| format!(" {version}"));
        let _ = writeln!(
            text,
            "kubo       {api}: Kubo{version} {peer_id}, {peers} peers, {announcements_waiting} announcements waiting"
        );
        let error = error.iter().map(|error| format!("           {error}\n"));
        text.extend(error);
        text.push_str("mesh       none, nor pubsub and mDNS of our own: they need the embedded node, in whose place Kubo is\n");
        return text;
    }
    let _ = writeln!(
        text,
        "node       {peer_id}, {peers} peers, {mesh_peers} of them in the mesh, {announcements_waiting} announcements waiting"
    );
    let _ = match pubsub_peers {
        Some(peers) => writeln!(text, "pubsub     {peers} peers push new records of names, or take them"),
        None => writeln!(text, "pubsub     off: names are polled"),
    };
    text += &reached(&node.nat);
    text += &web(&node.web);
    text
}

/// The status as a person reads it. Writing to a string cannot fail.
fn readable(status: &api::Status) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "shoal {}, up {} s, {} tasks", status.version, status.uptime_s, status.tasks);
    text.push_str(&network(&status.node));
    match &status.own {
        Some(own) => {
            let sequence =
                own.sequence.map_or_else(|| "none yet".to_owned(), |sequence| sequence.to_string());
            let put = own.published_at.as_deref().unwrap_or("never in this run");
            let _ = writeln!(
                text,
                "own root   {}\n           {}\n           {}, sequence {sequence}, last put {put}",
                own.name, own.root, own.state
            );
            if let Some(error) = &own.error {
                let _ = writeln!(text, "           {error}");
            }
            for name in &own.former_names {
                let _ = writeln!(text, "           the former name {name} leads here");
            }
        }
        None => text.push_str("own root   none: read-only\n"),
    }
    status.readonly.iter().for_each(|name| text.push_str(&followed(name)));
    let store = &status.store;
    let mib = |bytes: u64| bytes >> 20;
    let _ = writeln!(
        text,
        "store      {} blocks, {} MiB, {} MiB on disk",
        store.blocks,
        mib(store.live_bytes),
        mib(store.disk_bytes)
    );
    let _ = write!(text, "{}", mirrored(status));
    let transfers = &status.transfers;
    let _ = write!(
        text,
        "transfers  {} uploads, {} downloads, {} blocks being fetched; {} MiB received, {} MiB sent",
        transfers.uploads,
        transfers.downloads,
        transfers.fetches,
        mib(transfers.received_bytes),
        mib(transfers.sent_bytes)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn a_kubo_is_told_in_the_place_of_the_node() {
        let kubo =
            serde_json::json!({"api": "http://127.0.0.1:5001", "version": "0.43.0", "error": "it is asleep"});
        let node = serde_json::json!({"peer_id": "12D3", "addresses": [], "peers": 2, "mesh_peers": 0,
            "announcements_waiting": 1, "pubsub_peers": null, "kubo": kubo, "nat": {"reachability": "unknown",
                "relayed_addresses": [], "direct_peers": 0, "relayed_peers": 0, "reservations_given": 0, "circuits": 0}});
        let text = network(&serde_json::from_value(node).unwrap());
        assert!(text.starts_with(
            "kubo       http://127.0.0.1:5001: Kubo 0.43.0 12D3, 2 peers, 1 announcements waiting\n"
        ));
        assert!(text.contains("           it is asleep\nmesh       none"), "{text}");
    }

    #[test]
    fn what_is_mirrored_is_told_in_lines() {
        let digest = Digest::sha256(b"x");
        let status = serde_json::json!({
            "version": "0", "uptime_s": 1, "registry": "", "readonly": [], "tasks": 1, "own": null,
            "node": {"peer_id": "", "addresses": [], "peers": 0, "mesh_peers": 0, "announcements_waiting": 0,
                "pubsub_peers": 2, "web": [
                    {"url": "https://r.example/", "kind": "router", "state": "asked", "error": null},
                    {"url": "http://g.example/", "kind": "gateway", "state": "resting", "error": "no route"},
                ],
                "nat": {"reachability": "private", "relayed_addresses": ["/ip4/1.1.1.1/tcp/1"],
                    "direct_peers": 3, "relayed_peers": 4, "reservations_given": 5, "circuits": 6}},
            "store": {"blocks": 0, "live_bytes": 0, "disk_bytes": 0},
            "transfers": {"uploads": 0, "downloads": 0, "fetches": 0, "received_bytes": 0, "sent_bytes": 0},
            "cache": {"live_bytes": 3 << 20, "disk_bytes": 4 << 20, "quota_bytes": 5_u64 << 30},
            "upstreams": [
                {"host": "docker.io", "state": "asked", "error": null, "rate_limit": {"remaining": 9, "limit": 100}},
                {"host": "ghcr.io", "state": "resting", "error": "no route", "rate_limit": null},
            ],
            "fills": [{"repository": "docker.io/library/app", "digest": digest.to_string(),
                "size_bytes": 2 << 20, "received_bytes": 1 << 20, "from": "upstream=docker.io"}],
        });
        let status: api::Status = serde_json::from_value(status).unwrap();
        let lines = [
            "cache      3.00 MiB, of 5.00 GiB that it may take; 4.00 MiB on disk".to_owned(),
            "upstream   docker.io: asked, 9 of 100 pulls left".to_owned(),
            "upstream   ghcr.io: resting".to_owned(),
            "           no route".to_owned(),
            format!(
                "fill       docker.io/library/app {}, 1.00 MiB of 2.00 MiB from upstream=docker.io",
                short(&digest)
            ),
        ];
        assert_eq!(mirrored(&status).lines().collect::<Vec<_>>(), lines);
        assert!(readable(&status).contains(&lines[0]));
        assert!(readable(&status).contains("pubsub     2 peers"));
        assert!(readable(&status).contains("router     https://r.example/ is asked\n"));
        assert!(readable(&status).contains("gateway    http://g.example/ is resting: no route\n"));
        let reached = "reached    by relays only; 3 peers directly, 4 by a relay\n           /ip4/1.1.1.1/tcp/1\n           \
                       a relay for 5 peers, 6 connections passed on\n";
        assert!(readable(&status).contains(reached));
    }
}
