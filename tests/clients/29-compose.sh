#!/usr/bin/env bash
# `docker compose up` upon docker-compose.yml: the daemon gets well, this machine's Docker pulls through it, and its volume
# outlives it. No public registry can be reached here, so that stand-ins are needed: the image is no outcome of the file's
# `build`, but this build of the daemon with this machine's C library, under the USER, VOLUME, ENTRYPOINT and CMD of that
# recipe; docker.io is a registry in the same namespace; and nobody is to be bootstrapped from.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "29: docker compose"
suite=${NEWER_SUITES##* }
[ "$suite" = forky ] || fail "the scene needs the Compose of Debian testing"
docker_() { in_chroot $suite timeout 120 docker -H "unix://$W/sock" "$@"; }
compose() { docker_ compose --project-name shoal --project-directory "$W/project" -f "$W/project/docker-compose.yml" -f "$W/project/stand-ins.yml" "$@"; }

# An engine of its own, whose bridges and ports are in this namespace. It must not be in a chroot: what is executed in a
# container later, as health checks are, would find itself in the root of the mount namespace.
mkdir -p "$W/project" "$W/etc"
echo '{}' >"$W/etc/daemon.json"
pivoted='
  dir=$1; shift
  mount --make-rprivate /
  mount --rbind "$dir" "$dir"
  mount -t proc proc "$dir/proc"
  mount -t tmpfs none "$dir/run"
  for shared in sys dev tmp; do mount --rbind "/$shared" "$dir/$shared"; done
  cd "$dir"
  pivot_root . mnt
  umount -l /mnt
  exec "$@"'
unshare -m bash -ec "$pivoted" - "$TOOLS/$suite" dockerd --config-file "$W/etc/daemon.json" --data-root "$W/data" \
  --exec-root "$W/exec" -p "$W/pid" -H "unix://$W/sock" >"$W/log" 2>&1 & PIDS+=("$!")
wait_for 60 "the Docker engine starts" docker_ info

# The image, with what the last stage of the recipe says of it.
cp "$REPO/docker-compose.yml" "$W/project/"
mapfile -t says < <(awk '/FROM docker.io\/library\/debian/ {last = 1} last && /^ +(USER|VOLUME|ENTRYPOINT|CMD) /' "$REPO/docker-compose.yml" | sed 's/^ *//')
[ ${#says[@]} = 4 ] || fail "the recipe says ${says[*]}"
changes=(); for line in "${says[@]}"; do changes+=(--change "$line"); done
root=$W/root
mkdir -p "$root"/{usr/local/bin,etc/ssl/certs,tmp,var/lib/shoal,lib64}
cp "$SHOAL" "$root/usr/local/bin/shoal"
ldd "$SHOAL" | awk '$2 == "=>" {print $3} $1 ~ /^\// {print $1}' | while read -r library; do cp -L --parents "$library" "$root"; done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'shoal:x:5000:5000::/var/lib/shoal:/usr/sbin/nologin' >"$root/etc/passwd"
chown 5000:5000 "$root/var/lib/shoal"; chmod 1777 "$root/tmp"
tar -C "$root" -c . | docker_ import "${changes[@]}" --change "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" - shoal:local >/dev/null

# docker.io, at the address that containers have this machine by.
registry_start up
stop "$up_pid"
sed -i 's/addr: "127.0.0.1:/addr: "0.0.0.0:/' "$W/up/config.yml"
docker-registry serve "$W/up/config.yml" >"$W/up/log" 2>&1 & up_pid=$!; PIDS+=("$up_pid")
wait_for 60 "docker-registry starts" curl -sf "http://$up_registry/v2/"
image "$W/img" 1; first=$DIGEST; push "$W/img:1" "$up_registry/library/app:1"
cat >"$W/project/stand-ins.yml" <<Y
services:
  shoal:
    extra_hosts: ["upstream.example:host-gateway"]
    environment:
      REGISTRY_MIRROR_REGISTRIES: "{docker.io: {upstream: \"http://upstream.example:${up_registry##*:}\", tagttl: 0s}}"
      REGISTRY_P2P_BOOTSTRAP: "[]"
Y

compose config --quiet || fail "Compose does not take the file"
docker_ compose --project-directory "$W/project" -f "$W/project/docker-compose.yml" config >"$W/config"
grep -q 'cargo build --release --locked --bin shoal' "$W/config" || fail "Compose has lost the recipe"
compose up --detach --no-build --wait >"$W/up.log" 2>&1 || { cat "$W/up.log" >&2; compose logs >&2; fail "the daemon does not get well"; }
[ "$(docker_ inspect --format '{{.State.Health.Status}}' shoal-shoal-1)" = healthy ] || fail "it is not healthy"
user=$(awk '/^Uid:/ {print $2}' "/proc/$(docker_ inspect --format '{{.State.Pid}}' shoal-shoal-1)/status")
[ "$user" = 5000 ] || fail "it runs as user $user"
say "up and healthy as user 5000: $(compose exec -T shoal shoal status | head -1)"

# pull_through DIGEST - as the head of the file says.
pull_through() {
  local app=127.0.0.1:5000/docker.io/library/app:1
  docker_ pull -q "$app" >"$W/pull" 2>&1 || { cat "$W/pull" >&2; compose logs --tail 30 >&2; fail "Docker cannot pull $app"; }
  docker_ image inspect --format '{{.RepoDigests}}' "$app" | grep -q "$1" || fail "Docker has another image"
  docker_ run --rm --network none "$app" >"$W/run" 2>&1
  grep -q "hello from the image" "$W/run" || fail "the image does not run"
  docker_ image rm -f "$app" >/dev/null
}
pull_through "$first"
key=$(compose exec -T shoal shoal id)
stop "$up_pid"
compose down >>"$W/up.log" 2>&1
compose up --detach --no-build --wait >>"$W/up.log" 2>&1 || fail "it does not get well again"
[ "$(compose exec -T shoal shoal id)" = "$key" ] || fail "its key is another one"
pull_through "$first"
say "pulled through it, and again after \`down\` and \`up\` without the registry"
compose stop >>"$W/up.log" 2>&1
ended=$(docker_ inspect --format '{{.State.ExitCode}}' shoal-shoal-1)
[ "$ended" = 0 ] || fail "it has to be killed: it ended with $ended"
compose down --volumes >>"$W/up.log" 2>&1
[ -z "$(docker_ volume ls -q)" ] || fail "its volume is left"
