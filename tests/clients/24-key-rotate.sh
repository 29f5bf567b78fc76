#!/usr/bin/env bash
# A key is given up for a new one: Kubo resolves the old name to the new root, also when the daemon is gone and only a
# reader of ours has the records. With a Kubo for the network, whose key it is, nothing is rotated.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "24: a rotated key"
shoal_config a "" ""; shoal_start a
old=$a_ipns
image "$W/img" 1 --kib 100
push "$W/img:1" "$a_registry/library/app:1"
if [ -n "${MODE:-}" ]; then
  keys() { kubo a_kubo key list -l; ls "$W/a/data/keystore"; }
  before=$(keys)
  if "$SHOAL" key rotate --config "$W/a/config.yaml" >"$W/said" 2>&1; then fail "the key of a Kubo is rotated"; fi
  grep -q "the key of $old is not in the keystore of this daemon" "$W/said" || fail "key rotate says: $(cat "$W/said")"
  [ "$(keys)" = "$before" ] || fail "key rotate has left a key behind"
  say "the key of a Kubo is not rotated"
  exit 0
fi
KEY="" shoal_config b "$a_p2p" "$old"; shoal_start b
serves() { digest_of "$b_registry/library/app:$1" | grep -q "$DIGEST"; }
wait_for 20 "our reader has the image" serves 1

new=$("$SHOAL" key rotate --config "$W/a/config.yaml" 2>/dev/null)
[ "$new" != "$old" ] || fail "the name is the same"
push "$W/img:1" "$a_registry/library/app:2"
wait_for 20 "our reader follows to the new name" serves 2
"$SHOAL" status --config "$W/b/config.yaml" | grep -q "has moved to $new" || fail "the reader does not say that the name has moved"
root=$("$SHOAL" status --config "$W/a/config.yaml" --json | python3 -c 'import json, sys; print("/ipfs/" + json.load(sys.stdin)["own"]["root"])')

# with_kubo NAME PEER - a Kubo that knows nobody but PEER follows the old name to the root, and one step of it.
with_kubo() {
  kubo_start "$1"
  kubo "$1" swarm connect "$2" >/dev/null
  resolves() { [ "$(kubo "$1" name resolve -r --nocache --timeout 10s "$2")" = "$3" ]; }
  wait_for 40 "Kubo resolves the old name to the new root" resolves "$1" "$old" "$root"
  [ "$(kubo "$1" name resolve -r=false --nocache --timeout 10s "$old")" = "/ipns/$new" ] || fail "the old name is no pointer to the new one"
}
with_kubo k "$a_p2p"
say "Kubo resolves $old to $root"
stop "$a_pid"
with_kubo l "$b_p2p"
say "and from our reader alone, with the author gone"
