#!/usr/bin/env bash
# A daemon whose network is a real Kubo: what is pushed to it is pinned there, and `ipfs get` of the root has the image; an
# embedded daemon reads it by its name; Kubo is killed with a push under way and started again; and pull-through works.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "27: attached to Kubo"
api_of() { cat "$W/$1/repo/api"; }
# attached NAME API EXTRA - the config of a daemon that has that Kubo, with more lines of YAML behind it.
attached() {
  mkdir -p "$W/$1"
  printf 'version: 0.1\nhttp: {addr: "127.0.0.1:0", debug: {addr: ""}}\nstorage: {ipfs: {rootdirectory: %s, ipfsapiaddress: %s, writeipnskey: "%s", readonlyipnskeys: [%s]}}\n%s\n' \
    "$W/$1/data" "$2" "${KEY-self}" "${READS:-}" "${3:-}" >"$W/$1/config.yaml"
}
published() { "$SHOAL" status --json --config "$W/$1/config.yaml" | jq -e '.own.state == "published"'; }
root_of() { "$SHOAL" status --json --config "$W/$1/config.yaml" | jq -r .own.root; }

kubo_start k
attached a "$(api_of k)"
"$SHOAL" config check "$W/a/config.yaml" | grep -q 'Kubo .* answers at' || fail "config check does not find Kubo"
shoal_start a
[ "$a_ipns" = "$(kubo k key list -l | awk '$2 == "self" {print $1}')" ] || fail "the name is not that of Kubo's self"
image "$W/img" 1 --kib 9000; one=$DIGEST
push "$W/img:1" "$a_registry/library/app:1"
expect_image "$a_registry/library/app:1" "$one"
wait_for 30 "the push is published" published a
root=$(root_of a)
kubo k pin ls --type=recursive -q | grep -q "$root" || fail "the root is not pinned in Kubo"
timeout 60 "$KUBO" --repo-dir "$W/k/repo" get -o "$W/r/data" "/ipfs/$root" >/dev/null
registry_start r
expect_image "$r_registry/library/app:1" "$one"
say "pinned in Kubo; docker-registry serves what \`ipfs get\` gave"

KEY="" shoal_config b "$k_p2p" "$a_ipns"
shoal_start b
wait_for 30 "the embedded daemon reads the name" skopeo inspect --tls-verify=false "docker://$b_registry/library/app:1"
expect_image "$b_registry/library/app:1" "$one"
say "an embedded daemon reads it by its name"

kill -9 "$k_pid"; wait "$k_pid" 2>/dev/null || true
image "$W/img" 2 --kib 20000 --seed two; two=$DIGEST
push "$W/img:2" "$a_registry/library/app:2"
expect_image "$a_registry/library/app:2" "$two"
! published a >/dev/null || fail "published without Kubo"
kubo_restart() {
  # The log says that it is ready.
  rm -f "$W/$1/repo/api" "$W/$1/log"
  kubo "$1" config Addresses.API "$(cat "$W/$1/api")" >/dev/null
  IPFS_PATH=$W/$1/repo IPFS_TELEMETRY=off "$KUBO" daemon --enable-gc=false >"$W/$1/log" 2>&1 & PIDS+=("$!")
  wait_for 60 "Kubo starts again" grep -q '^Daemon is ready' "$W/$1/log"
}
grep -o '/ip4/[^,} ]*/tcp/[0-9]*' "$W/a/config.yaml" | head -1 >"$W/k/api"
kubo_restart k
wait_for 60 "the push gets there" published a
kubo k pin ls --type=recursive -q >"$W/pins"
grep -q "$(root_of a)" "$W/pins" || fail "the new root is not pinned"
! grep -q "$root" "$W/pins" || fail "the old root is still pinned"
say "a push without Kubo got there when it was back, and the old pin is gone"

registry_start u
push "$W/img:1" "$u_registry/library/up:1"
KEY="" attached c "$(api_of k)" "mirror: {registries: {up.example: {upstream: \"http://$u_registry\"}}}"
shoal_start c
expect_image "$c_registry/up.example/library/up:1" "$one"
say "pull-through works"
READS=$a_ipns KEY="" attached d "$(api_of k)"
shoal_start d
wait_for 30 "a reader with a Kubo reads the name" skopeo inspect --tls-verify=false "docker://$d_registry/library/app:2"
expect_image "$d_registry/library/app:2" "$two"
say "a reader attached to Kubo reads it by its name"
