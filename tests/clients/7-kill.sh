#!/usr/bin/env bash
# Pushes run while the daemon is killed at random moments. After each start, ready within 2 s, every tag that was
# acknowledged is there with all its blobs, and no half-pushed one is.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "7: kill -9, ${KILLS:=100} times"
LOG_LEVEL=warn shoal_config a "" ""
python3 "$CLIENTS/kill.py" "$SHOAL" "$W/a/config.yaml" "$KILLS"
