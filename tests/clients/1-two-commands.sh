#!/usr/bin/env bash
# Push to a daemon and copy back: the same digest, also after a restart.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "1: two commands"
PORTS="$(free_port):0" shoal_config a "" ""
shoal_start a
image "$W/img" 1; one=$DIGEST
image "$W/img" multi --arch amd64,arm64 --seed m; multi=$DIGEST
push "$W/img:1" "$a_registry/library/app:1"
skopeo copy -q --all --dest-tls-verify=false "oci:$W/img:multi" "docker://$a_registry/library/app:multi"
expect_image "$a_registry/library/app:1" "$one"
say "pushed and copied back: $one"
[ "$(skopeo list-tags --tls-verify=false "docker://$a_registry/library/app" | jq -c .Tags)" = '["1","multi"]' ] || fail "tags are not 1 and multi"

ipns=$a_ipns
shoal_stop a
shoal_start a
[ "$a_ipns" = "$ipns" ] || fail "the name changed over a restart"
expect_image "$a_registry/library/app:1" "$one"
expect_image "$a_registry/library/app:multi" "$multi"
say "still there after a restart"
