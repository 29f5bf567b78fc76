#!/usr/bin/env bash
# A is killed. B serves on, and C, which knows B's address and A's name only, pulls through B without an error.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "3: the publisher dies"
shoal_config a "" ""; shoal_start a
image "$W/img" 1; image "$W/img" 2 --seed 2; two=$DIGEST; image "$W/img" 1; one=$DIGEST
push "$W/img:1" "$a_registry/library/app:1"
KEY="" shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
expect_image "$b_registry/library/app:1" "$one"
shoal_kill a
expect_image "$b_registry/library/app:1" "$one"
say "A is gone, B serves on"
KEY="" shoal_config c "$b_p2p" "$a_ipns"; shoal_start c
started=$(date +%s%N)
code=$(curl -s -o /dev/null -m 15 -w '%{http_code}' "http://$c_registry/v2/library/app/manifests/1") || fail "C gave no answer within 15 s"
[ "$code" = 200 ] || { cat "$W/c/log" >&2; fail "C answered $code"; }
say "C began to serve $((($(date +%s%N) - started) / 1000000)) ms after the first request"
expect_image "$c_registry/library/app:1" "$one"
containerd_pull "$c_registry" library/app:1
if grep -E ' (WARN|ERROR) ' "$W/c/log"; then fail "C complained on the way"; fi
say "C pulled through B, without a complaint"
# C has all of it by now, so that it goes on when B is gone too.
shoal_kill b
expect_image "$c_registry/library/app:1" "$one"
say "B is gone too, C serves on ($two was never pulled)"
