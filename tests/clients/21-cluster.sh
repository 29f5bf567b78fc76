#!/usr/bin/env bash
# A cluster behind a shaped uplink: each byte crosses it once, also while upstream is gone. `21-cluster.sh widest` runs
# the one whose bound on time is not kept in every run on two cores.
set -euo pipefail
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"
scene "21: a cluster"
mkdir "$W/cluster"
# Nodes have disks of their own: one for all would be what is measured. 9 GB at most.
if [ "$(awk '$1 == "MemAvailable:" {print $2}' /proc/meminfo)" -gt 14000000 ]; then mount -t tmpfs -o size=12g none "$W/cluster"; fi
python3 -B "$CLIENTS/cluster.py" "$SHOAL" "$W/cluster" "$@" || fail "see above"
