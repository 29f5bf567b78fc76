#!/usr/bin/env bash
# install.sh - the real clients and peers that the scenes run: Debian's containerd, Docker engine, podman, skopeo and
# docker-registry, nginx, newer containerds from later Debian releases (each in a folder of its own), and Kubo built from
# its Go module. Root, Debian 12. What is there already is not installed again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"

export DEBIAN_FRONTEND=noninteractive
packages="containerd runc docker-registry docker.io skopeo podman netavark busybox-static debootstrap python3 wrk curl jq nginx-light openssl"
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

kubo_version=v0.43.0
if [ "$("$KUBO" version --number 2>/dev/null || true)" != "${kubo_version#v}" ]; then
  # Inside Kubo's own module folder, so that its go.sum is what is checked.
  source=$(cd / && go mod download -json "github.com/ipfs/kubo@$kubo_version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  mkdir -p "$(dirname "$KUBO")"
  CGO_ENABLED=0 go -C "$source" build -trimpath -ldflags='-s -w' -o "$KUBO.new" ./cmd/ipfs
  mv -f "$KUBO.new" "$KUBO"
fi

for suite in $NEWER_SUITES; do chroot_install "$suite"; done

containerd --version; dockerd --version; podman --version; skopeo --version; docker-registry --version; "$KUBO" version
for suite in $NEWER_SUITES; do in_chroot "$suite" containerd --version; done
