#!/usr/bin/env bash
# mirror.sh [ROW...] - the mirror of other registries beside the registry itself, docker-registry's cache and plain HTTP, on
# one machine, in one run. Upstream is nginx, which serves files, for what is downloaded once; it logs what it was asked.
# Prints lines like versus.sh's.      rows: through warm miss mesh fills      MB=500 RUNS=5 LOG_LEVEL=warn
# Needs tests/clients/install.sh, root and a release build. Only loopback, in a network namespace of its own.
set -euo pipefail
. "$(dirname "$0")/../tests/clients/lib.sh"
ROWS=${*:-through warm miss mesh fills}
offline "$@"
MB=${MB:-500} RUNS=${RUNS:-5}
export LOG_LEVEL=${LOG_LEVEL:-warn}
. "$(dirname "$0")/lib.sh"

scene "mirror: ${MB} MB, medians of $RUNS, $(nproc) cores"
printf '%-52s %10s %10s %-6s %7s    %-5s\n' "" shoal peer unit ratio bar
BLOBS=$W/up/html/v2/bench/app/blobs
mkdir -p "$BLOBS"
nginx_start up

# mirror_config NAME [PEER] - a daemon that mirrors upstream as registry.example; PEER: the address of one of its mesh.
mirror_config() {
  shoal_config "$1" "" ""
  sed -i "s#^p2p:#&\n  peers: [${2:-}]#" "$W/$1/config.yaml"
  printf 'mirror: {registries: {registry.example: {upstream: "http://%s", tagttl: 1h}}}\n' "$up_registry" >>"$W/$1/config.yaml"
}
# mesh_start NAME NAME - two such daemons that trust each other.
mesh_start() {
  local one two name; one=$(free_port) two=$(free_port)
  PORTS=0:$one mirror_config "$1" "/ip4/127.0.0.1/tcp/$two"; PORTS=0:$two mirror_config "$2" "/ip4/127.0.0.1/tcp/$one"
  shoal_start "$1"; shoal_start "$2"
  for name in "$1" "$2"; do
    meets() { [ "$("$SHOAL" status --json --config "$W/$name/config.yaml" | jq .node.mesh_peers)" = 1 ]; }
    wait_for 20 "$name meets its peer" meets
  done
}
# upstream_blob - a new blob at upstream; prints its digest.
upstream_blob() { local d; d=$(fresh_blob "$W/fresh"); mv "$W/fresh" "$BLOBS/$d"; sync; echo "$d"; }
get_mirrored() { curl -sf -o /dev/null "http://$1/v2/bench/app/blobs/$2?ns=registry.example" || fail "blob $2 did not come whole"; }
get_four() { local n pids=(); for n in 1 2 3 4; do get_mirrored "$1" "$2" & pids+=($!); done; wait "${pids[@]}"; }
gets_of() { grep -c "GET [^ ]*$1" "$W/up/access"; }

for wanted in $ROWS; do case $wanted in
through)
  mirror_config a; shoal_start a
  for clients in get_mirrored get_four; do
    ours() { local d; d=$(upstream_blob); seconds $clients "$a_registry" "$d"; echo "$(gets_of "$d")" >>"$W/gets"; rm "$BLOBS/$d"; }
    theirs() { local d; d=$(upstream_blob); seconds get_blob "$up_registry" "$d"; rm "$BLOBS/$d"; }
    : >"$W/gets"
    in_turn ours theirs; row "pull-through $MB MB, $clients / one direct" "$A" "$B" s lower 0.95
    limit "requests upstream for each, at most" "$(sort -n "$W/gets" | tail -1)" "" 1.5
  done
  # The same from an upstream that sends 1 Gbit/s.
  sed -i 's#sendfile on;#& limit_rate 119m;#' "$W/up/nginx.conf"; kill -HUP "$up_pid"; sleep 1
  ours() { local d; d=$(upstream_blob); seconds get_mirrored "$a_registry" "$d"; rm "$BLOBS/$d"; }
  in_turn ours theirs; row "pull-through $MB MB of 1 Gbit/s / direct" "$A" "$B" s lower 0.95
  sed -i 's# limit_rate 119m;##' "$W/up/nginx.conf"; kill -HUP "$up_pid"; sleep 1
  first() { curl -sf -o /dev/null -w '%{time_starttransfer}\n' "$1"; }
  for n in $(seq 20); do
    head -c 2000000 /dev/urandom >"$W/fresh"; d=sha256:$(sha256sum "$W/fresh" | cut -d' ' -f1); mv "$W/fresh" "$BLOBS/$d"
    echo "$(first "http://$a_registry/v2/bench/app/blobs/$d?ns=registry.example") $(first "http://$up_registry/v2/bench/app/blobs/$d")"
  done | awk '{print ($1 - $2) * 1000}' | median >"$W/first"
  limit "first byte, after upstream's" "$(cat "$W/first")" ms 20
  shoal_stop a
  ;;
warm)
  registry_start r
  mkdir -p "$W/cache"
  port=$(free_port)
  printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "%s"}}\nhttp: {addr: "127.0.0.1:%s"}\nproxy: {remoteurl: "http://%s"}\n' \
    "$W/cache" "$port" "$r_registry" >"$W/cache.yml"
  docker-registry serve "$W/cache.yml" >"$W/cache.log" 2>&1 & PIDS+=($!)
  wait_for 10 "docker-registry starts as a cache" curl -sf -o /dev/null "http://127.0.0.1:$port/v2/"
  d=$(fresh_blob "$W/fresh"); push_blob "$r_registry" "$W/fresh" "$d" PUT; mkdir -p "$BLOBS"; mv "$W/fresh" "$BLOBS/$d"
  mirror_config w; shoal_start w
  ours() { seconds get_mirrored "$w_registry" "$d"; }; theirs() { seconds get_blob "127.0.0.1:$port" "$d"; }
  for _ in 1 2; do ours >/dev/null; theirs >/dev/null; sleep 1; done
  in_turn ours theirs; row "warm $MB MB / docker-registry's cache" "$A" "$B" s lower 1
  shoal_stop w
  ;;
miss)
  mesh_start b c
  asked() { curl -s -o /dev/null -w '%{time_total}\n' "$1"; }
  for n in $(seq 200); do
    d=sha256:$(sha256sum <<<"$n" | cut -d' ' -f1)
    echo "$(asked "http://$c_registry/v2/bench/app/blobs/$d?ns=registry.example") $(asked "http://$up_registry/v2/bench/app/blobs/$d")"
  done | awk '{print ($1 - $2) * 1000}' | sort -g | awk '{v[NR] = $1} END {print v[int(NR * 0.99)]}' >"$W/late"
  limit "miss that upstream refuses, later than it, p99" "$(cat "$W/late")" ms 20
  shoal_stop c; shoal_stop b
  ;;
mesh)
  mesh_start d e
  # The one that is meant to fetch a blob may be either: such that the first has fetched count.
  is_elsewhere() { curl -sfI "http://$e_registry/v2/bench/app/blobs/$1?ns=registry.example" | grep -i '^x-shoal-source:' | grep -qv cache; }
  ours() {
    local blob n
    for n in $(seq 20); do
      blob=$(upstream_blob); get_mirrored "$d_registry" "$blob"; get_mirrored "$d_registry" "$blob"; sync
      if is_elsewhere "$blob"; then break; fi
      rm "$BLOBS/$blob"; [ "$n" -lt 20 ] || fail "the second has fetched all blobs itself"
    done
    seconds get_mirrored "$e_registry" "$blob"; echo "$blob" >"$W/last"; gets_of "$blob" >>"$W/peer_gets"
  }
  theirs() { seconds get_mirrored "$d_registry" "$(cat "$W/last")"; rm "$BLOBS/$(cat "$W/last")"; }
  in_turn ours theirs; row "blob of a mesh peer $MB MB / HTTP from that peer" "$A" "$B" s lower 0.8
  limit "requests upstream for each, at most" "$(sort -n "$W/peer_gets" | tail -1)" "" 1.5
  shoal_stop e; shoal_stop d
  ;;
fills)
  mirror_config f; shoal_start f
  digests=() pids=()
  for n in $(seq 8); do
    head -c $((1 << 30)) /dev/urandom >"$W/gib"; d=sha256:$(sha256sum "$W/gib" | cut -d' ' -f1); mv "$W/gib" "$BLOBS/$d"; digests+=("$d")
  done
  for n in $(seq 50); do get_mirrored "$f_registry" "${digests[n % 8]}" & pids+=($!); done
  wait "${pids[@]}"
  limit "memory, peak, 8 fills of 1 GiB, 50 followers" "$(awk '$1 == "VmHWM:" {print $2 / 1024}' "/proc/$f_pid/status")" MiB 256
  shoal_stop f
  ;;
esac; done
