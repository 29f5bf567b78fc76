#!/usr/bin/env bash
# Images are pushed in turn, each in the place of the oldest, until GIB gibibytes went in: the disk never has more than
# what is live, half as much again, and a segment. Pulls of what stays go on meanwhile.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
GIB=${GIB:-20} LIVE_IMAGES=5 IMAGE_MIB=200
scene "14: space, $GIB GiB through $((LIVE_IMAGES * IMAGE_MIB)) MiB"
LOG_LEVEL=warn shoal_config a "" ""; shoal_start a
python3 "$CLIENTS/space.py" "http://$a_registry" "$W/a/data/packs" "$GIB" "$LIVE_IMAGES" "$IMAGE_MIB"
