#!/usr/bin/env bash
# A Kubo that was told of nothing but our peer id asks for blocks and a whole image over HTTP on libp2p streams, and takes
# the archive in as its own.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "17: our gateway over libp2p"
shoal_config a "" ""; shoal_start a
image "$W/img" 1 --kib 5000
push "$W/img:1" "$a_registry/library/app:1"
root=$("$SHOAL" status --json --config "$W/a/config.yaml" | jq -r .own.root)

kubo_start k
kill "$k_pid"; wait "$k_pid" 2>/dev/null || true
kubo k config --json Experimental.Libp2pStreamMounting true
rm "$W/k/log" # Which says that it is ready.
IPFS_PATH=$W/k/repo IPFS_TELEMETRY=off "$KUBO" daemon --enable-gc=false >"$W/k/log" 2>&1 & k_pid=$!
PIDS+=("$k_pid")
wait_for 60 "Kubo starts again" grep -q '^Daemon is ready' "$W/k/log"
kubo k swarm connect "$a_p2p" >/dev/null
port=$(free_port)
kubo k p2p forward --allow-custom-protocol /http/1.1 "/ip4/127.0.0.1/tcp/$port" "/p2p/${a_p2p##*/}"

gateway=http://127.0.0.1:$port
curl -sf "$gateway/.well-known/libp2p/protocols" | jq -e '."/ipfs/gateway".path == "/"' >/dev/null || fail "no protocols"
curl -sf "$gateway/ipfs/$root?format=raw" >"$W/block"
[ "$(kubo k block put --cid-codec dag-pb "$W/block")" = "$root" ] || fail "the block is another one"
curl -sf -H 'Accept: application/vnd.ipld.car; version=1; order=dfs; dups=n' "$gateway/ipfs/$root" >"$W/car"
kubo k dag import --pin-roots=false "$W/car" >/dev/null
kubo k --offline refs -r "$root" >"$W/refs" || fail "the archive lacks blocks"
[ "$(wc -l <"$W/refs")" -gt 10 ] || fail "the archive is too small"
say "$(wc -l <"$W/refs") links of $root, $(stat -c %s "$W/car") bytes"
[ "$(curl -s -o "$W/out" -w '%{http_code}' "$gateway/v2/library/app/manifests/1")" = 404 ] || fail "a stranger reached the registry"
