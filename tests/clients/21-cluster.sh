#!/usr/bin/env bash
# A cluster behind a shaped uplink: each byte crosses it once, whoever asks, dies or is slow, also while upstream is gone.
# `21-cluster.sh killed slow` runs those scenes of cluster.py.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
scene "21: a cluster"
python3 "$CLIENTS/cluster.py" "$SHOAL" "$W/cluster" "$@" || fail "see above"
