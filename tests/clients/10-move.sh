#!/usr/bin/env bash
# Move in from the folder of a docker-registry and out into one; docker-archives and layouts that skopeo and podman
# write and read.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "10: moving in and out"
on_a() { "$SHOAL" "$@" --config "$W/a/config.yaml" 2>"$W/said" || { cat "$W/said" >&2; fail "shoal $*"; }; }
config_of() { skopeo inspect --tls-verify=false --raw --config "docker://$1" | sha256sum | cut -d' ' -f1; }
layers_of() { skopeo inspect --tls-verify=false --raw --config "docker://$1" 2>/dev/null | jq -c .rootfs.diff_ids; }

registry_start r
image "$W/img" 1; one=$DIGEST
image "$W/img" multi --arch amd64,arm64 --seed m; multi=$DIGEST
push "$W/img:1" "$r_registry/library/app:1"
push "$W/img:1" "$r_registry/team/copy:1"
skopeo copy -q --all --dest-tls-verify=false "oci:$W/img:multi" "docker://$r_registry/library/app:multi"
shoal_config a "" ""; shoal_start a
on_a import --json "$W/r/data" >"$W/import"
expect_image "$a_registry/library/app:1" "$one"
expect_image "$a_registry/library/app:multi" "$multi"
expect_image "$a_registry/team/copy:1" "$one"
sent=$(jq -c 'select(.event == "blob" and .done == 0) | .digest' "$W/import")
[ "$(sort <<<"$sent")" = "$(sort -u <<<"$sent")" ] || fail "a blob was sent twice"
say "taken over: $(tail -1 "$W/import")"

on_a export "$W/e/data"
registry_start e
expect_image "$e_registry/library/app:1" "$one"
expect_image "$e_registry/library/app:multi" "$multi"
expect_image "$e_registry/team/copy:1" "$one"
say "docker-registry serves what was exported"

skopeo copy -q --src-tls-verify=false "docker://$a_registry/library/app:1" "docker-archive:$W/skopeo.tar:library/loaded:1"
on_a load "$W/skopeo.tar"
on_a save --format docker-archive library/app:1 "$W/ours.tar"
skopeo copy -q --dest-tls-verify=false "docker-archive:$W/ours.tar" "docker://$r_registry/library/ours:1"
config=$(config_of "$r_registry/library/app:1")
for loaded in "$a_registry/library/loaded:1" "$r_registry/library/ours:1"; do
  [ "$(config_of "$loaded")" = "$config" ] || fail "$loaded is another image"
done
say "skopeo's docker-archive came in, and skopeo reads ours"

store=(--root "$W/p/store" --runroot "$W/p/run" --storage-driver vfs)
on_a save --quiet --format docker-archive library/app:1 - | timeout 120 podman "${store[@]}" load -q >"$W/podman" 2>&1 ||
  { cat "$W/podman" >&2; fail "podman cannot load what was saved"; }
timeout 120 podman "${store[@]}" save -q --format oci-archive library/app:1 2>"$W/podman" | on_a load - library/podman:1
# podman writes the config anew; the layers are what they were.
[ "$(layers_of "$a_registry/library/podman:1")" = "$(layers_of "$a_registry/library/app:1")" ] ||
  fail "podman's oci-archive is another image"
say "podman loads ours, and its oci-archive came in"

on_a save library/app:multi "$W/layout"
[ "$(skopeo inspect --raw "oci:$W/layout:multi" | sha256sum | cut -d' ' -f1)" = "${multi#sha256:}" ] ||
  fail "skopeo does not find the index in the layout"
skopeo copy -q --all "oci:$W/layout:multi" "dir:$W/dir"
say "skopeo reads the layout"
