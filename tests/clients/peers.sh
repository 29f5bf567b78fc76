# peers.sh - the real clients and peers of the scenes; sourced by lib.sh. Each is private: its own folder, its own socket,
# a mirror for docker.io, and a last resort where nobody listens, so that only what the mirror gives can succeed.

# containerd_pull REGISTRY IMAGE - containerd pulls docker.io/IMAGE through REGISTRY and runs it. With SUITE=… that
# release's containerd, in its folder. With HOSTS=… it finds REGISTRY by the hosts.toml files in that folder.
containerd_pull() {
  local registry=$1 image=docker.io/$2 dir sock pid run=() out
  dir=$(mktemp -d "$W/containerd.XXXXXX")
  sock=$dir/sock
  [ -z "${SUITE:-}" ] || run=(in_chroot "$SUITE")
  mkdir -p "$dir/hosts/docker.io"
  [ -n "${HOSTS:-}" ] || printf 'server = "http://127.0.0.1:1"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$registry" \
    >"$dir/hosts/docker.io/hosts.toml"
  printf 'version = 2\nroot = "%s/root"\nstate = "%s/state"\n[grpc]\naddress = "%s"\n[ttrpc]\naddress = "%s.ttrpc"\n' \
    "$dir" "$dir" "$sock" "$sock" >"$dir/config.toml"
  # exec, so that the pid is the daemon's own.
  (IN_CHROOT=exec; [ ${#run[@]} -gt 0 ] || exec containerd --config "$dir/config.toml" --log-level warn
    "${run[@]}" containerd --config "$dir/config.toml" --log-level warn) >"$dir/log" 2>&1 & pid=$!
  PIDS+=("$pid")
  wait_for 60 "containerd starts" "${run[@]}" ctr -a "$sock" version
  "${run[@]}" timeout 120 ctr -a "$sock" images pull --hosts-dir "${HOSTS:-$dir/hosts}" "$image" >"$dir/pull" 2>&1 ||
    { cat "$dir/pull" "$dir/log" >&2; fail "containerd ${SUITE:-} cannot pull $image from $registry"; }
  out=$("${run[@]}" timeout 60 ctr -a "$sock" run --rm "$image" "t$$" 2>"$dir/run") ||
    { cat "$dir/run" "$dir/log" >&2; fail "containerd ${SUITE:-} cannot run $image"; }
  said_hello "$out"
  stop "$pid"
}

# podman_pull REGISTRY IMAGE - podman pulls docker.io/IMAGE by a mirror of registries.conf and runs it. With CONF_D=… it
# finds REGISTRY by the drop-ins in that folder, and nothing else.
podman_pull() {
  local registry=$1 image=docker.io/$2 dir out
  dir=$(mktemp -d "$W/podman.XXXXXX")
  printf '[[registry]]\nprefix = "docker.io"\nlocation = "127.0.0.1:1"\ninsecure = true\n' >"$dir/registries.conf"
  printf '[[registry.mirror]]\nlocation = "%s"\ninsecure = true\npull-from-mirror = "all"\n' "$registry" >>"$dir/registries.conf"
  # podman remembers across runs where it saw a blob, in a folder that no option moves: a tmpfs hides it. It reads drop-ins
  # only beside a registries.conf in the usual place.
  out=$(unshare -m bash -c '
    set -e
    mount --make-rprivate /
    if [ -n "$3" ]; then
      mount --bind "$3" /etc/containers/registries.conf.d
      mount --bind /dev/null /etc/containers/registries.conf
    else
      export CONTAINERS_REGISTRIES_CONF=$1/registries.conf
    fi
    mkdir -p /var/lib/containers/cache
    mount -t tmpfs none /var/lib/containers/cache
    p() {
      timeout 120 podman --root "$dir/store" --runroot "$dir/run" --storage-driver vfs --runtime runc --cgroup-manager cgroupfs "$@"
    }
    dir=$1
    p pull -q "$2" >&2
    p run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$2"' - "$dir" "$image" "${CONF_D:-}" 2>"$dir/log") ||
    { cat "$dir/log" >&2; fail "podman cannot pull and run $image from $registry"; }
  said_hello "$out"
}

# docker_pull REGISTRY IMAGE - a Docker engine pulls IMAGE with --registry-mirror and runs it. With SUITE=… that release's
# engine, in its folder. With ETC=… it finds REGISTRY by the files in that folder, which is its /etc/docker.
docker_pull() {
  local registry=$1 image=$2 dir pid out run=() options=(--registry-mirror "http://$1")
  dir=$(mktemp -d "$W/docker.XXXXXX")
  mkdir "$dir/etc"; echo '{}' >"$dir/etc/daemon.json"
  [ -z "${ETC:-}" ] || options=()
  [ -z "${SUITE:-}" ] || run=(in_chroot "$SUITE")
  (IN_CHROOT=exec; [ ${#run[@]} -gt 0 ] || run=(exec unshare -m)
    "${run[@]}" sh -c 'mount --make-rprivate / && mkdir -p /etc/docker && mount --bind "$0" /etc/docker && exec "$@"' \
    "${ETC:-$dir/etc}" dockerd --data-root "$dir/data" --exec-root "$dir/exec" \
    -p "$dir/pid" -H "unix://$dir/sock" --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
    "${options[@]}") >"$dir/log" 2>&1 & pid=$!
  PIDS+=("$pid")
  wait_for 60 "the Docker engine starts" "${run[@]}" docker -H "unix://$dir/sock" info
  "${run[@]}" timeout 180 docker -H "unix://$dir/sock" pull "$image" >"$dir/pull" 2>&1 ||
    { cat "$dir/pull" >&2; tail -20 "$dir/log" >&2; fail "Docker ${SUITE:-} cannot pull $image from $registry"; }
  out=$("${run[@]}" timeout 60 docker -H "unix://$dir/sock" run --rm --network none "$image" 2>&1) ||
    { echo "$out" >&2; fail "Docker ${SUITE:-} cannot run $image"; }
  said_hello "$out"
  stop "$pid"
}

said_hello() { grep -q 'hello from the image' <<<"$1" || fail "the container said: $1"; }

# registry_start NAME - a stock docker-registry with the filesystem driver below $W/NAME/data; sets NAME_registry. With
# DOCKER_REGISTRY=… another program of the same kind.
registry_start() {
  local name=$1 dir=$W/$1 port pid
  port=$(free_port)
  mkdir -p "$dir"
  printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: "%s/data"}}\nhttp: {addr: "127.0.0.1:%s", secret: test}\n' \
    "$dir" "$port" >"$dir/config.yml"
  "${DOCKER_REGISTRY:-docker-registry}" serve "$dir/config.yml" >"$dir/log" 2>&1 & pid=$!
  PIDS+=("$pid")
  declare -g "${name}_registry=127.0.0.1:$port" "${name}_pid=$pid"
  wait_for 60 "docker-registry starts" curl -sf "http://127.0.0.1:$port/v2/"
}

# kubo_start NAME - an isolated Kubo on loopback with free ports; sets NAME_pid, NAME_peer, NAME_p2p. Use it by `kubo
# NAME …`. PROFILE=… is its import profile, HAMT=… the size above which its directories are sharded; with PUBSUB=1 it has
# names by pubsub alone, and no DHT. With ROUTING_API=1 its gateway is a delegated router too. Sets NAME_gateway, its URL.
kubo_start() {
  local name=$1 dir=$W/$1 pid
  mkdir -p "$dir/repo"
  kubo "$name" init -e >/dev/null
  [ -z "${PROFILE:-}" ] || kubo "$name" config profile apply "$PROFILE" >/dev/null
  kubo "$name" bootstrap rm --all >/dev/null
  while read -r key value; do kubo "$name" config --json "$key" "$value" >/dev/null; done <<'SETTINGS'
AutoConf.Enabled false
Bootstrap []
DNS.Resolvers {}
Routing.DelegatedRouters []
Ipns.DelegatedPublishers []
Routing.Type "dhtserver"
Addresses.API "/ip4/127.0.0.1/tcp/0"
Addresses.Gateway "/ip4/127.0.0.1/tcp/0"
Addresses.Swarm ["/ip4/127.0.0.1/tcp/0","/ip4/127.0.0.1/udp/0/quic-v1"]
Addresses.NoAnnounce []
Swarm.AddrFilters []
Swarm.DisableNatPortMap true
Swarm.RelayClient.Enabled false
Swarm.EnableHolePunching false
Swarm.Transports.Network.Websocket false
Discovery.MDNS.Enabled false
AutoTLS.Enabled false
AutoNAT.ServiceMode "disabled"
SETTINGS
  [ -z "${PUBSUB:-}" ] || { kubo "$name" config --json Ipns.UsePubsub true; kubo "$name" config Routing.Type none; }
  [ -z "${ROUTING_API:-}" ] || kubo "$name" config --json Gateway.ExposeRoutingAPI true
  [ -z "${HAMT:-}" ] || kubo "$name" config Import.UnixFSHAMTDirectorySizeThreshold "$HAMT"
  IPFS_PATH=$dir/repo IPFS_TELEMETRY=off "$KUBO" daemon --enable-gc=false >"$dir/log" 2>&1 & pid=$!
  PIDS+=("$pid")
  wait_for 60 "Kubo starts" grep -q '^Daemon is ready' "$dir/log"
  declare -g "${name}_pid=$pid" "${name}_peer=$(kubo "$name" id -f '<id>')"
  declare -g "${name}_gateway=$(cat "$dir/repo/gateway")"
  declare -g "${name}_p2p=$(kubo "$name" id -f '<addrs>' | tr ' ' '\n' | grep '/ip4/127.0.0.1/tcp/' | head -1)"
}

kubo() { IPFS_PATH=$W/$1/repo IPFS_TELEMETRY=off "$KUBO" "${@:2}"; }

# --- newer releases of the clients, each a Debian tree in a folder ---

chroot_packages() {
  case $1 in
    trixie) echo containerd runc podman skopeo oras ;;
    forky) echo containerd runc docker.io docker-cli docker-compose crane cosign notation ;;
  esac
}

# chroot_install SUITE - the tree of a release, made if it is not there, and its packages as far as they are missing.
chroot_install() {
  local suite=$1 dir=$TOOLS/$1 missing
  [ -e "$dir/.ready" ] || chroot_make "$suite" || { tail -5 "$dir.log" >&2; return 1; }
  # shellcheck disable=SC2046
  missing=$(in_chroot "$suite" sh -c 'for p; do dpkg -s "$p" >/dev/null 2>&1 || echo "$p"; done' - $(chroot_packages "$suite"))
  [ -n "$missing" ] || return 0
  # shellcheck disable=SC2086
  in_chroot "$suite" sh -c 'apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"' - $missing >>"$dir.log" 2>&1 ||
    { tail -5 "$dir.log" >&2; return 1; }
}

chroot_make() {
  local suite=$1 dir=$TOOLS/$1 mirror script=
  rm -rf "$dir"; mkdir -p "$TOOLS"
  mirror=$(awk '/^URIs:|^deb /{for (i=2;i<=NF;i++) if ($i ~ /^http.*\/debian\/?$/) {print $i; exit}}' \
    /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null | head -1)
  [ -e "/usr/share/debootstrap/scripts/$suite" ] || script=/usr/share/debootstrap/scripts/sid
  # shellcheck disable=SC2086
  debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg --include=ca-certificates \
    "$suite" "$dir" "$mirror" $script >"$dir.log" 2>&1 || return 1
  cp /etc/apt/apt.conf.d/99* "$dir/etc/apt/apt.conf.d/" 2>/dev/null || true
  # No service of a package is started.
  printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d"; chmod +x "$dir/usr/sbin/policy-rc.d"
  touch "$dir/.ready"
}

# in_chroot SUITE COMMAND... - with the host's /tmp, /dev, /sys and network, in a mount namespace of its own.
# With IN_CHROOT=exec the shell becomes the command.
in_chroot() {
  local dir=$TOOLS/$1; shift
  local exec_in='
    dir=$1; shift
    mount --make-rprivate /
    mount --rbind "$dir" "$dir"
    mount -t proc proc "$dir/proc"
    mount --rbind /sys "$dir/sys"
    mount --rbind /dev "$dir/dev"
    mount --rbind /tmp "$dir/tmp"
    exec chroot "$dir" "$@"'
  ${IN_CHROOT:-} unshare -m bash -c "$exec_in" - "$dir" "$@"
}
