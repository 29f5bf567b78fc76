#!/usr/bin/env bash
# What `shoal setup` writes is what containerd, podman and Docker read: each pulls from the daemon by its files alone, and
# `shoal doctor` finds them well. Undone, nothing of it is left.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "18: setup"
# An address of this machine that engines take for another's.
ip addr add 10.9.8.7/32 dev lo
shoal_config a "" ""
sed -i 's/addr: "127.0.0.1:0"/addr: "0.0.0.0:0"/' "$W/a/config.yaml"
shoal_start a
port=${a_registry##*:}
mirror=127.0.0.1:$port elsewhere=10.9.8.7:$port
image "$W/img" 1
# By `ns` and by the default registry; and by the path of podman.
for repository in library/app docker.io/library/app; do push "$W/img:1" "$mirror/$repository:1"; done
probe=docker.io/library/app:1

# shoal_ MACHINE COMMAND... - the command works on the files of a machine, and sees that machine's programs.
shoal_() { PATH=$W/$1/bin:$PATH "$SHOAL" "${@:2}" --root "$W/$1" --mirror "http://$URL" "${REGISTRIES[@]}"; }
REGISTRIES=()
# machine NAME PROGRAM COMMAND... - a machine whose PROGRAM says what COMMAND does.
machine() {
  mkdir -p "$W/$1/bin" "$W/$1/etc"
  "${@:3}" >"$W/$1/version"
  printf '#!/bin/sh\ncat "%s"\n' "$W/$1/version" >"$W/$1/bin/$2"; chmod +x "$W/$1/bin/$2"
}
# Docker writes a key of its own.
files_of() { (cd "$W/$1" && find etc -type f ! -name key.json -exec sha256sum {} + | sort); }
# set_up MACHINE ENGINE - by the files that are there already, and looked over.
set_up() {
  files_of "$1" >"$W/$1/before"
  shoal_ "$1" setup "$2" --yes >"$W/$1/setup"
  shoal_ "$1" setup "$2" --yes | grep -q "^nothing to change for $2" || fail "a second setup of $2 changes something"
}
well() {
  local REGISTRIES=()
  shoal_ "$1" doctor "$2" --probe "$probe" >"$W/$1/doctor" 2>&1 ||
    { cat "$W/$1/doctor" >&2; fail "the doctor of $2 finds something"; }
}
# taken_back MACHINE ENGINE
taken_back() {
  shoal_ "$1" setup "$2" --undo --yes >/dev/null
  diff "$W/$1/before" <(files_of "$1") || fail "undo of $2 leaves something"
}

for suite in "" $NEWER_SUITES; do
  name=containerd-$suite run=() plugin=io.containerd.grpc.v1.cri version=2
  [ -z "$suite" ] || run=(in_chroot "$suite")
  machine "$name" containerd "${run[@]}" containerd --version
  [ "$suite" != forky ] || plugin=io.containerd.cri.v1.images version=3
  mkdir -p "$W/$name/etc/containerd/certs.d/docker.io"
  printf 'version = %s\n[plugins."%s".registry]\n  config_path = "/etc/containerd/certs.d"\n' "$version" "$plugin" \
    >"$W/$name/etc/containerd/config.toml"
  printf '# the old cache\n[host."http://127.0.0.1:1"]\n  capabilities = ["pull", "resolve"]\n' \
    >"$W/$name/etc/containerd/certs.d/docker.io/hosts.toml"
  for url in "$mirror" "$elsewhere"; do
    URL=$url set_up "$name" containerd
    URL=$url well "$name" containerd
    HOSTS=$W/$name/etc/containerd/certs.d SUITE=$suite containerd_pull "$url" library/app:1
    URL=$url taken_back "$name" containerd
  done
  say "$(cut -d' ' -f1-3 "$W/$name/version")"
done

machine podman podman podman --version
mkdir -p "$W/podman/etc/containers/registries.conf.d"
URL=$elsewhere set_up podman podman
URL=$elsewhere well podman podman
CONF_D=$W/podman/etc/containers/registries.conf.d podman_pull "$elsewhere" library/app:1
URL=$elsewhere taken_back podman podman
say "$(podman --version)"

for suite in "" ${NEWER_SUITES##* }; do
  name=docker-$suite run=()
  [ -z "$suite" ] || run=(in_chroot "$suite")
  machine "$name" dockerd "${run[@]}" dockerd --version
  mkdir -p "$W/$name/etc/docker"
  store=${suite:+, \"features\": {\"containerd-snapshotter\": true\}}
  printf '{"log-level": "warn"%s}' "$store" >"$W/$name/etc/docker/daemon.json"
  [ -z "$suite" ] || REGISTRIES=(--registry docker.io --registry quay.io)
  URL=$elsewhere set_up "$name" docker
  URL=$elsewhere well "$name" docker
  ETC=$W/$name/etc/docker SUITE=$suite docker_pull "$elsewhere" app:1
  [ -z "$suite" ] || ETC=$W/$name/etc/docker SUITE=$suite docker_pull "$elsewhere" quay.io/library/app:1
  URL=$elsewhere taken_back "$name" docker
  say "$(cat "$W/$name/version")${suite:+, the store of containerd}"
done
