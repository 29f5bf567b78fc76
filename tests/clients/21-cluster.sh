#!/usr/bin/env bash
# A cluster behind a shaped uplink: each byte crosses it once, whoever asks, whoever dies, and while upstream is gone.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
scene "21: a cluster"
python3 "$CLIENTS/cluster.py" "$SHOAL" "$W/cluster" "$@" || fail "see above"
