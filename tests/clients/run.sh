#!/usr/bin/env bash
# run.sh [NUMBER...] - runs the scenes with real clients and peers (all of them, or those with these numbers), one after
# the other, and says how many passed. Some run a second time, with a Kubo for the network of each daemon, and one with
# the oldest Kubo. Needs install.sh, root, and a release build.
set -uo pipefail
cd "$(dirname "$0")"
passed=0 failed=()
with_kubo="1 2 3 5 7 16 22 24" with_oldest="27"
for scene in $(printf '%s\n' [0-9]*.sh | sort -n); do
  [ $# -eq 0 ] || [[ " $* " == *" ${scene%%-*} "* ]] || continue
  runs=("")
  [[ " $with_kubo " != *" ${scene%%-*} "* ]] || runs+=("MODE=kubo")
  [[ " $with_oldest " != *" ${scene%%-*} "* ]] || runs+=("KUBO_RELEASE=0.22")
  for run in "${runs[@]}"; do
    # shellcheck disable=SC2086
    if env $run timeout 900 "./$scene"; then passed=$((passed + 1)); else failed+=("${run:+$run }$scene"); fi
  done
done
[ ${#failed[@]} -eq 0 ] || echo "failed scenes: ${failed[*]}"
echo "$passed passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ] && [ $passed -gt 0 ]
