#!/usr/bin/env bash
# A blob of GIB gibibytes goes in by one PATCH and comes out whole; the daemon's memory stays within its bound, also while
# it is sent to a Kubo, where that is the network. Half-way of a second one the daemon is killed, and the upload goes on
# from where it was noted.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
[ -z "${MODE:-}" ] || GIB=${GIB:-1}
GIB=${GIB:-10} MEMORY_MIB_MAX=256
scene "16: a blob of $GIB GiB"
LOG_LEVEL=warn PORTS="$(free_port):0" shoal_config a "" ""; shoal_start a
# The same bytes each time, faster than they can be pushed.
bytes() { (openssl enc -aes-128-ctr -nosalt -K "$1" -iv 0 -in /dev/zero 2>/dev/null || :) | head -c "$2"; }
digest_of_bytes() { echo "sha256:$(sha256sum | cut -d' ' -f1)"; }
location() { tr -d '\r' | sed -n 's/^[Ll]ocation: //p'; }
begin() { curl -sf -X POST -D - -o /dev/null "http://$a_registry/v2/large/app/blobs/uploads/" | location; }
patch() { curl -sf -X PATCH -H 'Content-Type: application/octet-stream' -T - -o /dev/null "http://$a_registry$1"; }
finish() { curl -sf -X PUT -H 'Content-Length: 0' -o /dev/null "http://$a_registry$1?digest=$2"; }
size=$((GIB << 30))

at=$(begin)
digest=$(bytes aa "$size" | tee >(patch "$at"; touch "$W/sent") | digest_of_bytes)
wait_for 60 "the last byte is taken" test -e "$W/sent"
finish "$at" "$digest"
pulled=$(curl -sf "http://$a_registry/v2/large/app/blobs/$digest" | digest_of_bytes)
[ "$pulled" = "$digest" ] || fail "what came out is not what went in: $pulled"
if [ -n "${MODE:-}" ]; then
  has_it() { [ "$(kubo a_kubo repo stat --size-only | awk '/^RepoSize/ {print $2}')" -gt "$size" ]; }
  wait_for 120 "Kubo has it" has_it
  published() { "$SHOAL" status --json --config "$W/a/config.yaml" | jq -e '.own.state == "published"'; }
  wait_for 120 "it is published" published
fi
peak=$(($(awk '/^VmHWM:/ {print $2}' "/proc/$a_pid/status") / 1024))
[ $peak -lt $MEMORY_MIB_MAX ] || fail "the daemon took $peak MiB, more than $MEMORY_MIB_MAX"
say "in and out with at most $peak MiB"

at=$(begin)
size=$((1 << 30))
bytes bb "$size" >"$W/blob"; digest=$(digest_of_bytes <"$W/blob")
# Open until the daemon is gone, or the scene.
(head -c $((size / 2)) "$W/blob"; while [ -d "$W" ] && [ ! -e "$W/killed" ]; do sleep 0.2; done) | patch "$at" & client=$!
noted() { [ "$(stat -c %s "$W"/a/data/uploads/*)" -gt 20000 ]; }
wait_for 300 "half of it is noted" noted
shoal_kill a; touch "$W/killed"; kill $client 2>/dev/null || true; wait $client 2>/dev/null || true
shoal_start a
got=$(curl -sf -D - -o /dev/null "http://$a_registry$at" | tr -d '\r' | sed -n 's/^[Rr]ange: 0-//p')
[ "$got" -gt $((size / 4)) ] || fail "only $got bytes were kept"
tail -c +$((got + 2)) "$W/blob" | patch "$at"
finish "$at" "$digest"
[ "$(curl -sf "http://$a_registry/v2/large/app/blobs/$digest" | digest_of_bytes)" = "$digest" ] || fail "the second one is damaged"
say "an upload went on from byte $((got + 1)) after kill -9"
