#!/usr/bin/env bash
# What is attached to an image is found and pulled at its publisher, and at a reader who knows the publisher's name.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "12: artifacts"
oras_() { in_chroot trixie timeout 60 oras "$@" 2>"$W/said" || { cat "$W/said" >&2; fail "oras $*"; }; }
# attach TYPE REFERENCE [OPTIONS] - a file that says TYPE; sets DIGEST. oras' folder is /, and it takes relative paths.
attach() {
  local file=$W/${1#*/}.txt
  echo "$1" >"$file"
  oras_ attach --plain-http --artifact-type "$1" "${@:3}" --format json "$2" "${file#/}:text/plain" >"$W/attached"
  DIGEST=$(jq -r '.digest // (.reference | split("@")[1])' "$W/attached")
}
# tree REFERENCE - what is attached to it, and to that, as $W/tree. Can be waited for.
tree() { (oras_ discover --plain-http --format tree "$1" >"$W/tree"); }
shows() { tree "$1" && grep -q "$2" "$W/tree"; }
hides() { tree "$1" && ! grep -q "$2" "$W/tree"; }
# expect_attached REFERENCE TYPE - what is attached there is the file that says TYPE.
expect_attached() {
  local to
  to=$(mktemp -d "$W/pulled.XXXXXX")
  oras_ pull --plain-http -o "$to" "$1" >/dev/null
  [ "$(cat "$to$W/${2#*/}.txt")" = "$2" ] || fail "$1 is not what was attached"
}
referrers() { curl -sf "http://${1%%/*}/v2/library/app/referrers/$2"; }

shoal_config a "" ""; shoal_start a
KEY="" shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
at_a=$a_registry/library/app at_b=$b_registry/library/app
image "$W/img" 1; one=$DIGEST
push "$W/img:1" "$at_a:1"
attach example/sbom "$at_a:1"; sbom=$DIGEST
attach example/signature "$at_a@$sbom"; signature=$DIGEST
shows "$at_a:1" example/sbom || fail "the publisher does not show what was attached: $(cat "$W/tree")"
grep -q example/signature "$W/tree" || fail "the publisher does not show what was attached to that: $(cat "$W/tree")"
expect_attached "$at_a@$sbom" example/sbom
expect_attached "$at_a@$signature" example/signature
say "attached, found and pulled at the publisher: oras $(oras_ version | awk 'NR == 1 {print $2}')"

wait_for "$(news_within 30)" "the reader shows the signature" shows "$at_b:1" example/signature
expect_attached "$at_b@$sbom" example/sbom
expect_attached "$at_b@$signature" example/signature
oras_ cp -r --from-plain-http "$at_b:1" --to-oci-layout "$W/copied:1" >/dev/null
for digest in "$one" "$sbom" "$signature"; do
  [ -e "$W/copied/blobs/sha256/${digest#sha256:}" ] || fail "the reader's copy lacks $digest"
done
say "also at a reader who knows the name, and copied from there whole"

KEY="" shoal_config m "" ""
printf 'mirror: {defaultregistry: registry.example, registries: {registry.example: {upstream: "http://%s"}}}\n' "$a_registry" >>"$W/m/config.yaml"
shoal_start m; at_m=$m_registry/library/app
shows "$at_m:1" example/signature || fail "the mirror does not show the signature"
expect_attached "$at_m@$sbom" example/sbom
[ "$(skopeo list-tags --tls-verify=false "docker://$at_m" | jq -c .Tags)" = '["1"]' ] || fail "the mirror lists other tags"
say "also at a mirror of the publisher"

# A client from before the referrers API keeps a list of its own under a tag. What it attaches is in the API all the same.
attach example/older "$at_a:1" --distribution-spec v1.1-referrers-tag; older=$DIGEST
curl -s "http://$a_registry/v2/library/app/tags/list" | jq -e --arg tag "${one/:/-}" '.tags | index($tag)' >/dev/null ||
  fail "the client without the API has not kept its list under ${one/:/-}"
is_listed() { referrers "$1" "$one" | jq -e --arg digest "$older" '.manifests | any(.digest == $digest)'; }
is_listed "$at_a" >/dev/null || fail "the publisher's referrers lack what a client without the API attached"
wait_for "$(news_within 30)" "the reader lists what a client without the API attached" is_listed "$at_b"
[ "$(referrers "$at_b" "$one?artifactType=example/older" | jq -c '[.manifests[].artifactType]')" = '["example/older"]' ] ||
  fail "the reader's referrers are not filtered"
oras_ discover --plain-http --distribution-spec v1.1-referrers-tag "$at_b:1" >"$W/tree"
grep -q example/older "$W/tree" || fail "a client without the API does not find at the reader what it attached"
expect_attached "$at_b@$older" example/older
say "a client without the referrers API attaches and finds"

oras_ manifest delete --plain-http --force "$at_a@$signature" >/dev/null
hides "$at_a:1" example/signature || fail "what was deleted is still shown: $(cat "$W/tree")"
wait_for "$(news_within 30)" "the reader no longer shows what was deleted" hides "$at_b:1" example/signature
shoal_stop a
shows "$at_b:1" example/sbom || fail "without its publisher the reader shows no more: $(cat "$W/tree")"
expect_attached "$at_b@$sbom" example/sbom
say "what is deleted goes, and the rest outlives its publisher"
