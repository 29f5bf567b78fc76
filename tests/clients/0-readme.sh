#!/usr/bin/env bash
# README's commands, as they stand there, in an empty folder beside the binary. Only the image is one of ours, since
# nothing here reaches a public registry.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "0: README"
mkdir -p "$W/clone/target/release"; cd "$W/clone"
ln -s "$SHOAL" target/release/shoal
export XDG_DATA_HOME=$W/data
python3 - "$REPO/README.md" >"$W/commands" <<'P'
import re, sys
blocks = re.findall(r"^```sh\n(.*?)^```$", open(sys.argv[1]).read(), re.M | re.S)
assert [block for block in blocks if block.startswith("cargo ")] == ["cargo run --release -- serve\n", "cargo test\n"], blocks
print("set -euxo pipefail")
for block in blocks:
    if not block.startswith("cargo "):
        print(block)
P
image image 1
grep -v 'docker://docker.io' "$W/commands" >"$W/offline"
[ $(($(wc -l <"$W/commands") - $(wc -l <"$W/offline"))) -eq 1 ] || fail "README fetches something else than one image"
# `cargo run --release -- serve` and `cargo test` run in CI by themselves.
target/release/shoal serve >"$W/ready" 2>"$W/log" & PIDS+=("$!")
wait_for 60 "the daemon on its defaults serves" grep -q '^ready registry=http://127.0.0.1:5000 ' "$W/ready"
timeout 120 bash -m "$W/offline" >"$W/out" 2>&1 || { tail -30 "$W/out" >&2; fail "README does not work as written"; }
grep -q "$DIGEST" "$W/out" || fail "what was pulled is not what was pushed"
say "every command works"
