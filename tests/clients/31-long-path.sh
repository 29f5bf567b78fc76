#!/usr/bin/env bash
# On a long path QUIC is taken: of two daemons 40 ms apart there and back one knows addresses of both kinds of the other.
# They are public ones, in namespaces of their own; in a local network the first that answers is taken.
set -euo pipefail
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "31: a long path"
# Namespaces that nobody else sees.
mkdir -p /run/netns; mount -t tmpfs none /run/netns
for end in near far; do ip netns add $end; ip -n $end link set lo up; done
python3 "$REPO/benches/delay.py" 20 near 5.0.0.1/24 far 5.0.0.2/24 >"$W/delay" & PIDS+=($!)
wait_for 60 "the line is there" grep -q ready "$W/delay"

# start NAMESPACE ADDRESS BOOTSTRAP READONLY
start() {
  shoal_config "$1" "$3" "$4"
  sed -i "s#^  listen: .*#  listen: [/ip4/$2/tcp/4001, /ip4/$2/udp/4001/quic-v1]#" "$W/$1/config.yaml"
  printf '#!/bin/sh\nexec ip netns exec %s %s "$@"\n' "$1" "$SHOAL" >"$W/$1/shoal"; chmod +x "$W/$1/shoal"
  SHOAL=$W/$1/shoal shoal_start "$1"
}
start near 5.0.0.1 "" ""
both=$(field "$(grep '^ready ' "$W/near/out")" p2p)
[[ $both == */tcp/* && $both == */quic-v1/* ]] || fail "near does not listen on both: $both"
image "$W/image" 1 --layers 1 --kib 500
ip netns exec near skopeo copy -q --dest-tls-verify=false "oci:$W/image:1" "docker://$near_registry/library/app:1"
start far 5.0.0.2 "$both" "$near_ipns"
wait_for 60 "far pulls" ip netns exec far skopeo copy -q --src-tls-verify=false "docker://$far_registry/library/app:1" "dir:$W/pulled"
# near may have come back from a port of its own, to test whether far is reached.
over_tcp=$(ip netns exec far ss -Htn state established "( dport = :4001 )")
[ -z "$over_tcp" ] || fail "they are connected over TCP: $over_tcp"
"$SHOAL" status --json --config "$W/far/config.yaml" | jq -e '.node.peers == 1' >/dev/null || fail "far is not connected"
say "connected over QUIC"
