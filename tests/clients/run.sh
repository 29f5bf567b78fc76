#!/usr/bin/env bash
# run.sh [SCENE...] - runs the scenes with real clients and peers (all of them, or those whose names begin so), one
# after the other, and says how many passed. Needs install.sh, root, and a release build.
set -uo pipefail
cd "$(dirname "$0")"
passed=0 failed=()
for scene in [0-9]*.sh; do
  [ $# -eq 0 ] || { for wanted in "$@"; do [[ $scene == "$wanted"* ]] && break; done; [[ $scene == "$wanted"* ]] || continue; }
  if timeout 900 "./$scene"; then passed=$((passed + 1)); else failed+=("$scene"); fi
done
[ ${#failed[@]} -eq 0 ] || echo "failed scenes: ${failed[*]}"
echo "$passed passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ] && [ $passed -gt 0 ]
