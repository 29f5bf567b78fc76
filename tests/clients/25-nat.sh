#!/usr/bin/env bash
# Two daemons behind NATs of their own find each other through a relay: while nothing passes between them they exchange an
# image by it, else directly. What a publisher has left behind they give each other.
set -euo pipefail
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "25: behind NATs"
# Namespaces that nobody else sees.
mkdir -p /run/netns; mount -t tmpfs none /run/netns

# The internet is a bridge. Home routers forward with MASQUERADE and drop what nobody asked for.
ip link add inet type bridge; ip link set inet up
host() { # NAME ADDRESS - a host in the internet
  ip netns add "$1"; ip -n "$1" link set lo up
  ip link add "$1-i" type veth peer name wan netns "$1"; ip link set "$1-i" master inet up
  ip -n "$1" addr add "$2/24" dev wan; ip -n "$1" link set wan up
}
home() { # NAME NUMBER - a router with a public address, and the host NAME behind it
  host "r$1" "203.0.113.2$2"
  ip netns add "$1"; ip -n "$1" link set lo up
  ip -n "r$1" link add lan type veth peer name eth0 netns "$1"
  ip -n "r$1" addr add "10.0.$2.1/24" dev lan; ip -n "r$1" link set lan up
  ip -n "$1" addr add "10.0.$2.2/24" dev eth0; ip -n "$1" link set eth0 up
  ip -n "$1" route add default via "10.0.$2.1"
  ip netns exec "r$1" sysctl -qw net.ipv4.ip_forward=1
  rule "r$1" -t nat -A POSTROUTING -o wan -j MASQUERADE
  for chain in INPUT FORWARD; do
    rule "r$1" -A $chain -i wan -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    rule "r$1" -A $chain -i wan -j DROP
  done
}
rule() { ip netns exec "$1" iptables "${@:2}"; }
host hub 203.0.113.10
home a 1; home b 2

# daemon NAME ADDRESS READONLY [P2P...] - a daemon in its namespace; it knows the hub.
daemon() {
  local name=$1 address=$2 readonly=$3; shift 3
  shoal_config "$name" "${hub_p2p:-}" "$readonly"
  sed -i "s#^  listen: .*#  listen: [/ip4/$address/tcp/4001, /ip4/$address/udp/4001/quic-v1]#" "$W/$name/config.yaml"
  printf '  %s\n' "$@" >>"$W/$name/config.yaml"
  IN=$name start_in "$name"
}
start_in() {
  # shellcheck disable=SC2030
  (printf '#!/bin/sh\nexec ip netns exec %s %s "$@"\n' "$IN" "$SHOAL" >"$W/$1/shoal"; chmod +x "$W/$1/shoal")
  SHOAL=$W/$1/shoal shoal_start "$1"
}
node() { "$SHOAL" status --json --config "$W/$1/config.yaml" | jq -e ".node.nat | $2"; }
has() { node "$1" "$2" >/dev/null; }
inside() { ip netns exec "$@"; }
registry() { local registry=${1}_registry; echo "${!registry}"; }
push_in() { inside "$1" skopeo copy -q --dest-tls-verify=false "oci:$2" "docker://$(registry "$1")/$3"; }
served() { rm -rf "$W/pulled"; timeout 60 ip netns exec "$1" skopeo copy -q --src-tls-verify=false "docker://$(registry "$1")/$2" "oci:$W/pulled:x"; }
# What the hub has passed on so far, in KiB.
hub_kib() { echo $(($(ip -j -s link show hub-i | jq '.[0].stats64.rx.bytes') / 1024)); }

daemon hub 203.0.113.10 "" "relay: true" "upnp: false"
has hub '.reachability == "public"' || fail "the hub does not count as public"
daemon a 0.0.0.0 "" "relays: [$hub_p2p]" "upnp: false"
wait_for 60 "a has a relay" has a '.relayed_addresses | length == 1'
wait_for 60 "a is told that it is not reached" has a '.reachability == "private"'

image "$W/img" 1 --seed nat-1 --layers 4 --kib 1024; push_in a "$W/img:1" library/app:1
# While nothing passes between the two homes, all goes by the relay.
rule ra -I FORWARD -d 203.0.113.22 -j DROP; rule rb -I FORWARD -d 203.0.113.21 -j DROP
daemon b 0.0.0.0 "$a_ipns" "relays: [$hub_p2p]" "upnp: false"
before=$(hub_kib)
wait_for 90 "b pulls by the relay" served b library/app:1
has b '.relayed_peers == 1' || fail "b does not say that it is relayed: $(node b .)"
relayed=$(($(hub_kib) - before))
[ "$relayed" -gt 4096 ] || fail "only $relayed KiB passed the relay"
say "by the relay: $relayed KiB passed it"

shoal_stop b; rm -rf "$W/b/data"
rule ra -D FORWARD -d 203.0.113.22 -j DROP; rule rb -D FORWARD -d 203.0.113.21 -j DROP
image "$W/img" 2 --seed nat-2 --layers 4 --kib 1024; push_in a "$W/img:2" library/app:2
daemon b 0.0.0.0 "$a_ipns" "relays: [$hub_p2p]" "upnp: false"
for name in a b; do wait_for 90 "$name has a direct connection" has $name '.relayed_peers == 0 and .direct_peers == 2'; done
wait_for 30 "the relay has nothing to pass on any more" has hub '.circuits == 0'
before=$(hub_kib)
wait_for 90 "b pulls directly" served b library/app:2
direct=$(($(hub_kib) - before))
[ "$direct" -lt 1024 ] || fail "$direct KiB passed the relay though the connection is direct"
has b '.relayed_peers == 0' || fail "b is relayed again: $(node b .)"
say "directly: $direct KiB passed the relay"

# A publisher with a public address; one reader has its image when it goes, and gives it to the other.
shoal_stop a; shoal_stop b
host pub 203.0.113.30
daemon pub 203.0.113.30 "" "upnp: false"
image "$W/img" 3 --seed nat-3 --layers 4 --kib 1024; push_in pub "$W/img:3" library/app:3
name=$pub_ipns
daemon a 0.0.0.0 "$name" "relays: [$hub_p2p]" "upnp: false"
wait_for 90 "a pulls from the publisher" served a library/app:3
wait_for 60 "a has a relay again" has a '.relayed_addresses | length == 1'
shoal_kill pub
daemon b 0.0.0.0 "$name" "relays: [$hub_p2p]" "upnp: false"
wait_for 120 "b pulls what a reader has" served b library/app:3
say "a reader behind a NAT gave another one what the publisher had left"
