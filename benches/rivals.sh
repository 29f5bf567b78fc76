#!/usr/bin/env bash
# rivals.sh [ROW...] - Shoal beside Spegel and zot, which no package manager brings: SPEGEL and ZOT name their programs, as built
# from their sources (zot with `go build -tags sync ./cmd/zot`). What is not named is skipped.    rows: spegel zot    MB=500 RUNS=3
#
# spegel: five nodes behind an uplink of 100 Mbit/s, with containerd 2.1 or newer, whose events Spegel needs: what an image of
# 100 MB costs them. zot: one mirror of a docker-registry, which is asked for images of MB in five layers.
# Prints lines like versus.sh's. Needs tests/clients/install.sh, root and a release build; nothing leaves the machine.
set -euo pipefail
. "$(dirname "$0")/../tests/clients/lib.sh"
ROWS=${*:-spegel zot}
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
offline "$@"
MB=${MB:-500} RUNS=${RUNS:-3}
export LOG_LEVEL=${LOG_LEVEL:-warn}
. "$(dirname "$0")/lib.sh"

scene "rivals: medians of $RUNS, $(nproc) cores"
printf '%-52s %10s %10s %-6s %7s    %-5s\n' "" shoal peer unit ratio bar

# --- a cluster ---

# cluster KIND PROGRAM - the figures of one run, into $W/KIND; each has disks of its own.
cluster() {
  local dir=$W/cluster
  mkdir "$dir"; mount -t tmpfs -o size=8g none "$dir"
  CONTAINERD=$W/containerd python3 -B "$(dirname "$0")/cluster.py" "$2" "$dir" "$1" >>"$W/$1" || fail "$1: see above"
  umount "$dir"; rmdir "$dir"
}
figure() { awk -v name="$2" '$1 == name {print $2 == "-" ? "inf" : $2}' "$W/$1" | median; }
# compare NAME FIGURE UNIT - `inf`: it did not succeed.
compare() {
  local ours theirs; ours=$(figure shoal "$2") theirs=$(figure spegel "$2")
  if [ "$theirs" = inf ] && [ "$ours" != inf ]; then printf '%-52s %10.4g %10s %-6s\n' "$1" "$ours" never "$3"; return; fi
  row "$1" "$ours" "$theirs" "$3" lower 1
}
spegel() {
  local n
  printf '#!/bin/bash\n. "%s/lib.sh"\nIN_CHROOT=exec in_chroot forky containerd "$@"\n' "$CLIENTS" >"$W/containerd"; chmod +x "$W/containerd"
  for n in $(seq "$RUNS"); do cluster shoal "$SHOAL"; cluster spegel "$SPEGEL"; done
  compare "four cold nodes at once / Spegel" cold_s s
  compare "… times the image over the uplink" cold_uplink x
  compare "a fifth node later" later_s s
  compare "a tag that moved is pulled as it is now, after" moved_s s
  compare "the registry is gone: a node that is new" outage_s s
  compare "… and all containerds have forgotten the image" forgotten_s s
}

# --- one mirror ---

zot_start() {
  local port; port=$(free_port)
  zot_registry=127.0.0.1:$port
  jq -n --arg root "$W/zot" --arg port "$port" --arg url "http://$r_registry" '{
    distSpecVersion: "1.1.1", storage: {rootDirectory: $root}, http: {address: "127.0.0.1", port: $port}, log: {level: "error"},
    extensions: {sync: {enable: true, registries: [{urls: [$url], onDemand: true, tlsVerify: false, content: [{prefix: "**"}]}]}}
  }' >"$W/zot.json"
  "$ZOT" serve "$W/zot.json" >"$W/zot.log" 2>&1 & zot_pid=$!; PIDS+=("$zot_pid")
  wait_for 20 "zot starts" curl -sf -o /dev/null "http://$zot_registry/v2/"
}
# fresh_image TAG - a new image at the registry.
fresh_image() {
  python3 "$CLIENTS/image.py" "$W/image" "$1" --seed "$1" --layers 5 --kib $((MB * 200)) --plain >/dev/null
  skopeo copy -q --dest-tls-verify=false "oci:$W/image:$1" "docker://$r_registry/bench/app:$1"
  rm -rf "$W/image"; sync
}
pull_image() { rm -rf "$W/out"; skopeo copy -q --src-tls-verify=false "docker://$1/bench/app:$2" "dir:$W/out"; }
# begun MIRROR TAG - the manifest, and the first byte of the first layer; curl fails, since nobody reads more.
begun() {
  local layer
  layer=$(curl -sf -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$1/v2/bench/app/manifests/$2" | jq -r '.layers[0].digest')
  { curl -sf "http://$1/v2/bench/app/blobs/$layer" || true; } | head -c 1 >/dev/null
}
peak_mib() { awk '$1 == "VmHWM:" {print $2 / 1024}' "/proc/$1/status"; }
zot() {
  local tag=0 blob digest
  registry_start r
  zot_start
  shoal_config z "" ""; printf 'proxy: {remoteurl: "http://%s"}\n' "$r_registry" >>"$W/z/config.yaml"; shoal_start z
  cold() { fresh_image "t$1-$2"; seconds "$3" "$4" "t$1-$2"; }
  ours() { cold pull "$1" pull_image "$z_registry"; }; theirs() { cold pullz "$1" pull_image "$zot_registry"; }
  in_turn ours theirs; row "cold image of $MB MB, by skopeo / zot" "$A" "$B" s lower 1
  ours() { cold begun "$1" begun "$z_registry"; sleep 5; }; theirs() { cold begunz "$1" begun "$zot_registry"; sleep 5; }
  in_turn ours theirs; row "cold image, until a layer begins" "$A" "$B" s lower 1
  ours() { seconds pull_image "$z_registry" "tpull-1"; }; theirs() { seconds pull_image "$zot_registry" "tpullz-1"; }
  in_turn ours theirs; row "warm image, by skopeo" "$A" "$B" s lower 1
  ours() { rate_of "http://$z_registry/v2/bench/app/manifests/tpull-1"; }; theirs() { rate_of "http://$zot_registry/v2/bench/app/manifests/tpullz-1"; }
  in_turn ours theirs; row "manifests by tag, 32 connections" "$A" "$B" 1/s higher 1
  ours() { blob=$(fresh_blob "$W/fresh"); sync; seconds push_blob "$z_registry" "$W/fresh" "$blob" PUT; }
  theirs() { blob=$(fresh_blob "$W/fresh"); sync; seconds push_blob "$zot_registry" "$W/fresh" "$blob" PUT; }
  in_turn ours theirs; row "push of a blob of $MB MB" "$A" "$B" s lower 1
  row "memory, peak of all that" "$(peak_mib "$z_pid")" "$(peak_mib "$zot_pid")" MiB lower 1
}

for wanted in $ROWS; do
  case $wanted in
  spegel) program=${SPEGEL:-} ;;
  zot) program=${ZOT:-} ;;
  *) fail "no row $wanted" ;;
  esac
  if [ -x "$program" ]; then "$wanted"; else echo "skipped: $wanted, since ${wanted^^} names no program"; fi
done
