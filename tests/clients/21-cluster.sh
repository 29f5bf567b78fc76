#!/usr/bin/env bash
# A cluster behind a shaped uplink: each byte crosses it once, also while upstream is gone. `21-cluster.sh eight killed slow
# dead` runs the scenes whose bounds are not kept on two cores yet.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
scene "21: a cluster"
python3 "$CLIENTS/cluster.py" "$SHOAL" "$W/cluster" "$@" || fail "see above"
