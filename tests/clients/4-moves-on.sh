#!/usr/bin/env bash
# A pushes a new tag and overwrites an old one: B serves both within 10 s, without a restart. A root that B cannot
# fetch never takes the place of one that it can serve.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "4: it moves on"
PORTS="0:$(free_port)" shoal_config a "" ""; shoal_start a
image "$W/img" 1; one=$DIGEST; image "$W/img" 2 --seed 2; two=$DIGEST
push "$W/img:1" "$a_registry/library/app:1"
KEY="" shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
expect_image "$b_registry/library/app:1" "$one"

push "$W/img:2" "$a_registry/library/app:2"
push "$W/img:2" "$a_registry/library/app:1"
serves() { [ "$(digest_of "$1")" = "$2" ]; }
wait_for "$(news_within 10)" "B serves the new tag" serves "$b_registry/library/app:2" "$two"
wait_for "$(news_within 10)" "B serves the overwritten tag" serves "$b_registry/library/app:1" "$two"
expect_image "$b_registry/library/app:2" "$two"
expect_image "$b_registry/library/app:1" "$two"
say "B followed"

# A record that points to a root which nobody has: signed with A's key by a Kubo, which A's own is or is given the key.
absent=bafybeib5rcgspnxuw3tfhzj7brrwbuw2ymgyosnhfq2s6dyjrwz5cijhp4
publish_absent() { kubo "$1" name publish --key="$2" --allow-offline --resolve=false --sequence 999 --ttl 1m "/ipfs/$absent" >/dev/null; }
if [ -n "${MODE:-}" ]; then
  stop "$a_pid"
  publish_absent a_kubo self
else
  shoal_stop a
  "$SHOAL" key export self --config "$W/a/config.yaml" >"$W/a.key"
  kubo_start k
  kubo k key import a "$W/a.key" >/dev/null
  kubo k swarm connect "$b_p2p" >/dev/null
  publish_absent k a
fi
knows() { "$SHOAL" status --config "$W/b/config.yaml" --json | jq -e '.readonly[0].sequence == 999'; }
# Kubo looks for the root for half a minute before B goes on.
wait_for $(($(news_within 20) + 40)) "B knows the record" knows
expect_image "$b_registry/library/app:1" "$two"
"$SHOAL" status --config "$W/b/config.yaml" --json | jq -e ".readonly[0].root != \"$absent\"" >/dev/null || fail "B took over a root that it cannot have"
expect_image "$b_registry/library/app:2" "$two"
say "a root that cannot be fetched took nothing away"
