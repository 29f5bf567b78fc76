#!/usr/bin/env bash
# run.sh [NUMBER...] - runs the scenes with real clients and peers (all of them, or those with these numbers), one after
# the other, and says how many passed. Some run a second time, with a Kubo for the network of each daemon. Needs
# install.sh, root, and a release build.
set -uo pipefail
cd "$(dirname "$0")"
passed=0 failed=()
with_kubo="2 3"
for scene in $(printf '%s\n' [0-9]*.sh | sort -n); do
  [ $# -eq 0 ] || [[ " $* " == *" ${scene%%-*} "* ]] || continue
  if timeout 900 "./$scene"; then passed=$((passed + 1)); else failed+=("$scene"); fi
  [[ " $with_kubo " == *" ${scene%%-*} "* ]] || continue
  if MODE=kubo timeout 900 "./$scene"; then passed=$((passed + 1)); else failed+=("MODE=kubo $scene"); fi
done
[ ${#failed[@]} -eq 0 ] || echo "failed scenes: ${failed[*]}"
echo "$passed passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ] && [ $passed -gt 0 ]
