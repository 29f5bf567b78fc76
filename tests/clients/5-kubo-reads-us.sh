#!/usr/bin/env bash
# A real Kubo resolves our name and gets our root: a directory that a stock docker-registry serves.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "5: Kubo reads us"
shoal_config a "" ""; shoal_start a
image "$W/img" 1 --kib 9000; one=$DIGEST
image "$W/img" multi --arch amd64,arm64 --seed m; multi=$DIGEST
push "$W/img:1" "$a_registry/library/app:1"
skopeo copy -q --all --dest-tls-verify=false "oci:$W/img:multi" "docker://$a_registry/library/app:multi"
kubo_start k
kubo k swarm connect "$a_p2p" >/dev/null
pushed() { kubo k ls "/ipns/$a_ipns/docker/registry/v2/repositories/library/app/_manifests/tags" --timeout 5s | grep -q multi; }
wait_for 20 "Kubo sees the pushed tags" pushed
root=$(timeout 30 "$KUBO" --repo-dir "$W/k/repo" name resolve --nocache "$a_ipns")
say "Kubo resolved $root"
mkdir -p "$W/r"
timeout 60 "$KUBO" --repo-dir "$W/k/repo" get -o "$W/r/data" "$root" >/dev/null
registry_start r
expect_image "$r_registry/library/app:1" "$one"
expect_image "$r_registry/library/app:multi" "$multi"
say "docker-registry serves what Kubo got"
finds_us() { kubo k routing findprovs -n 1 "${root#/ipfs/}" --timeout 20s | grep .; }
wait_for 60 "Kubo finds a provider of the root" finds_us
