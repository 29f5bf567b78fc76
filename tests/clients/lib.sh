# lib.sh - what the scenes share; sourced, not run. Every process started here is stopped by its pid when the scene
# ends, every folder lies below $W and goes with it. Nothing listens or dials beyond loopback.

TOOLS=${SHOAL_TEST_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/shoal-tests}
KUBO=$TOOLS/ipfs${KUBO_RELEASE:+-$KUBO_RELEASE}
CONFORMANCE=$TOOLS/conformance                  # the OCI distribution-spec conformance suite
PYTHON_TOOLS=$TOOLS/python
INTEROP_TOOLS=$TOOLS/interop                    # Python peers of tests/interop
NEWER_SUITES=${NEWER_SUITES-"trixie forky"}     # Debian 13 and testing: containerd 1.7 and 2.1, and newer clients
CLIENTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$CLIENTS/../.." && pwd)
SHOAL=${SHOAL:-$REPO/target/release/shoal}

# shellcheck source=peers.sh
. "$CLIENTS/peers.sh"

fail() { echo "FAILED: $*" >&2; exit 1; }
say() { echo "  $*"; }

# scene NAME - begins a scene: a scratch folder, and the clean-up at its end.
scene() {
  echo "== $1${MODE:+, with $MODE}${KUBO_RELEASE:+, Kubo $KUBO_RELEASE}"
  W=$(mktemp -d /tmp/shoal-scene.XXXXXX)
  PIDS=()
  trap 'status=$?; trap - EXIT; end_scene; exit $status' EXIT
  trap 'exit 130' INT TERM
}

end_scene() {
  local pid
  for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
  awk -v w="$W/" 'index($2, w) == 1 {print $2}' /proc/mounts | sort -r | while read -r m; do umount "$m" || true; done
  if [ -n "${KEEP:-}" ]; then echo "  kept: $W"; else rm -rf "$W"; fi
}

# wait_for SECONDS DESCRIPTION COMMAND... - polls until COMMAND succeeds.
wait_for() {
  local limit=$1 what=$2 end; shift 2
  end=$((SECONDS + limit))
  until "$@" >"$W/wait.out" 2>&1; do
    [ $SECONDS -lt $end ] || { cat "$W/wait.out" >&2; fail "not within $limit s: $what"; }
    sleep 0.2
  done
}

# news_within SECONDS - how long a connected reader may take for a push: a Kubo does not tell, and is asked once a minute.
news_within() { [ "${MODE:-}" = kubo ] && echo 75 || echo "$1"; }

# shoal_start NAME - the daemon that shoal_config NAME described. Sets NAME_registry (HOST:PORT), NAME_p2p (first address), NAME_ipns, NAME_pid.
shoal_start() {
  local name=$1 dir=$W/$1 pid ready end=$((SECONDS + 60))
  mkdir -p "$dir"
  # The shell empties it only when the daemon starts, and a start before this one has left its ports there.
  rm -f "$dir/out"
  "$SHOAL" serve "$dir/config.yaml" >"$dir/out" 2>>"$dir/log" & pid=$!
  PIDS+=("$pid")
  while [ $SECONDS -lt $end ]; do
    ready=$(grep '^ready ' "$dir/out" 2>/dev/null || true)
    [ -z "$ready" ] || break
    kill -0 "$pid" 2>/dev/null || { cat "$dir/log" >&2; fail "daemon $name did not start"; }
    sleep 0.05
  done
  [ -n "$ready" ] || { cat "$dir/log" >&2; fail "daemon $name is not ready after 60 s"; }
  declare -g "${name}_pid=$pid"
  declare -g "${name}_registry=$(field "$ready" registry | sed 's#^http://##')"
  declare -g "${name}_p2p=$(field "$ready" p2p | cut -d, -f1)"
  declare -g "${name}_ipns=$(field "$ready" ipns)"
}

field() { tr ' ' '\n' <<<"$1" | sed -n "s/^$2=//p"; }

# shoal_config NAME BOOTSTRAP READONLY - writes the config of a daemon on loopback that knows nobody else. Ports are
# free ones, or those of PORTS=HTTP:P2P. With MODE=kubo its network is a Kubo of its own, NAME_kubo, which is started here
# and ends with the daemon.
shoal_config() {
  local name=$1 ports=${PORTS:-0:0} api="" peer
  mkdir -p "$W/$name"
  if [ "${MODE:-}" = kubo ]; then
    [ -d "$W/${name}_kubo" ] || kubo_start "${name}_kubo"
    for peer in ${2//,/ }; do kubo "${name}_kubo" swarm connect "$peer" >/dev/null; done
    api=$(cat "$W/${name}_kubo/repo/api")
  fi
  cat >"$W/$name/config.yaml" <<Y
version: 0.1
log: {level: ${LOG_LEVEL:-info}}
http: {addr: "127.0.0.1:${ports%:*}", debug: {addr: ""}}
storage:
  ipfs:
    rootdirectory: $W/$name/data
    ipfsapiaddress: "$api"
    writeipnskey: "${KEY-self}"
    readonlyipnskeys: [$3]
Y
  [ -n "$api" ] || cat >>"$W/$name/config.yaml" <<Y
p2p:
  listen: [/ip4/127.0.0.1/tcp/${ports#*:}, /ip4/127.0.0.1/udp/${ports#*:}/quic-v1]
  bootstrap: [$2]
  mdns: false
Y
}

# free_port - a port that nobody has right now.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

stop() { kill "$1"; wait "$1" 2>/dev/null || true; }
shoal_stop() { local pid=${1}_pid; kill "${!pid}"; wait "${!pid}" || true; kubo_of_stop "$1"; }
shoal_kill() { local pid=${1}_pid; kill -9 "${!pid}"; wait "${!pid}" 2>/dev/null || true; kubo_of_stop "$1" -9; }
kubo_of_stop() { local pid=${1}_kubo_pid; [ -z "${!pid:-}" ] || { kill ${2:-} "${!pid}"; wait "${!pid}" 2>/dev/null || true; }; }

# No client of ours may reach a public registry when a mirror fails: everything runs without a route out.
offline() {
  [ -n "${SHOAL_OFFLINE:-}" ] || SHOAL_OFFLINE=1 exec unshare -n bash -c 'ip link set lo up; exec "$@"' - "$0" "$@"
}

# image FOLDER TAG [OPTIONS] - an OCI layout with one image; sets DIGEST.
image() {
  local folder=$1 tag=$2; shift 2
  DIGEST=$(python3 "$CLIENTS/image.py" "$folder" "$tag" "$@")
}

push() { skopeo copy -q --dest-tls-verify=false "oci:$1" "docker://$2"; }
# digest_of REGISTRY/REPO:TAG
digest_of() { skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$1"; }
# pull REGISTRY/REPO:TAG FOLDER:TAG
pull() { skopeo copy -q --src-tls-verify=false "docker://$1" "oci:$2"; }

# expect_image REGISTRY/REPO:TAG DIGEST - skopeo pulls it whole, and it is what was pushed.
expect_image() {
  local to
  to=$(mktemp -d "$W/pulled.XXXXXX")
  pull "$1" "$to:x" || fail "skopeo cannot pull $1"
  [ "$(digest_of "$1")" = "$2" ] || fail "$1 is not $2"
  rm -rf "$to"
}
