#!/usr/bin/env bash
# Five daemons, each a publisher that all others read, are parted into two and three. Both sides push; when the network is
# whole again, every daemon serves every push.
set -euo pipefail
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "26: a partition"
# Namespaces that nobody else sees; two bridges with one link between them.
mkdir -p /run/netns; mount -t tmpfs none /run/netns
for side in west east; do ip link add $side type bridge; ip link set $side up; done
ip link add joint type veth peer name tnioj
ip link set joint master west up; ip link set tnioj master east up

nodes=(n1 n2 n3 n4 n5)
side_of() { if [ "${1#n}" -le 2 ]; then echo west; else echo east; fi; }
inside() { ip netns exec "$@"; }
registry() { local registry=${1}_registry; echo "${!registry}"; }
# start NODE READONLY - with BOOTSTRAP=…
start() {
  shoal_config "$1" "${BOOTSTRAP:-}" "$2"
  sed -i "s#^  listen: .*#  listen: [/ip4/10.9.0.${1#n}/tcp/4001, /ip4/10.9.0.${1#n}/udp/4001/quic-v1]#" "$W/$1/config.yaml"
  printf '#!/bin/sh\nexec ip netns exec %s %s "$@"\n' "$1" "$SHOAL" >"$W/$1/shoal"; chmod +x "$W/$1/shoal"
  SHOAL=$W/$1/shoal shoal_start "$1"
}
push_in() { inside "$1" skopeo copy -q --dest-tls-verify=false "oci:$2" "docker://$(registry "$1")/$3"; }
serves() { [ "$(inside "$1" timeout 10 skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$(registry "$1")/$2")" = "$3" ]; }
# all_serve SECONDS - each node has the last push of each.
all_serve() {
  local reader writer end=$((SECONDS + $1))
  for reader in "${nodes[@]}"; do
    for writer in "${nodes[@]}"; do
      wait_for "$((end > SECONDS ? end - SECONDS : 1))" "$reader serves what $writer pushed" \
        serves "$reader" "$writer/app:$tag" "${pushed[$writer]}"
    done
  done
}
push_all() { # TAG
  local node; tag=$1
  for node in "${nodes[@]}"; do
    image "$W/img-$node" "$tag" --seed "$node-$tag" --layers 1 --kib 200
    pushed[$node]=$DIGEST
    push_in "$node" "$W/img-$node:$tag" "$node/app:$tag"
  done
}

declare -A pushed
for node in "${nodes[@]}"; do
  ip netns add "$node"; ip -n "$node" link set lo up
  ip link add "$node-i" type veth peer name eth0 netns "$node"; ip link set "$node-i" master "$(side_of "$node")" up
  ip -n "$node" addr add "10.9.0.${node#n}/24" dev eth0; ip -n "$node" link set eth0 up
  start "$node" ""
done
# While a name is not resolved nobody can be told that a blob is nowhere, which is what skopeo asks before it pushes.
push_all before
# Their names are known now.
for node in "${nodes[@]}"; do
  shoal_stop "$node"
  names=() peers=()
  for other in "${nodes[@]}"; do
    [ "$other" != "$node" ] || continue
    ipns=${other}_ipns p2p=${other}_p2p
    names+=("${!ipns}"); peers+=("${!p2p}")
  done
  BOOTSTRAP=$(IFS=,; echo "${peers[*]}") start "$node" "$(IFS=,; echo "${names[*]}")"
done
all_serve 60
say "five daemons serve what each pushed"

ip link set joint down
push_all apart
# Long enough for every connection across to be given up.
sleep 60
serves n1 n5/app:apart "${pushed[n5]}" && fail "the network is not parted"
serves n1 n2/app:apart "${pushed[n2]}" || fail "one side does not serve its own side"
ip link set joint up
healed=$SECONDS
# A dead connection is noticed within a minute of its end, and made anew within ten seconds.
all_serve 60
say "whole again, all serve all pushes after $((SECONDS - healed)) s"
tag=before
for node in "${nodes[@]}"; do
  image "$W/img-$node" before --seed "$node-before" --layers 1 --kib 200
  pushed[$node]=$DIGEST
done
all_serve 20
