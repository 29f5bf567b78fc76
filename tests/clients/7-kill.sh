#!/usr/bin/env bash
# Pushes run while the daemon is killed at random moments. After each start, most of them ready within 2 s, every tag that
# was acknowledged is there with all its blobs, and no half-pushed one is. With a Kubo for the network it then has the last
# root whole, and of all those before it no pin is left.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
[ -z "${MODE:-}" ] || KILLS=${KILLS:-20}
scene "7: kill -9, ${KILLS:=100} times"
LOG_LEVEL=warn shoal_config a "" ""
python3 "$CLIENTS/kill.py" "$SHOAL" "$W/a/config.yaml" "$KILLS"
[ -n "${MODE:-}" ] || exit 0

shoal_start a
own() { "$SHOAL" status --json --config "$W/a/config.yaml" | jq -er "$1"; }
wait_for 60 "the last root is published" own '.own.state == "published"'
root=$(own .own.root)
pinned() { [ "$(kubo a_kubo pin ls --type=recursive --names | awk '/shoal/ {print $1}')" = "$root" ]; }
wait_for 20 "the last root is all that is pinned" pinned
kubo a_kubo repo gc -q >/dev/null
kubo a_kubo refs -r --offline "/ipfs/$root" >/dev/null || fail "Kubo lacks some of the last root"
say "Kubo has the last root whole, and pins nothing else"
