#!/usr/bin/env bash
# Daemons that know no peer, and Kubo by HTTP alone: its gateway gives the blocks, its routing API the records, both ways.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "30: Kubo over HTTP"
node() { "$SHOAL" status --json --config "$W/$1/config.yaml" | jq -er ".node$2"; }
# web NAME ROUTERS GATEWAYS - whom a daemon that is not started yet asks over HTTP.
web() { sed -i "s#^  mdns: false#  mdns: false\n  delegatedrouters: [$2]\n  gateways: [$3]#" "$W/$1/config.yaml"; }

registry_start r
image "$W/img" 1 --kib 9000; one=$DIGEST
push "$W/img:1" "$r_registry/library/app:1"
ROUTING_API=1 kubo_start k
kubo_start other
kubo k swarm connect "$other_p2p" >/dev/null
root=$(kubo k add -Q -r --cid-version 1 "$W/r/data")
kubo k name publish "/ipfs/$root" >/dev/null

KEY="" shoal_config b "" ""; web b "" "$k_gateway"; shoal_start b
expect_image "$b_registry/ipfs/$root/library/app:1" "$one"
[ "$(node b .peers)" = 0 ] || fail "b has met a peer"
"$SHOAL" status --config "$W/b/config.yaml" | grep '^gateway '
say "a registry's folder came from Kubo's gateway alone"

KEY="" shoal_config c "" "$k_peer"; web c "$k_gateway" ""; shoal_start c
expect_image "$c_registry/library/app:1" "$one"
[ "$(node c .peers)" -gt 0 ] || fail "c was not told where Kubo is"
say "Kubo's routing API told what its name points to and where Kubo is, and the image came over Bitswap"

shoal_config a "" ""; web a "$k_gateway" ""; shoal_start a
push "$W/img:1" "$a_registry/library/mine:1"
published() { [ "$("$SHOAL" status --json --config "$W/a/config.yaml" | jq -r .own.state)" = published ]; }
wait_for 60 "a's record is taken by the router" published
wait_for 30 "the other Kubo knows a's record" kubo other name resolve --nocache "$a_ipns" --timeout 5s
say "our record went through Kubo's routing API into the DHT"
