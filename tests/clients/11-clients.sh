#!/usr/bin/env bash
# What each client can do with a daemon: the table of README.md, measured anew and compared. UPDATE=1 writes it there.
set -euo pipefail
# Podman and its kin remember across runs where they saw a blob, in a folder that no option moves: a tmpfs hides it, and
# is emptied between them.
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"; offline "$@"
. "$CLIENTS/table.sh"
scene "11: the table of clients"
[ "$NEWER_SUITES" = "trixie forky" ] || fail "the table needs the clients of Debian 13 and of testing"
memories=(/var/lib/containers/cache "$TOOLS/trixie/var/lib/containers/cache")
for memory in "${memories[@]}"; do mkdir -p "$memory"; mount -t tmpfs none "$memory"; done
export TMPDIR=$W DOCKER_CONFIG=$W/docker-client
mkdir "$DOCKER_CONFIG"; echo '{}' >"$DOCKER_CONFIG/config.json"

shoal_config a "" ""; shoal_start a
APP=$a_registry/library/app
image "$W/img" 1 --seed one --layers 1 --kib 300; one=$DIGEST
image "$W/img" 2 --seed two --layers 1 --kib 300; two=$DIGEST
image "$W/img" large --seed large --layers 1 --kib 5000; large=$DIGEST
image "$W/img" multi --seed multi --layers 1 --kib 300 --arch amd64,arm64; multi=$DIGEST
for tag in 1 2 large multi; do
  skopeo copy -q --all --dest-tls-verify=false "oci:$W/img:$tag" "docker://$APP:$tag"
done

# cell OPERATION - prints `yes`, `no: REASON` or `–`.
cell() {
  local status
  if [[ " ${CANNOT:-} " == *" $1 "* ]] || ! declare -F "${CLIENT}_$1" >/dev/null; then echo –; return; fi
  set +e
  (set -e; "${CLIENT}_$1") >"$DIR/$1.log" 2>&1; status=$?
  set -e
  if [ $status = 0 ]; then echo yes; return; fi
  echo "== $NAME, $1:" >>"$W/failures"; tail -5 "$DIR/$1.log" >>"$W/failures"
  echo "no: $(grep . "$DIR/$1.log" | tail -1 | tr '|' '/' | sed -E 's/127\.0\.0\.1:[0-9]+/REGISTRY/g' | cut -c1-120)"
}

# row CLIENT FOLDER NAME COMMAND... - one client; its version, as major.minor, is what COMMAND says. With SUITE=… that
# release's; CANNOT=… are operations that this version does not offer.
row() {
  CLIENT=$1 DIR=$W/$2 MINE=$a_registry/clients/$2
  local version operation line memory started=$SECONDS
  version=$(of_suite "${@:4}" 2>&1 | grep -Eo '[0-9]+\.[0-9]+' | head -1)
  NAME="${3/VERSION/$version}"
  OWN=$DIR/own; mkdir -p "$DIR"
  for memory in "${memories[@]}"; do rm -rf "${memory:?}"/*; done
  image "$OWN" own --seed "$2" --layers 1 --kib 300; own=$DIGEST
  "$CLIENTS/cutting-proxy.py" "$a_registry" 3000000 >"$DIR/proxy" & PIDS+=("$!")
  wait_for 60 "the proxy starts" test -s "$DIR/proxy"
  PROXY=127.0.0.1:$(head -1 "$DIR/proxy")
  ! declare -F "${CLIENT}_start" >/dev/null || "${CLIENT}_start"
  line="| $NAME |"
  for operation in push tag digest multi delete resume; do line+=" $(cell $operation) |"; done
  echo "$line" >>"$W/table"
  say "$line ($((SECONDS - started)) s)"
}

{
  echo '| client | push | pull by tag | pull by digest | multi-arch | delete | resume |'
  echo '| --- | --- | --- | --- | --- | --- | --- |'
} >"$W/table"
SUITE="" row containerd containerd "containerd VERSION" containerd --version
SUITE=trixie row containerd containerd-trixie "containerd VERSION" containerd --version
SUITE=forky row containerd containerd-forky "containerd VERSION (testing)" containerd --version
SUITE="" row docker docker "Docker VERSION" dockerd --version
SUITE=forky row docker docker-forky "Docker VERSION (testing), its own store" dockerd --version
SUITE=forky row docker_containerd docker-containerd "Docker VERSION (testing), containerd's store" dockerd --version
SUITE="" CANNOT=resume row podman podman "podman VERSION" podman --version
SUITE=trixie row podman podman-trixie "podman VERSION" podman --version
SUITE="" row buildah buildah "buildah VERSION" buildah --version
SUITE="" CANNOT=resume row skopeo skopeo "skopeo VERSION" skopeo --version
SUITE=trixie row skopeo skopeo-trixie "skopeo VERSION" skopeo --version
SUITE="" row umoci umoci "umoci VERSION, by skopeo" umoci --version
SUITE=trixie row oras oras "oras VERSION" oras version
SUITE=forky row crane crane "crane VERSION (testing)" dpkg-query -W crane
SUITE="" row python_oras python-oras "PyPI oras VERSION" "$PYTHON_TOOLS/bin/pip" show oras
SUITE="" row dxf dxf "PyPI python-dxf VERSION" "$PYTHON_TOOLS/bin/pip" show python-dxf

table_of_readme client "$W/table"
