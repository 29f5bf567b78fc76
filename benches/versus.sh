#!/usr/bin/env bash
# versus.sh [ROW...] - Shoal beside its peers on one machine, in one run: docker-registry, distribution 3, nginx,
# Kubo, a bare libp2p stream.
# Prints a line per row: the median of RUNS runs of each side, their ratio (above 1: Shoal is better), and its bar.
#   rows: get push skopeo manifests blobs tls cold commit tags live memory      MB=500 RUNS=5 LOG_LEVEL=warn
# What a run is prepared with is on disk (sync) before its time is taken.
# Needs tests/clients/install.sh, root and a release build. Only loopback, in a network namespace of its own.
set -euo pipefail
. "$(dirname "$0")/../tests/clients/lib.sh"
ROWS=${*:-get push skopeo manifests blobs tls cold commit tags live memory}
if [ -z "${BARE_STREAM:-}" ] && [[ " $ROWS " == *" cold "* ]]; then
  # Before the network goes, since cargo may look for it.
  BARE_STREAM=$(cargo bench --manifest-path "$REPO/Cargo.toml" --bench bitswap --no-run --message-format json |
    jq -r 'select(.target.name? == "bitswap") | .executable // empty')
  export BARE_STREAM
fi
DISTRIBUTION_3=$TOOLS/distribution3
if [ ! -x "$DISTRIBUTION_3" ] && [[ " $ROWS " == *" skopeo "* ]]; then
  module=$(mktemp -d)
  (cd "$module" && go mod init bench.local && go get -tool github.com/distribution/distribution/v3/cmd/registry@v3.0.0 &&
    CGO_ENABLED=0 go build -o "$DISTRIBUTION_3" github.com/distribution/distribution/v3/cmd/registry) >/dev/null 2>&1
  rm -rf "$module"
fi
offline "$@"
MB=${MB:-500} RUNS=${RUNS:-5}
TAGS_MANY=${TAGS_MANY:-100000}
export LOG_LEVEL=${LOG_LEVEL:-warn}

. "$(dirname "$0")/lib.sh"

get_tls() { curl -sfk "$3" -o /dev/null "https://$1/v2/bench/app/blobs/$2"; }
get_eight() { local n pids=(); for n in 1 2 3 4 5 6 7 8; do get_blob "$1" "$2" & pids+=($!); done; wait "${pids[@]}"; }
manifest_of() { printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[]}' "$1" "$2"; }
# tags_start SIZE - a repository of the first daemon with that many tags of one image: what grows is the directory of tags.
tags_start() {
  [ ! -e "$W/tags$1" ] || return 0
  # Mounted first, so that the repository has what its manifest names.
  curl -sf -X POST -o /dev/null "http://$a_registry/v2/bench/tags$1/blobs/uploads/?mount=$digest&from=bench/app"
  manifest_of "$digest" $((MB * 1000000)) >"$W/manifest"
  seq "$1" | awk -v url="http://$a_registry/v2/bench/tags$1/manifests/sha256:$(sha256sum "$W/manifest" | cut -d' ' -f1)" '
    { tags = tags "&tag=t" $1 }
    NR % 50 == 0 { print url "?" substr(tags, 2); tags = "" }' |
    xargs -P 8 -n 100 curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
      --data-binary "@$W/manifest" >/dev/null
  touch "$W/tags$1"
}
# put_tag SIZE TAG - one tag more.
put_tag() {
  curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
    -d "$(manifest_of "$digest" $((MB * 1000000)))" -o /dev/null "http://$a_registry/v2/bench/tags$1/manifests/$2"
}
put_manifest() { curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' -d "$3" -o /dev/null "http://$1/v2/bench/app/manifests/$2"; }

scene "versus: ${MB} MB, medians of $RUNS, $(nproc) cores"
shoal_config a "" ""; shoal_start a
registry_start r
printf '%-52s %10s %10s %-6s %7s    %-5s\n' "" shoal peer unit ratio bar

digest=$(fresh_blob "$W/blob")
for side in "$a_registry" "$r_registry"; do
  push_blob "$side" "$W/blob" "$digest" PUT
  put_manifest "$side" v1 "$(manifest_of "$digest" $((MB * 1000000)))"
done

for wanted in $ROWS; do case $wanted in
get)
  ours() { seconds get_blob "$a_registry" "$digest"; }; theirs() { seconds get_blob "$r_registry" "$digest"; }
  ours >/dev/null; theirs >/dev/null
  in_turn ours theirs; row "GET $MB MB, warm, 1 client / docker-registry" "$A" "$B" s lower 1
  ours() { seconds get_eight "$a_registry" "$digest"; }; theirs() { seconds get_eight "$r_registry" "$digest"; }
  in_turn ours theirs; row "GET $MB MB, warm, 8 clients / docker-registry" "$A" "$B" s lower 1
  ;;
push)
  for way in PATCH PUT; do
    once() { local d; d=$(fresh_blob "$W/fresh"); sync; seconds push_blob "$1" "$W/fresh" "$d" $way; }
    ours() { once "$a_registry"; }; theirs() { once "$r_registry"; }
    in_turn ours theirs; row "push $MB MB, $way / docker-registry" "$A" "$B" s lower 1
  done
  rm -f "$W/fresh"
  ;;
skopeo)
  # Ten layers, together as large as the blob; a new image in each turn.
  ours() {
    image "$W/fresh$1" 1 --seed "$RANDOM$RANDOM" --layers 9 --kib $((MB * 1000000 / 9 / 1024)); sync
    seconds push "$W/fresh$1:1" "$a_registry/bench/skopeo:1"
  }
  theirs() { sync; seconds push "$W/fresh$1:1" "$r_registry/bench/skopeo:1"; rm -rf "$W/fresh$1"; }
  in_turn ours theirs; row "skopeo push, 10 layers, $MB MB / docker-registry" "$A" "$B" s lower 1
  DOCKER_REGISTRY=$DISTRIBUTION_3 registry_start d
  theirs() { sync; seconds push "$W/fresh$1:1" "$d_registry/bench/skopeo:1"; rm -rf "$W/fresh$1"; }
  in_turn ours theirs; row "skopeo push, 10 layers, $MB MB / distribution 3" "$A" "$B" s lower 1
  ;;
manifests)
  ours() { rate_of "http://$a_registry/v2/bench/app/manifests/v1"; }; theirs() { rate_of "http://$r_registry/v2/bench/app/manifests/v1"; }
  in_turn ours theirs; row "manifests by tag, 32 connections / docker-registry" "$A" "$B" req/s higher 10
  ;;
blobs)
  # A hundred blobs of the size of a config, asked for in turn.
  for n in $(seq 100); do
    head -c 4096 /dev/urandom >"$W/small"; small=sha256:$(sha256sum "$W/small" | cut -d' ' -f1)
    for side in "$a_registry" "$r_registry"; do push_blob "$side" "$W/small" "$small" PUT; done
    echo "$small" >>"$W/smalls"
  done
  cat >"$W/smalls.lua" <<'LUA'
local paths, n = {}, 0
for digest in io.lines(os.getenv("SMALLS")) do paths[#paths + 1] = "/v2/bench/app/blobs/" .. digest end
request = function() n = n % #paths + 1; return wrk.format("GET", paths[n]) end
LUA
  rate_of_smalls() { SMALLS=$W/smalls rate_of -s "$W/smalls.lua" "http://$1"; }
  ours() { rate_of_smalls "$a_registry"; }; theirs() { rate_of_smalls "$r_registry"; }
  in_turn ours theirs; row "blobs of 4 KiB, 32 connections / docker-registry" "$A" "$B" req/s higher 5
  ;;
tls)
  mkdir -p "$W/tls" "$W/n/html/v2/bench/app/blobs"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=IP:127.0.0.1 -keyout "$W/tls/key.pem" -out "$W/tls/certificate.pem" 2>/dev/null
  cp "$W/blob" "$W/n/html/v2/bench/app/blobs/$digest"; nginx_start n "$W/tls"
  shoal_config t "" ""
  sed -i "s#^http: {#&tls: {certificate: $W/tls/certificate.pem, key: $W/tls/key.pem}, #" "$W/t/config.yaml"
  shoal_start t; t_registry=${t_registry#https://}
  at=$(curl -sfk -X POST -D - -o /dev/null "https://$t_registry/v2/bench/app/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  curl -sfk -X PUT -H 'Content-Type: application/octet-stream' -T "$W/blob" -o /dev/null "$(with_digest "https://$t_registry$at" "$digest")"
  for version in 1.1 2; do
    ours() { seconds get_tls "$t_registry" "$digest" "--http$version"; }; theirs() { seconds get_tls "$n_registry" "$digest" "--http$version"; }
    ours >/dev/null; theirs >/dev/null
    in_turn ours theirs; row "GET $MB MB, TLS, HTTP/$version / nginx" "$A" "$B" s lower 0.8
  done
  shoal_stop t; stop "$n_pid"
  ;;
cold)
  KEY="" shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
  PROFILE=unixfs-v1-2025 kubo_start k1; PROFILE=unixfs-v1-2025 kubo_start k2
  kubo k2 swarm connect "$k1_p2p" >/dev/null
  have() { curl -sfI "http://$b_registry/v2/bench/app/blobs/$1" >/dev/null; }
  ours() {
    local d; d=$(fresh_blob "$W/fresh"); push_blob "$a_registry" "$W/fresh" "$d" PUT
    wait_for 20 "the reader knows the blob" have "$d"; sync
    seconds get_blob "$b_registry" "$d"
  }
  theirs() {
    local cid; fresh_blob "$W/fresh" >/dev/null; cid=$(kubo k1 add -Q "$W/fresh"); sync
    seconds kubo k2 cat "$cid"
  }
  in_turn ours theirs; row "cold $MB MB, daemon to daemon / Kubo to Kubo" "$A" "$B" s lower 3
  bare() { sync; "$BARE_STREAM" stream $((MB * 1000000)); }
  in_turn ours bare; row "cold $MB MB, daemon to daemon / bare libp2p stream" "$A" "$B" s lower 0.8
  ;;
commit)
  tags_start 100; tags_start "$TAGS_MANY"
  few() { seconds put_tag 100 "new$1"; }; many() { seconds put_tag "$TAGS_MANY" "new$1"; }
  RUNS=25 in_turn many few; row "commit a tag among $TAGS_MANY / among 100" "$A" "$B" s lower 0.5
  ;;
tags)
  # A tag is put before each, so that the page is not that of the time before.
  tags_start "$TAGS_MANY"
  for n in $(seq 25); do
    put_tag "$TAGS_MANY" "page$n"
    curl -sf -o /dev/null -w '%{time_total}\n' "http://$a_registry/v2/bench/tags$TAGS_MANY/tags/list?n=100"
  done | median >"$W/page"
  limit "first page of 100 of $TAGS_MANY tags" "$(awk '{print $1 * 1000}' "$W/page")" ms 5
  ;;
live)
  # From the acknowledged push of a tag to its first answer at a connected reader, which is asked every 5 ms.
  KEY="" shoal_config l "$a_p2p" "$a_ipns"; shoal_start l
  has_tag() { [ "$(curl -s -o /dev/null -w '%{http_code}' -I "http://$l_registry/v2/bench/app/manifests/$1")" = 200 ]; }
  wait_for 20 "the reader knows the name" has_tag v1
  until_seen() { local n; for n in $(seq 2000); do has_tag "$1" && return; sleep 0.005; done; fail "$1 is not seen"; }
  for n in $(seq 100); do
    put_manifest "$a_registry" "live$n" "$(manifest_of "$digest" $((MB * 1000000)))"
    seconds until_seen "live$n"
  done | sort -g >"$W/live"
  limit "push to pull by tag at a reader, of 100: median" "$(sed -n 50p "$W/live")" s 1
  limit "the same, 95th percentile" "$(sed -n 95p "$W/live")" s 1
  shoal_stop l
  ;;
memory)
  resident() { awk -v k="$2:" '$1 == k {print $2 / 1024}' "/proc/$1/status"; }
  shoal_config idle "" ""; shoal_start idle; sleep 5
  limit "memory, idle" "$(resident "$idle_pid" VmRSS)" MiB 64
  shoal_config m1 "" ""; shoal_start m1
  KEY="" shoal_config m2 "$m1_p2p" "$m1_ipns"; shoal_start m2
  digests=()
  for n in 1 2 3 4 5 6 7 8; do
    head -c $((1 << 30)) /dev/urandom >"$W/gib"; d=sha256:$(sha256sum "$W/gib" | cut -d' ' -f1)
    push_blob "$m1_registry" "$W/gib" "$d" PUT; digests+=("$d")
  done
  limit "memory, peak, after 8 pushes of 1 GiB" "$(resident "$m1_pid" VmHWM)" MiB 256
  has_last() { curl -sfI "http://$m2_registry/v2/bench/app/blobs/${digests[7]}" >/dev/null; }
  wait_for 20 "the reader knows the blobs" has_last
  pids=(); for d in "${digests[@]}"; do get_blob "$m2_registry" "$d" & pids+=($!); done; wait "${pids[@]}"
  limit "memory, peak, 8 cold transfers of 1 GiB: reader" "$(resident "$m2_pid" VmHWM)" MiB 256
  limit "memory, peak, 8 cold transfers of 1 GiB: publisher" "$(resident "$m1_pid" VmHWM)" MiB 256
  ;;
esac; done
