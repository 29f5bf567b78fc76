#!/usr/bin/env bash
# A folder that a stock docker-registry wrote, added to Kubo in each of its ways and published under its key, is a
# readonly root like any other.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "6: we read Kubo"
registry_start r
image "$W/img" 1 --kib 5000; one=$DIGEST
push "$W/img:1" "$r_registry/library/app:1"
# Enough tags that their directory becomes a HAMT with a low threshold.
for n in $(seq 40); do curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
  --data-binary "@$W/img/blobs/sha256/${one#sha256:}" "http://$r_registry/v2/library/app/manifests/t$n" >/dev/null; done

read_back() {
  local what=$1 profile=$2; shift 2
  local id=${what//[^a-z0-9]/} root peer
  PROFILE=$profile HAMT=${HAMT:-} kubo_start "k$id"
  root=$(kubo "k$id" add -Q -r "$@" "$W/r/data")
  kubo "k$id" name publish --allow-offline "/ipfs/$root" >/dev/null
  peer=k${id}_peer p2p=k${id}_p2p
  KEY="" shoal_config "b$id" "${!p2p}" "${!peer}"
  shoal_start "b$id"
  local registry=b${id}_registry
  expect_image "${!registry}/library/app:1" "$one"
  expect_image "${!registry}/library/app:t17" "$one"
  [ "$(skopeo list-tags --tls-verify=false "docker://${!registry}/library/app" | jq '.Tags | length')" = 41 ] || fail "$what: not all tags are listed"
  say "$what: $root"
  shoal_stop "b$id"
  stop "$(pid_of "k$id")"
}
pid_of() { local pid=${1}_pid; echo "${!pid}"; }

read_back "defaults" "" --cid-version 0 --raw-leaves=false --chunker size-262144
read_back "cid-version 1" "unixfs-v0-2015" --cid-version 1
read_back "trickle" "unixfs-v0-2015" --trickle
read_back "raw-leaves" "unixfs-v0-2015" --raw-leaves
HAMT=100B read_back "hamt" "unixfs-v0-2015"
read_back "unixfs-v1-2025" "unixfs-v1-2025"
