#!/usr/bin/env bash
# The disk of a daemon fills up. A push that does not fit gets a 500 that says why; the daemon lives and serves what it
# has; once there is space again pushes work, also after a restart.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "8: the disk is full"
mkdir -p "$W/a/data"
mount -t tmpfs -o size=64m shoal-scene "$W/a/data"
shoal_config a "" ""; shoal_start a
image "$W/img" 1 --kib 100; one=$DIGEST
image "$W/img" 2 --kib 100 --seed 2; two=$DIGEST
push "$W/img:1" "$a_registry/library/app:1"
head -c 20M /dev/urandom >"$W/a/data/filler"

# push_large SEED - one blob of 48 MiB, by POST with the body; prints the status and leaves the answer in $W/answer.
push_large() {
  openssl enc -aes-128-ctr -pass "pass:$1" -nosalt -pbkdf2 </dev/zero 2>/dev/null | head -c 48M >"$W/large" || true
  curl -s -m 60 -o "$W/answer" -w '%{http_code}' --data-binary "@$W/large" -H 'Content-Type: application/octet-stream' \
    "http://$a_registry/v2/library/app/blobs/uploads/?digest=sha256:$(sha256sum "$W/large" | cut -d' ' -f1)"
}

for n in 1 2 3; do
  code=$(push_large "$n") || fail "push $n got no answer"
  [ "$code" = 500 ] || fail "a push that does not fit was answered $code: $(cat "$W/answer")"
  grep -q 'no space is left' "$W/answer" || fail "the answer does not say why: $(cat "$W/answer")"
done
say "refused: $(jq -r '.errors[0].message' "$W/answer")"
expect_image "$a_registry/library/app:1" "$one"
"$SHOAL" status --config "$W/a/config.yaml" >"$W/status" || fail "the daemon does not say how it is"
[ "$(curl -s "http://$a_registry/v2/library/app/tags/list" | jq -c .tags)" = '["1"]' ] || fail "the tags are not just 1"
say "the daemon lives and serves on"

# To the last byte: neither the index nor the root can be written either.
cat /dev/zero >"$W/a/data/rest" 2>/dev/null || true
for n in 1 2 3; do
  if push "$W/img:2" "$a_registry/library/app:2" 2>/dev/null; then fail "a push without any space was acknowledged"; fi
done
expect_image "$a_registry/library/app:1" "$one"
say "nothing is acknowledged that has no space"

rm "$W/a/data/filler" "$W/a/data/rest"
push "$W/img:2" "$a_registry/library/app:2" || fail "no push works although there is space again"
expect_image "$a_registry/library/app:2" "$two"
shoal_stop a
shoal_start a
expect_image "$a_registry/library/app:1" "$one"
expect_image "$a_registry/library/app:2" "$two"
image "$W/img" 3 --kib 100 --seed 3; three=$DIGEST
push "$W/img:3" "$a_registry/library/app:3"
expect_image "$a_registry/library/app:3" "$three"
say "with space again pushes work, also after a restart"
