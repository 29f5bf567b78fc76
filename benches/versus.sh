#!/usr/bin/env bash
# versus.sh [ROW...] - Shoal beside its peers on one machine, in one run: docker-registry, Kubo, a bare libp2p stream.
# Prints a line per row: the median of RUNS runs of each side, and their ratio (above 1: Shoal is better).
#   rows: get push manifests cold commit memory      MB=500 RUNS=5
# Needs tests/clients/install.sh, root and a release build. Only loopback, in a network namespace of its own.
set -euo pipefail
. "$(dirname "$0")/../tests/clients/lib.sh"; offline "$@"
MB=${MB:-500} RUNS=${RUNS:-5}
ROWS=${*:-get push manifests cold commit memory}
TAGS_MANY=${TAGS_MANY:-100000}

median() { sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
# seconds COMMAND... - the wall time of a command.
seconds() { local from=$EPOCHREALTIME; "$@" >/dev/null; awk -v a="$from" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.4f\n", b - a}'; }
# row NAME OURS THEIRS UNIT higher|lower - ratio above 1: ours is better.
row() {
  awk -v n="$1" -v a="$2" -v b="$3" -v u="$4" -v dir="$5" 'BEGIN {
    printf "%-44s %10.4g %10.4g %-7s %6.2fx\n", n, a, b, u, dir == "lower" ? b / a : a / b }'
}
in_turn() { # in_turn OURS THEIRS - runs two functions in turn, RUNS times; sets A and B to the medians of what they print.
  local n a=() b=()
  for n in $(seq "$RUNS"); do a+=("$($1 "$n")"); b+=("$($2 "$n")"); done
  A=$(printf '%s\n' "${a[@]}" | median); B=$(printf '%s\n' "${b[@]}" | median)
}

fresh_blob() { head -c $((MB * 1000000)) /dev/urandom >"$1"; echo "sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
location() { curl -sf -X POST -D - -o /dev/null "http://$1/v2/$2/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p' | sed "s#^/#http://$1/#"; }
with_digest() { case $1 in *\?*) echo "$1&digest=$2" ;; *) echo "$1?digest=$2" ;; esac; }
# push_blob REGISTRY FILE DIGEST PATCH|PUT
push_blob() {
  local at; at=$(location "$1" bench/app)
  if [ "$4" = PATCH ]; then
    at=$(curl -sf -X PATCH -H 'Content-Type: application/octet-stream' -T "$2" -D - -o /dev/null "$at" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p' | sed "s#^/#http://$1/#")
    curl -sf -X PUT -H 'Content-Length: 0' -o /dev/null "$(with_digest "$at" "$3")"
  else
    curl -sf -X PUT -H 'Content-Type: application/octet-stream' -T "$2" -o /dev/null "$(with_digest "$at" "$3")"
  fi
}
get_blob() { curl -sf -o /dev/null "http://$1/v2/bench/app/blobs/$2"; }
get_eight() { local n pids=(); for n in 1 2 3 4 5 6 7 8; do get_blob "$1" "$2" & pids+=($!); done; wait "${pids[@]}"; }
manifest_of() { printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[]}' "$1" "$2"; }
put_manifest() { curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' -d "$3" -o /dev/null "http://$1/v2/bench/app/manifests/$2"; }

scene "versus: ${MB} MB, medians of $RUNS, $(nproc) cores"
LOG_LEVEL=warn shoal_config a "" ""; shoal_start a
registry_start r
printf '%-44s %10s %10s %-7s %7s\n' "" shoal peer unit ratio

digest=$(fresh_blob "$W/blob")
for side in "$a_registry" "$r_registry"; do
  push_blob "$side" "$W/blob" "$digest" PUT
  put_manifest "$side" v1 "$(manifest_of "$digest" $((MB * 1000000)))"
done

for wanted in $ROWS; do case $wanted in
get)
  ours() { seconds get_blob "$a_registry" "$digest"; }; theirs() { seconds get_blob "$r_registry" "$digest"; }
  ours >/dev/null; theirs >/dev/null
  in_turn ours theirs; row "GET $MB MB, warm, 1 client / docker-registry" "$A" "$B" s lower
  ours() { seconds get_eight "$a_registry" "$digest"; }; theirs() { seconds get_eight "$r_registry" "$digest"; }
  in_turn ours theirs; row "GET $MB MB, warm, 8 clients / docker-registry" "$A" "$B" s lower
  ;;
push)
  for way in PATCH PUT; do
    once() { local d; d=$(fresh_blob "$W/fresh"); seconds push_blob "$1" "$W/fresh" "$d" $way; }
    ours() { once "$a_registry"; }; theirs() { once "$r_registry"; }
    in_turn ours theirs; row "push $MB MB, $way / docker-registry" "$A" "$B" s lower
  done
  rm -f "$W/fresh"
  ;;
manifests)
  rate() { wrk -t1 -c32 -d3s "http://$1/v2/bench/app/manifests/v1" | sed -n 's/^Requests\/sec: *//p'; }
  ours() { rate "$a_registry"; }; theirs() { rate "$r_registry"; }
  in_turn ours theirs; row "manifests by tag, 32 connections / docker-registry" "$A" "$B" req/s higher
  ;;
cold)
  KEY="" LOG_LEVEL=warn shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
  PROFILE=unixfs-v1-2025 kubo_start k1; PROFILE=unixfs-v1-2025 kubo_start k2
  kubo k2 swarm connect "$k1_p2p" >/dev/null
  have() { curl -sfI "http://$b_registry/v2/bench/app/blobs/$1" >/dev/null; }
  ours() {
    local d; d=$(fresh_blob "$W/fresh"); push_blob "$a_registry" "$W/fresh" "$d" PUT
    wait_for 20 "the reader knows the blob" have "$d"
    seconds get_blob "$b_registry" "$d"
  }
  theirs() {
    local cid; fresh_blob "$W/fresh" >/dev/null; cid=$(kubo k1 add -Q "$W/fresh")
    seconds kubo k2 cat "$cid"
  }
  in_turn ours theirs; row "cold $MB MB, daemon to daemon / Kubo to Kubo" "$A" "$B" s lower
  if [ -n "${BARE_STREAM:-}" ]; then
    bare() { "$BARE_STREAM" $((MB * 1000000)); }
    in_turn ours bare; row "cold $MB MB, daemon to daemon / bare libp2p stream" "$A" "$B" s lower
  fi
  ;;
commit)
  # The same image under many tags: what grows is the directory of tags.
  cat >"$W/tags.lua" <<'LUA'
local n, last = 0, tonumber(os.getenv("LAST"))
request = function()
  n = n + 1
  if n > last then wrk.thread:stop() end
  return wrk.format("PUT", os.getenv("REPO") .. "/manifests/t" .. n, {["Content-Type"] = "application/vnd.oci.image.manifest.v1+json"}, os.getenv("BODY"))
end
LUA
  body=$(manifest_of "$digest" $((MB * 1000000)))
  for size in 100 "$TAGS_MANY"; do
    # Mounted first, so that the repository has what its manifest names.
    curl -sf -X POST -o /dev/null "http://$a_registry/v2/bench/tags$size/blobs/uploads/?mount=$digest&from=bench/app"
    LAST=$size REPO=/v2/bench/tags$size BODY=$body wrk -t1 -c64 -d600s -s "$W/tags.lua" "http://$a_registry" >/dev/null
  done
  put() { curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' -d "$body" -o /dev/null "http://$a_registry/v2/bench/tags$1/manifests/new$2"; }
  few() { seconds put 100 "$1"; }; many() { seconds put "$TAGS_MANY" "$1"; }
  RUNS=25 in_turn many few; row "commit a tag among $TAGS_MANY / among 100" "$A" "$B" s lower
  ;;
memory)
  resident() { awk -v k="$2:" '$1 == k {print $2 / 1024}' "/proc/$1/status"; }
  LOG_LEVEL=warn shoal_config idle "" ""; shoal_start idle; sleep 5
  printf '%-44s %10.1f %10s MiB\n' "memory, idle" "$(resident "$idle_pid" VmRSS)" "(< 64)"
  LOG_LEVEL=warn shoal_config m1 "" ""; shoal_start m1
  KEY="" LOG_LEVEL=warn shoal_config m2 "$m1_p2p" "$m1_ipns"; shoal_start m2
  digests=()
  for n in 1 2 3 4 5 6 7 8; do
    head -c $((1 << 30)) /dev/urandom >"$W/gib"; d=sha256:$(sha256sum "$W/gib" | cut -d' ' -f1)
    push_blob "$m1_registry" "$W/gib" "$d" PUT; digests+=("$d")
  done
  printf '%-44s %10.1f %10s MiB\n' "memory, peak, after 8 pushes of 1 GiB" "$(resident "$m1_pid" VmHWM)" "(< 256)"
  has_last() { curl -sfI "http://$m2_registry/v2/bench/app/blobs/${digests[7]}" >/dev/null; }
  wait_for 20 "the reader knows the blobs" has_last
  pids=(); for d in "${digests[@]}"; do get_blob "$m2_registry" "$d" & pids+=($!); done; wait "${pids[@]}"
  printf '%-44s %10.1f %10s MiB\n' "memory, peak, 8 cold transfers of 1 GiB: reader" "$(resident "$m2_pid" VmHWM)" "(< 256)"
  printf '%-44s %10.1f %10s MiB\n' "memory, peak, 8 cold transfers of 1 GiB: publisher" "$(resident "$m1_pid" VmHWM)" "(< 256)"
  ;;
esac; done
