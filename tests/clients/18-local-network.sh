#!/usr/bin/env bash
# Two daemons that know nothing of each other but the key of their private network find each other by multicast, and one
# without the key stays outside.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "18: a private network that finds itself"
# An interface with multicast, which loopback has not.
ip link add mesh0 type bridge; ip link set mesh0 up; ip addr add 10.9.0.1/24 dev mesh0
printf '/key/swarm/psk/1.0.0/\n/base16/\n%s\n' "$(head -c 32 /dev/urandom | xxd -p -c 64)" >"$W/swarm.key"

start() {
  shoal_config "$1" "" ""
  sed -i -e "s#^  listen: .*#  listen: [/ip4/10.9.0.1/tcp/0]#; s#^  mdns: false#  mdns: true\n  swarmkey: \"$2\"#" "$W/$1/config.yaml"
  shoal_start "$1"
}
node() { "$SHOAL" status --json --config "$W/$1/config.yaml" | jq -e ".node | $2" >/dev/null; }

start a "$W/swarm.key"; start b "$W/swarm.key"; start stranger ""
wait_for 60 "a has b in its mesh" node a ".mesh_peers == 1"
wait_for 60 "b has a in its mesh" node b ".mesh_peers == 1"
node stranger ".peers == 0" || fail "who has no key is connected"
shoal_stop b
wait_for 30 "a has lost b" node a ".mesh_peers == 0"
shoal_start b
wait_for 60 "a has b again" node a ".mesh_peers == 1"
