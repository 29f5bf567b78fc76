#!/usr/bin/env bash
# An upstream that fails in every way, between it and the daemon: each client pulls all the same, since it can reach
# upstream itself. The table of README.md, measured anew and compared; UPDATE=1 writes it there.
set -euo pipefail
# Podman remembers across runs where it saw a blob, in a folder that no option moves: a tmpfs hides it.
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"; offline "$@"
. "$CLIENTS/table.sh"
scene "20: the table of faults"
[ "$NEWER_SUITES" = "trixie forky" ] || fail "the table needs the clients of Debian 13 and of testing"
for memory in /var/lib/containers/cache "$TOOLS/trixie/var/lib/containers/cache"; do
  mkdir -p "$memory"; mount -t tmpfs none "$memory"
done
export TMPDIR=$W DOCKER_CONFIG=$W/docker-client
mkdir "$DOCKER_CONFIG"; echo '{}' >"$DOCKER_CONFIG/config.json"

# Each fault, what a path must have in it, and how it is called in the table.
faults=(
  "none -|none" "status-401 /|401" "status-403 /|403" "status-404 /|404" "status-408 /|408" "status-429 /|429"
  "status-500 /|500" "status-503 /|503" "status-404 /blobs/|404 for blobs" "status-503 /blobs/|503 for blobs"
  "hang-header /manifests/|hangs before the header" "hang-body /blobs/|hangs in the body" "reset /blobs/|reset in the body"
  "cut /blobs/|ends in the body" "wrong-bytes /blobs/|wrong bytes" "wrong-length /blobs/|wrong Content-Length"
  "no-digest /|no Docker-Content-Digest" "no-type /|no Content-Type" "loop /|redirect loop" "gzip /|compressed unasked"
  "chunked /|chunked" "http10 /|HTTP/1.0"
)

registry_start up
for n in "${!faults[@]}"; do
  image "$W/img" "$n" --seed "fault $n" --layers 1 --kib 300; push "$W/img:$n" "$up_registry/library/app:$n"
done
"$CLIENTS/faulty-proxy.py" "$up_registry" "$W/fault" >"$W/proxy" & PIDS+=("$!")
wait_for 60 "the proxy starts" test -s "$W/proxy"
port=$(free_port)
PORTS=$port:0 shoal_config a "" ""
cat >>"$W/a/config.yaml" <<Y
mirror:
  defaultregistry: docker.io
  registries: {docker.io: {upstream: "http://127.0.0.1:$(cat "$W/proxy")"}}
Y
mirror=127.0.0.1:$port

# cell N - pulls by a daemon that has nothing while upstream has fault N; prints `yes` or `no: REASON`.
cell() {
  local status image=docker.io/library/app:$1 log=$DIR/$1.log
  rm -rf "$W/a/data"; shoal_start a
  echo "${faults[$1]%|*}" >"$W/fault"
  set +e
  (set -e; "${CLIENT}_fault" "$image") >"$log" 2>&1; status=$?
  set -e
  shoal_kill a
  if [ $status = 0 ]; then echo yes; return; fi
  { echo "== $NAME, ${faults[$1]}:"; tail -5 "$log"; grep -E 'missed|not pulled' "$W/a/log" | tail -3; } >>"$W/failures"
  echo "no: $(grep . "$log" | tail -1 | tr '|' '/' | sed -E 's/127\.0\.0\.1:[0-9]+/REGISTRY/g; s/sha256:[0-9a-f]+/DIGEST/g' | cut -c1-120)"
}

containerd_fault_start() {
  containerd_start
  mkdir -p "$DIR/hosts/docker.io"
  printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$up_registry" "$mirror" \
    >"$DIR/hosts/docker.io/hosts.toml"
}
containerd_fault() { ctr_ images pull --hosts-dir "$DIR/hosts" "$1"; }
mirrors() { echo "{\"registry-mirrors\": [\"http://$mirror\", \"http://$up_registry\"], \"features\": {\"containerd-snapshotter\": $1}}"; }
docker_fault_start() { docker_start_with "$(mirrors false)"; }
docker_fault() { docker_ pull "${1#docker.io/library/}"; }
docker_containerd_fault_start() { docker_start_with "$(mirrors true)"; }
docker_containerd_fault() { docker_fault "$1"; }
podman_fault_start() {
  printf '[[registry]]\nprefix = "docker.io"\nlocation = "%s"\ninsecure = true\n' "$up_registry" >"$DIR/registries.conf"
  printf '[[registry.mirror]]\nlocation = "%s/docker.io"\ninsecure = true\npull-from-mirror = "all"\n' "$mirror" \
    >>"$DIR/registries.conf"
}
podman_fault() { CONTAINERS_REGISTRIES_CONF=$DIR/registries.conf podman_ pull -q "$1"; }

# client CLIENT FOLDER NAME COMMAND... - a column; its version, as major.minor, is what COMMAND says.
client() {
  CLIENT=$1 DIR=$W/$2
  local n version started=$SECONDS
  version=$(of_suite "${@:4}" 2>&1 | grep -Eo '[0-9]+\.[0-9]+' | head -1)
  NAME=${3/VERSION/$version}
  mkdir -p "$DIR"
  "${CLIENT}_fault_start"
  head+=" $NAME |" rule+=" --- |"
  for n in "${!faults[@]}"; do rows[n]+=" $(cell "$n") |"; done
  say "$NAME ($((SECONDS - started)) s)"
}

head="| of upstream |" rule="| --- |" rows=()
for n in "${!faults[@]}"; do rows+=("| ${faults[n]#*|} |"); done
SUITE="" client containerd containerd "containerd VERSION" containerd --version
SUITE=forky client containerd containerd-forky "containerd VERSION (testing)" containerd --version
SUITE="" client podman podman "podman VERSION" podman --version
SUITE=trixie client podman podman-trixie "podman VERSION" podman --version
SUITE="" client docker docker "Docker VERSION" dockerd --version
SUITE=forky client docker docker-forky "Docker VERSION (testing), its own store" dockerd --version
SUITE=forky client docker_containerd docker-containerd "Docker VERSION (testing), containerd's store" dockerd --version
printf '%s\n' "$head" "$rule" "${rows[@]}" >"$W/table"

table_of_readme "of upstream" "$W/table"
