#!/usr/bin/env bash
# Logging in, as each client does it: with htpasswd for everything, and for pushes only.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "9: login"
export REGISTRY_AUTH_FILE=$W/auth.json DOCKER_CONFIG=$W/docker-client
user=alice password=sésame-7
python3 -W ignore -c 'import crypt, sys; print(sys.argv[1] + ":" + crypt.crypt(sys.argv[2], "$2y$10$abcdefghijklmnopqrstuu"))' \
  "$user" "$password" >"$W/htpasswd"
image "$W/img" 1; one=$DIGEST

# registry_with NAME AUTH - a daemon with this section `auth`.
registry_with() { shoal_config "$1" "" ""; echo "auth: $2" >>"$W/$1/config.yaml"; shoal_start "$1"; }
refuses() { if "$@" >"$W/refused" 2>&1; then fail "this should have been refused: $*"; fi; }
podman_() {
  timeout 120 podman --root "$W/store" --runroot "$W/run" --storage-driver vfs --runtime runc --cgroup-manager cgroupfs "$@"
}
docker_() { timeout 120 docker -H "unix://$W/docker/sock" "$@"; }
ctr_() { timeout 120 ctr -a "$W/containerd.sock" "$@"; }
forget() { rm -rf "$DOCKER_CONFIG"; echo '{}' >"$REGISTRY_AUTH_FILE"; }

# Podman remembers across runs where it saw a blob; a folder of the scene hides that.
mkdir -p "$W/cache" /var/lib/containers/cache
mount --bind "$W/cache" /var/lib/containers/cache
trap 'status=$?; trap - EXIT; umount /var/lib/containers/cache; end_scene; exit $status' EXIT
engine_start() {
  mkdir -p "$W/docker"; echo '{}' >"$W/docker/daemon.json"
  dockerd --config-file "$W/docker/daemon.json" --data-root "$W/docker/data" --exec-root "$W/docker/exec" -p "$W/docker/pid" \
    -H "unix://$W/docker/sock" --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
    >"$W/docker/log" 2>&1 & PIDS+=("$!")
  wait_for 30 "the Docker engine starts" docker_ info
}
containerd_start() {
  printf 'version = 2\nroot = "%s/root"\nstate = "%s/state"\n[grpc]\naddress = "%s"\n[ttrpc]\naddress = "%s.ttrpc"\n' \
    "$W/containerd" "$W/containerd" "$W/containerd.sock" "$W/containerd.sock" >"$W/containerd.toml"
  containerd --config "$W/containerd.toml" --log-level warn >"$W/containerd.log" 2>&1 & PIDS+=("$!")
  wait_for 20 "containerd starts" ctr_ version
}
engine_start
containerd_start

registry_with a "{htpasswd: {realm: The Shoal, path: $W/htpasswd}}"
app=$a_registry/library/app
refuses skopeo login --tls-verify=false -u "$user" -p wrong "$a_registry"
refuses push "$W/img:1" "$app:1"
skopeo login --tls-verify=false -u "$user" -p "$password" "$a_registry" >/dev/null
push "$W/img:1" "$app:1"
expect_image "$app:1" "$one"
skopeo logout "$a_registry" >/dev/null
refuses skopeo inspect --tls-verify=false "docker://$app:1"
say "$(skopeo --version)"

refuses podman_ login --tls-verify=false -u "$user" -p wrong "$a_registry"
refuses podman_ pull -q --tls-verify=false "$app:1"
podman_ login --tls-verify=false -u "$user" -p "$password" "$a_registry" >/dev/null
podman_ pull -q --tls-verify=false "$app:1" >/dev/null
podman_ push -q --tls-verify=false "$app:1" "$app:podman"
say "$(podman --version)"

refuses docker_ login -u "$user" -p wrong "$a_registry"
refuses docker_ pull -q "$app:1"
docker_ login -u "$user" -p "$password" "$a_registry" >/dev/null 2>&1
docker_ pull -q "$app:1" >/dev/null
docker_ tag "$app:1" "$app:docker"
docker_ push -q "$app:docker" >/dev/null
say "$(dockerd --version | cut -d, -f1)"

refuses ctr_ images pull --plain-http --user "$user:wrong" "$app:1"
refuses ctr_ images pull --plain-http "$app:1"
ctr_ images pull --plain-http --user "$user:$password" "$app:1" >/dev/null
ctr_ images push --plain-http --user "$user:$password" "$app:ctr" "$app:1" >/dev/null
say "$(containerd --version | cut -d' ' -f1-3)"
skopeo login --tls-verify=false -u "$user" -p "$password" "$a_registry" >/dev/null
[ "$(skopeo list-tags --tls-verify=false "docker://$app" | jq -c .Tags)" = '["1","ctr","docker","podman"]' ] || fail "not every push is there"
forget

registry_with b "{htpasswd: {realm: The Shoal, path: $W/htpasswd}, anonymous: pull}"
app=$b_registry/library/app
refuses push "$W/img:1" "$app:1"
skopeo copy -q --dest-tls-verify=false --dest-creds "$user:$password" "oci:$W/img:1" "docker://$app:1"
expect_image "$app:1" "$one"
podman_ pull -q --tls-verify=false "$app:1" >/dev/null
refuses podman_ push -q --tls-verify=false "$app:1" "$app:podman"
podman_ push -q --tls-verify=false --creds "$user:$password" "$app:1" "$app:podman"
ctr_ images pull --plain-http "$app:1" >/dev/null
# Of an image that is not there yet: containerd hangs if the first challenge comes to the PUT of a manifest.
image "$W/img" 2 --seed 2
skopeo copy -q "oci:$W/img:2" "oci-archive:$W/two.tar:$b_registry/library/two:1"
ctr_ images import "$W/two.tar" >/dev/null
two=$(ctr_ images ls -q | grep /two)
refuses ctr_ images push --plain-http "$b_registry/library/two:1" "$two"
ctr_ images push --plain-http --user "$user:$password" "$b_registry/library/two:1" "$two" >/dev/null
docker_ pull -q "$app:1" >/dev/null
docker_ tag "$app:1" "$app:docker"
refuses docker_ push -q "$app:docker"
refuses docker_ login -u "$user" -p wrong "$b_registry"
docker_ login -u "$user" -p "$password" "$b_registry" >/dev/null 2>&1
docker_ push -q "$app:docker" >/dev/null
say "anonymous pull, and push by who has logged in"

if grep -F -e "$password" -e "$(printf %s "$user:$password" | base64)" "$W"/[ab]/log; then fail "a password is in the log"; fi
