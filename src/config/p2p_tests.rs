//! The section `p2p`, as far as it is switches and relays.

use super::tests::{error, load};

#[test]
fn a_node_that_listens_nowhere_looks_for_nobody() {
    assert!(load("", &[]).unwrap().0.p2p.mdns);
    assert!(!load("p2p: {mdns: false}", &[]).unwrap().0.p2p.mdns);
    assert!(!load("p2p: {listen: []}", &[]).unwrap().0.p2p.mdns);
}

#[test]
fn the_way_through_nats_is_on_for_who_listens() {
    let p2p = |yaml: &str| load(yaml, &[]).unwrap().0.p2p;
    let default = p2p("");
    assert!(default.nat && default.upnp && !default.relay && default.relays.is_empty());
    for off in ["p2p: {nat: false}", "p2p: {listen: []}"] {
        assert!(!p2p(off).nat && !p2p(off).upnp, "{off}");
    }
    assert!(!p2p("p2p: {upnp: false}").upnp);
    assert!(p2p("p2p: {relay: true}").relay);
    let relay = "/dns4/relay.example.org/tcp/4001/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    assert_eq!(p2p(&format!("p2p: {{relays: [{relay}]}}")).relays, [relay.parse().unwrap()]);
    let quic = relay.replace("tcp/4001", "udp/4001/quic-v1");
    for (yaml, line) in [
        ("p2p: {relays: [/ip4/8.8.8.8/tcp/4001]}".to_owned(), "a relay's own multiaddr with /p2p/"),
        (format!("p2p: {{relays: [{relay}/p2p-circuit]}}"), "a relay's own multiaddr with /p2p/"),
        (format!("p2p: {{nat: false, relays: [{relay}]}}"), "no relay is asked while p2p.nat is false"),
        (format!("p2p: {{swarmkey: k, relays: [{quic}]}}"), "a private network (p2p.swarmkey) has no QUIC"),
    ] {
        let error = error(&yaml);
        assert!(error.starts_with("config key p2p.relays[0] = ") && error.contains(line), "{error}");
    }
    assert_eq!(
        error("p2p: {relay: true, listen: []}"),
        "config key p2p.relay = \"true\": a relay has to be reached: an address is expected in p2p.listen"
    );
}

#[test]
fn filtered_networks_are_read_as_kubo_and_as_everybody_else_writes_them() {
    let yaml = "p2p: {addressfilters: [/ip4/10.0.0.0/ipcidr/8, 192.168.0.0/16, /ip6/fd00::/ipcidr/8]}";
    let (config, _) = load(yaml, &[]).unwrap();
    let networks: Vec<String> = config.p2p.filters.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"]);
    for wrong in
        ["10.0.0.0", "10.0.0.0/33", "/ip4/10.0.0.0", "/ip6/10.0.0.0/ipcidr/8", "/ip4/10.0.0.0/ipcidr/8/tcp/1"]
    {
        let line = error(&format!("p2p: {{addressfilters: [{wrong}]}}"));
        let said = format!("config key p2p.addressfilters[0] = {wrong:?}: a network is expected");
        assert!(line.starts_with(&said), "{line}");
    }
}
