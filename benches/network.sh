#!/usr/bin/env bash
# network.sh [ROW...] - transfer between nodes beside Kubo, in one run: between the two, over a long line, from many at once,
# names, and small files. Prints lines like versus.sh's.
#   rows: mixed line many names small      MB=500 RUNS=3 NODES=30 LOG_LEVEL=warn
# The rows "line" and "many" have the line itself, or one peer, on the other side. What is read is new in each run.
# Needs tests/clients/install.sh, root and a release build. Only loopback and namespaces of its own.
set -euo pipefail
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/../tests/clients/lib.sh"
ROWS=${*:-mixed line many names small}
offline "$@"
MB=${MB:-500} RUNS=${RUNS:-3} NODES=${NODES:-30}
export LOG_LEVEL=${LOG_LEVEL:-warn} PROFILE=unixfs-v1-2025
. "$(dirname "$0")/lib.sh"
# Namespaces that nobody else sees.
mkdir -p /run/netns; mount -t tmpfs none /run/netns

scene "network: ${MB} MB, medians of $RUNS, $(nproc) cores"
printf '%-52s %10s %10s %-6s %7s    %-5s\n' "" shoal peer unit ratio bar

data_path() { local hex=${1#sha256:}; echo "docker/registry/v2/blobs/sha256/${hex:0:2}/$hex/data"; }
root_of() { "$SHOAL" status --json --config "$W/$1/config.yaml" | jq -r .own.root; }
# inside_start NAMESPACE ADDRESS BOOTSTRAP READONLY [KEY] - a daemon named like its namespace.
inside_start() {
  KEY=${5-self} shoal_config "$1" "$3" "$4"
  sed -i "s#^  listen: .*#  listen: [/ip4/$2/tcp/4001, /ip4/$2/udp/4001/quic-v1]#" "$W/$1/config.yaml"
  printf '#!/bin/sh\nexec ip netns exec %s %s "$@"\n' "$1" "$SHOAL" >"$W/$1/shoal"; chmod +x "$W/$1/shoal"
  SHOAL=$W/$1/shoal shoal_start "$1"
}
inside_get() { ip netns exec "$1" curl -sf -o /dev/null "http://$2/v2/bench/app/blobs/$3"; }
has_inside() { ip netns exec "$1" curl -sfI "http://$2/v2/bench/app/blobs/$3" >/dev/null; }
line_seconds() { awk -v mb="$1" -v mbit="$2" 'BEGIN {print mb * 8 / mbit}'; }
limited() { ip netns exec "$1" tc qdisc replace dev "$2" root tbf rate "$3mbit" burst 256kb latency 200ms; }

# layout COUNT BYTES - a new OCI layout of one image in $W/layout, with so many layers of this size; prints the digest of the first.
layout() {
  rm -rf "$W/layout"; mkdir -p "$W/layout/blobs/sha256"
  python3 - "$W/layout" "$1" "$2" <<'P'
import hashlib, json, os, sys
def blob(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    with open(f"{sys.argv[1]}/blobs/sha256/{digest}", "wb") as file: file.write(data)
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}
layers = [blob(os.urandom(int(sys.argv[3])), "layer.v1.tar") for _ in range(int(sys.argv[2]))]
manifest = {"schemaVersion": 2, "config": blob(b"{}", "config.v1+json"), "layers": layers}
index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
for name, what in (("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
    with open(f"{sys.argv[1]}/{name}", "w") as file: json.dump(what, file)
print(layers[0]["digest"])
P
}

for wanted in $ROWS; do case $wanted in
mixed)
  shoal_config a "" ""; shoal_start a
  for k in k1 k2; do kubo_start $k; done
  kubo k2 swarm connect "$k1_p2p" >/dev/null; kubo k2 swarm connect "$a_p2p" >/dev/null
  KEY="" shoal_config b "$k1_p2p" ""; shoal_start b
  kubos() { fresh_blob "$W/fresh" >/dev/null; local cid; cid=$(kubo k1 add -Q "$W/fresh"); sync; seconds kubo k2 cat "$cid"; }
  from_kubo() {
    local cid digest
    digest=$(layout 1 $((MB * 1000000)))
    cid=$(kubo k1 add -Q -r "$W/layout"); sync
    seconds curl -sf -o "$W/got" "http://$b_registry/v2/ipfs/$cid/blobs/$digest"
    [ "$(stat -c %s "$W/got")" = $((MB * 1000000)) ] || fail "the blob did not come whole"
    rm "$W/got"
  }
  to_kubo() {
    local d; d=$(fresh_blob "$W/fresh"); push_blob "$a_registry" "$W/fresh" "$d" PUT
    seen() { kubo k2 ls --timeout 5s "$(dirname "/ipfs/$(root_of a)/$(data_path "$d")")" >/dev/null; }
    wait_for 20 "the root has the blob" seen; sync
    seconds kubo k2 cat "/ipfs/$(root_of a)/$(data_path "$d")"
  }
  in_turn from_kubo kubos; row "cold $MB MB, Kubo to daemon / Kubo to Kubo" "$A" "$B" s lower 1
  in_turn to_kubo kubos; row "cold $MB MB, daemon to Kubo / Kubo to Kubo" "$A" "$B" s lower 1
  shoal_stop b; shoal_stop a; stop "$k1_pid"; stop "$k2_pid"
  ;;
line)
  # 40 ms there and back, 100 Mbit/s.
  for end in near far; do ip netns add $end; ip -n $end link set lo up; done
  python3 "$(dirname "$0")/delay.py" 20 near 10.8.0.1/24 far 10.8.0.2/24 >"$W/delay" & PIDS+=($!)
  wait_for 10 "the line is there" grep -q ready "$W/delay"
  for end in near far; do limited $end wan 100; done
  inside_start near 10.8.0.1 "" ""
  inside_start far 10.8.0.2 "$near_p2p" "$near_ipns" ""
  far() {
    local d; d=$(MB=60 fresh_blob "$W/fresh")
    ip netns exec near bash -c '. "$0"; push_blob "$@"' "$(dirname "$0")/lib.sh" "$near_registry" "$W/fresh" "$d" PUT
    wait_for 20 "the reader knows the blob" has_inside far "$far_registry" "$d"
    seconds inside_get far "$far_registry" "$d"
  }
  itself() { line_seconds 60 100; }
  in_turn far itself; row "cold 60 MB, 40 ms, 100 Mbit/s / the line itself" "$A" "$B" s lower 0.85
  shoal_stop far; shoal_stop near
  ;;
many)
  ip link add many type bridge; ip link set many up
  holders=(h1 h2 h3 h4)
  for n in 1 2 3 4 5; do
    name=h$n; [ "$n" -lt 5 ] || name=reader
    ip netns add $name; ip -n $name link set lo up
    ip link add $name-i type veth peer name eth0 netns $name; ip link set $name-i master many up
    ip -n $name addr add "10.7.0.$n/24" dev eth0; ip -n $name link set eth0 up
  done
  inside_start h1 10.7.0.1 "" ""
  digest=$(MB=60 fresh_blob "$W/fresh")
  ip netns exec h1 bash -c '. "$0"; push_blob "$@"; curl -sf -X PUT -H "Content-Type: application/vnd.oci.image.manifest.v1+json" -d "$5" -o /dev/null "http://$1/v2/bench/app/manifests/1"' \
    "$(dirname "$0")/lib.sh" "$h1_registry" "$W/fresh" "$digest" PUT \
    "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"$digest\",\"size\":60000000},\"layers\":[]}"
  for n in 2 3 4; do
    inside_start h$n "10.7.0.$n" "$h1_p2p" "$h1_ipns" ""
    registry=h${n}_registry
    wait_for 20 "h$n knows the blob" has_inside h$n "${!registry}" "$digest"
    inside_get h$n "${!registry}" "$digest"
  done
  for name in "${holders[@]}"; do limited $name eth0 50; done
  # reads PEER... - a reader that knows nothing else reads it from these.
  reads() {
    local known="" peer
    for peer in "$@"; do peer=${peer}_p2p; known+=${known:+,}${!peer}; done
    rm -rf "$W/reader"; inside_start reader 10.7.0.5 "$known" "$h1_ipns" ""
    wait_for 20 "the reader knows the blob" has_inside reader "$reader_registry" "$digest"
    seconds inside_get reader "$reader_registry" "$digest"
    shoal_stop reader
  }
  four() { reads h1 h2 h3 h4; }
  for n in $(seq "$RUNS"); do four; done | median >"$W/four"
  for name in h2 h3 h4; do shoal_stop $name; done
  one() { reads h1; }
  for n in $(seq "$RUNS"); do one; done | median >"$W/one"
  row "cold 60 MB, of four with 50 Mbit/s each / of one" "$(cat "$W/four")" "$(cat "$W/one")" s lower 3.2
  shoal_stop h1
  ;;
names)
  # Each knows the first; the last asks for the name of the second.
  shoal_config s1 "" ""; shoal_start s1
  for n in $(seq 2 "$NODES"); do shoal_config "s$n" "$s1_p2p" ""; shoal_start "s$n"; done
  blob=$(MB=1 fresh_blob "$W/fresh"); push_blob "$s2_registry" "$W/fresh" "$blob" PUT
  wait_for 60 "the name of the second is published" "$SHOAL" name resolve --config "$W/s$NODES/config.yaml" "$s2_ipns"
  ours() { seconds "$SHOAL" name resolve --config "$W/s$(($1 + 2))/config.yaml" "$s2_ipns"; }
  for n in $(seq "$RUNS"); do ours "$n"; done | median >"$W/ours"
  for n in $(seq "$NODES"); do shoal_stop "s$n"; done
  for n in $(seq "$NODES"); do kubo_start "q$n"; [ "$n" = 1 ] || kubo "q$n" swarm connect "$q1_p2p" >/dev/null; done
  kubo q2 name publish "/ipfs/$(kubo q2 add -Q "$0")" >/dev/null
  theirs() { seconds kubo "q$(($1 + 2))" name resolve --nocache "$q2_peer"; }
  for n in $(seq "$RUNS"); do theirs "$n"; done | median >"$W/theirs"
  row "resolve a name among $NODES nodes / Kubo's" "$(cat "$W/ours")" "$(cat "$W/theirs")" s lower 1
  for n in $(seq "$NODES"); do pid=q${n}_pid; stop "${!pid}"; done
  ;;
small)
  shoal_config c "" ""; shoal_start c
  KEY="" shoal_config d "$c_p2p" ""; shoal_start d
  for k in k3 k4; do kubo_start $k; done
  kubo k4 swarm connect "$k3_p2p" >/dev/null
  ours() {
    local cid; layout 4096 4096 >/dev/null
    cid=$("$SHOAL" layout add --config "$W/c/config.yaml" --json "$W/layout" | jq -r 'select(.cid?) | .cid' | tail -1)
    for file in "$W"/layout/blobs/sha256/*; do
      printf 'url = "http://%s/v2/ipfs/%s/blobs/sha256:%s"\noutput = /dev/null\n' "$d_registry" "$cid" "${file##*/}"
    done >"$W/urls"
    sync; seconds curl -sf --no-progress-meter -Z --parallel-max 32 -K "$W/urls"
  }
  # A pin fetches many blocks at a time; `get` takes one after the other, and forty times as long.
  theirs() { local cid; layout 4096 4096 >/dev/null; cid=$(kubo k3 add -Q -r "$W/layout"); sync; seconds kubo k4 pin add "$cid"; }
  in_turn ours theirs; row "cold 4096 files of 4 KiB / Kubo to Kubo" "$A" "$B" s lower 3
  shoal_stop d; shoal_stop c; stop "$k3_pid"; stop "$k4_pid"
  ;;
*) fail "no row $wanted" ;;
esac; done
