#!/usr/bin/env bash
# B knows A's IPNS name: every kind of client pulls A's image from B, and it runs. Nothing was pushed to B.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "2: by name"
shoal_config a "" ""; shoal_start a
image "$W/img" 1
push "$W/img:1" "$a_registry/library/app:1"
KEY="" shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
[ -z "$b_ipns" ] || fail "a read-only daemon has a name: $b_ipns"
expect_image "$b_registry/library/app:1" "$DIGEST"; say "skopeo"
containerd_pull "$b_registry" library/app:1; say "$(containerd --version | cut -d' ' -f1-3)"
for suite in $NEWER_SUITES; do
  SUITE=$suite containerd_pull "$b_registry" library/app:1
  say "$(in_chroot "$suite" containerd --version | cut -d' ' -f1-3)"
done
podman_pull "$b_registry" library/app:1; say "$(podman --version)"
docker_pull "$b_registry" app:1; say "$(dockerd --version)"
if push "$W/img:1" "$b_registry/library/app:2" 2>"$W/refused"; then fail "a read-only daemon took a push"; fi
