#!/usr/bin/env bash
# Kubo and we tell each other of new records over pubsub. This Kubo is in no DHT: there is no other way.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "23: live names"

# seconds_until COMMAND... - how long until it succeeds, at most 20 s.
seconds_until() {
  local begun; begun=$(date +%s.%N)
  wait_for 20 "$*" "$@"
  awk -v a="$begun" -v b="$(date +%s.%N)" 'BEGIN {printf "%.1f s", b - a}'
}

PUBSUB=1 kubo_start k
shoal_config a "" ""; shoal_start a
image "$W/img" 1 --kib 100
push "$W/img:1" "$a_registry/library/app:1"
kubo k swarm connect "$a_p2p" >/dev/null
resolves() { kubo k name resolve --nocache --timeout 2s "$a_ipns"; }
has_tag() { local root; root=$(resolves) && kubo k ls --timeout 5s "$root/docker/registry/v2/repositories/library/app/_manifests/tags" | grep -q " $1/"; }
say "Kubo fetches the record that was there before it came: $(seconds_until has_tag 1)"
kubo k name pubsub subs | grep -q "$a_ipns" || fail "Kubo did not get it by pubsub"
push "$W/img:1" "$a_registry/library/app:2"
say "Kubo hears of a push: $(seconds_until has_tag 2)"

registry_start r
push "$W/img:1" "$r_registry/library/app:1"
publish() { kubo k name publish --allow-offline "/ipfs/$(kubo k add -Q -r "$W/r/data")" >/dev/null; }
publish
KEY="" shoal_config b "$k_p2p" "$k_peer"; shoal_start b
serves() { digest_of "$b_registry/library/app:$1" | grep -q "$DIGEST"; }
say "we fetch the record that was there before we came: $(seconds_until serves 1)"
for tag in 2 3; do
  push "$W/img:1" "$r_registry/library/app:$tag"
  publish
  say "we hear of a record of Kubo: $(seconds_until serves "$tag")"
done
"$SHOAL" status --config "$W/b/config.yaml" | grep -q '^pubsub     1 peers' || fail "status does not tell of Kubo"

# Without pubsub there is nothing to hear.
KEY="" shoal_config d "$k_p2p" "$k_peer"; sed -i 's/^p2p:/&\n  pubsub: false/' "$W/d/config.yaml"; shoal_start d
sleep 3
"$SHOAL" status --config "$W/d/config.yaml" | grep -q 'not known yet' || fail "a daemon without pubsub knows the record"
