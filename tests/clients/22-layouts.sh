#!/usr/bin/env bash
# Image layouts anywhere on IPFS: one that skopeo made is added here, and pulled from a daemon that knows its CID alone; one
# that Kubo added, in each of its ways, or published under its name, is pulled the same way, and so is the folder of a
# stock docker-registry. Nobody but the first daemon has a key.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "22: layouts anywhere"
registry_start r
image "$W/img" 1 --kib 5000; one=$DIGEST
image "$W/img" multi --arch amd64,arm64 --seed m; multi=$DIGEST
push "$W/img:1" "$r_registry/library/app:1"
skopeo copy -q --all --dest-tls-verify=false "oci:$W/img:multi" "docker://$r_registry/library/app:multi"
mkdir -p "$W/layouts"
skopeo copy -q --src-tls-verify=false "docker://$r_registry/library/app:1" "oci:$W/layouts/app:1"
skopeo copy -q --all --src-tls-verify=false "docker://$r_registry/library/app:multi" "oci:$W/layouts/app:multi"

reader() { KEY="" shoal_config "$1" "$2" ""; shoal_start "$1"; }
# expect_layout REGISTRY REPO - both images, and the list of tags.
expect_layout() {
  expect_image "$1/$2:1" "$one"
  expect_image "$1/$2:multi" "$multi"
  [ "$(skopeo list-tags --tls-verify=false "docker://$1/$2" | jq -c .Tags)" = '["1","multi"]' ] || fail "tags of $2"
}

shoal_config a "" ""; shoal_start a
ours=$("$SHOAL" layout add --config "$W/a/config.yaml" "$W/layouts/app" 2>"$W/added")
grep -q "$ours:multi" "$W/added" || fail "the tags are not shown"
[ "$("$SHOAL" layout ls --config "$W/a/config.yaml" | cut -d' ' -f1)" = "$ours" ] || fail "the layout is not listed"
reader b "$a_p2p"
expect_layout "$b_registry" "$ours"
say "skopeo pulls $ours"
containerd_pull "$b_registry" "$ours:1"; say "containerd pulls docker.io/$ours:1 by its mirror"
if push "$W/img:1" "$b_registry/$ours:2" 2>"$W/refused"; then fail "somebody pushed to a CID"; fi
"$SHOAL" gc --config "$W/a/config.yaml" >/dev/null
expect_image "$a_registry/$ours:1" "$one"

cid_of() { kubo "$1" cid base32 "$2"; }
# kubo_adds NAME PROFILE OPTIONS... - a Kubo that added the folder serves it to a reader that knows nobody else.
kubo_adds() {
  local name=$1 profile=$2 root reader p2p=$1_p2p
  PROFILE=$profile kubo_start "$name"; shift 2
  root=$(cid_of "$name" "$(kubo "$name" add -Q -r "$@" "$W/layouts")")
  declare -g "${name}_root=$root"
  reader "of_$name" "${!p2p}"
  reader=of_${name}_registry
  expect_layout "${!reader}" "ipfs/$root/app"
  say "Kubo, ${*:-$profile}: ipfs/$root/app"
}
kubo_adds v0 "" --cid-version 0 --raw-leaves=false
kubo_adds trickle unixfs-v0-2015 --trickle
kubo_adds v1 unixfs-v1-2025
[ "ipfs/$(kubo v1 add -Q -r "$W/layouts/app")" = "$ours" ] || fail "Kubo gives the folder another CID"

kubo v1 name publish --allow-offline "/ipfs/$v1_root" >/dev/null
name=$(kubo v1 key list -l --ipns-base=base36 | awk '$2 == "self" {print $1}')
expect_layout "$of_v1_registry" "ipns/$name/app"
"$SHOAL" pull --config "$W/of_v1/config.yaml" "ipns/$name/app:1" 2>&1 | grep -q "from ipfs=$v1_root" || fail "shoal pull tells no source"
say "ipns/$name/app"

root=$(kubo v1 add -Q -r "$W/r/data")
expect_layout "$of_v1_registry" "ipfs/$root/library/app"
say "a docker-registry's folder: ipfs/$root/library/app"

kubo v1 swarm connect "$a_p2p" >/dev/null
image "$W/img" more --seed more; more=$DIGEST
skopeo copy -q "oci:$W/img:more" "oci:$W/layouts/more:latest"
added=$("$SHOAL" layout add --quiet --config "$W/a/config.yaml" "$W/layouts/more")
timeout 60 "$KUBO" --repo-dir "$W/v1/repo" get -o "$W/got" "/$added" >/dev/null
skopeo copy -q "oci:$W/got:latest" "oci:$W/back:x"
[ "$(skopeo inspect --format '{{.Digest}}' "oci:$W/back:x")" = "$more" ] || fail "Kubo got something else"
say "Kubo gets what was added here"

"$SHOAL" layout rm --config "$W/a/config.yaml" "$ours" >/dev/null
"$SHOAL" gc --config "$W/a/config.yaml" >/dev/null
[ "$("$SHOAL" layout ls --config "$W/a/config.yaml" | cut -d' ' -f1)" = "$added" ] || fail "the layout is still listed"
nobody=$(curl -s -o "$W/answer" -w '%{http_code}' "http://$a_registry/v2/ipfs/bafybeielgvrvxuraaa6s36ww575ogm2jc6haclf7sghyf7d3rtiodisbrq/manifests/1")
[ "$nobody" = 503 ] || { cat "$W/answer" >&2; fail "what nobody has is answered with $nobody"; }
