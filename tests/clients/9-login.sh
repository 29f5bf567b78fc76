#!/usr/bin/env bash
# Logging in, as each client does it: with htpasswd, with tokens, and for pushes only.
set -euo pipefail
# Podman remembers across runs where it saw a blob, in a folder that no option moves: a tmpfs hides it.
[ -n "${SHOAL_MOUNTS:-}" ] || SHOAL_MOUNTS=1 exec unshare -m "$0" "$@"
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "9: login"
mkdir -p /var/lib/containers/cache
mount -t tmpfs none /var/lib/containers/cache
export REGISTRY_AUTH_FILE=$W/auth.json DOCKER_CONFIG=$W/docker-client
user=alice password=sésame-7
python3 -W ignore -c 'import crypt, sys; print(sys.argv[1] + ":" + crypt.crypt(sys.argv[2], "$2y$10$abcdefghijklmnopqrstuu"))' \
  "$user" "$password" >"$W/htpasswd"
image "$W/img" 1; one=$DIGEST

# registry_with NAME AUTH - a daemon with this section `auth`.
registry_with() { LOG_LEVEL=trace shoal_config "$1" "" ""; echo "auth: $2" >>"$W/$1/config.yaml"; shoal_start "$1"; }
refuses() { if "$@" >"$W/refused" 2>&1; then fail "this should have been refused: $*"; fi; }
forget() { rm -rf "$DOCKER_CONFIG"; echo '{}' >"$REGISTRY_AUTH_FILE"; }
podman_() {
  timeout 60 podman --root "$W/store" --runroot "$W/run" --storage-driver vfs --runtime runc --cgroup-manager cgroupfs "$@"
}
docker_() { timeout 60 docker -H "unix://$W/docker/sock" "$@"; }
oras_() { in_chroot trixie timeout 60 oras "$@" --plain-http --registry-config "$W/oras.json"; }
ctr_() { timeout 60 ctr -a "$W/containerd.sock" "$@"; }

mkdir -p "$W/docker"; echo '{}' >"$W/docker/daemon.json"
dockerd --config-file "$W/docker/daemon.json" --data-root "$W/docker/data" --exec-root "$W/docker/exec" -p "$W/docker/pid" \
  -H "unix://$W/docker/sock" --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
  >"$W/docker/log" 2>&1 & PIDS+=("$!")
printf 'version = 2\nroot = "%s/root"\nstate = "%s/state"\n[grpc]\naddress = "%s"\n[ttrpc]\naddress = "%s.ttrpc"\n' \
  "$W/containerd" "$W/containerd" "$W/containerd.sock" "$W/containerd.sock" >"$W/containerd.toml"
containerd --config "$W/containerd.toml" --log-level warn >"$W/containerd.log" 2>&1 & PIDS+=("$!")
wait_for 60 "the Docker engine starts" docker_ info
wait_for 60 "containerd starts" ctr_ version

# everybody_logs_in REGISTRY - nothing goes without a password, everything with it.
everybody_logs_in() {
  local registry=$1 app=$1/library/app
  forget
  refuses skopeo login --tls-verify=false -u "$user" -p wrong "$registry"
  refuses push "$W/img:1" "$app:1"
  skopeo login --tls-verify=false -u "$user" -p "$password" "$registry" >/dev/null
  push "$W/img:1" "$app:1"
  expect_image "$app:1" "$one"
  skopeo copy -q --src-tls-verify=false --dest-tls-verify=false "docker://$app:1" "docker://$registry/library/mounted:1"
  skopeo logout "$registry" >/dev/null
  refuses skopeo inspect --tls-verify=false "docker://$app:1"

  refuses podman_ login --tls-verify=false -u "$user" -p wrong "$registry"
  refuses podman_ pull -q --tls-verify=false "$app:1"
  podman_ login --tls-verify=false -u "$user" -p "$password" "$registry" >/dev/null
  podman_ pull -q --tls-verify=false "$app:1" >/dev/null
  podman_ push -q --tls-verify=false "$app:1" "$app:podman"

  refuses docker_ login -u "$user" -p wrong "$registry"
  refuses docker_ pull -q "$app:1"
  docker_ login -u "$user" -p "$password" "$registry" >/dev/null 2>&1
  docker_ pull -q "$app:1" >/dev/null
  docker_ tag "$app:1" "$app:docker"
  docker_ push -q "$app:docker" >/dev/null

  refuses ctr_ images pull --plain-http --user "$user:wrong" "$app:1"
  refuses ctr_ images pull --plain-http "$app:1"
  ctr_ images pull --plain-http --user "$user:$password" "$app:1" >/dev/null
  ctr_ images push --plain-http --user "$user:$password" "$app:ctr" "$app:1" >/dev/null

  rm -f "$W/oras.json"; echo "a note" >"$W/note"
  refuses oras_ login -u "$user" -p wrong "$registry"
  refuses oras_ push --disable-path-validation "$app:oras" "$W/note"
  oras_ login -u "$user" -p "$password" "$registry" >/dev/null
  oras_ push --disable-path-validation "$app:oras" "$W/note" >/dev/null
  oras_ push --disable-path-validation --annotation is=gone "$app:gone" "$W/note" >/dev/null
  oras_ manifest delete -f "$app:gone" >/dev/null
  oras_ discover "$app:oras" >/dev/null
  oras_ pull "$app:oras" -o "$W" >/dev/null
  [ "$(skopeo list-tags --tls-verify=false "docker://$app" | jq -c .Tags)" = '["1","ctr","docker","oras","podman"]' ] ||
    fail "not every push is there"
}

registry_with a "{htpasswd: {realm: The Shoal, path: $W/htpasswd}}"
everybody_logs_in "$a_registry"
say "htpasswd: $(skopeo --version), $(podman --version), $(dockerd --version | cut -d, -f1), $(containerd --version | cut -d' ' -f1-3), oras $(in_chroot trixie oras version | awk '/^Version/ {print $2}')"

openssl req -newkey rsa:2048 -nodes -keyout "$W/token.key" -x509 -subj /CN=tokens -days 1 -out "$W/token.pem" 2>/dev/null
"$CLIENTS/token-server.py" "$W/token.key" "$W/token.pem" "$user" "$password" us >"$W/token.port" & PIDS+=("$!")
wait_for 60 "the token server starts" test -s "$W/token.port"
registry_with b "{token: {realm: http://127.0.0.1:$(cat "$W/token.port")/token, service: shoal, issuer: us, rootcertbundle: $W/token.pem}}"
everybody_logs_in "$b_registry"
say "tokens: the same"

registry_with c "{htpasswd: {realm: The Shoal, path: $W/htpasswd}, anonymous: pull}"
app=$c_registry/library/app
forget
refuses push "$W/img:1" "$app:1"
skopeo copy -q --dest-tls-verify=false --dest-creds "$user:$password" "oci:$W/img:1" "docker://$app:1"
expect_image "$app:1" "$one"
podman_ pull -q --tls-verify=false "$app:1" >/dev/null
refuses podman_ push -q --tls-verify=false "$app:1" "$app:podman"
podman_ push -q --tls-verify=false --creds "$user:$password" "$app:1" "$app:podman"
docker_ pull -q "$app:1" >/dev/null
docker_ tag "$app:1" "$app:docker"
refuses docker_ push -q "$app:docker"
refuses docker_ login -u "$user" -p wrong "$c_registry"
docker_ login -u "$user" -p "$password" "$c_registry" >/dev/null 2>&1
docker_ push -q "$app:docker" >/dev/null
ctr_ images pull --plain-http "$app:1" >/dev/null
# An image that is not there yet: containerd 1.6 hangs if the first challenge comes to the PUT of a manifest.
image "$W/img" 2 --seed 2
skopeo copy -q "oci:$W/img:2" "oci-archive:$W/two.tar:$c_registry/library/two:1"
ctr_ images import "$W/two.tar" >/dev/null
refuses ctr_ images push --plain-http "$c_registry/library/two:1"
ctr_ images push --plain-http --user "$user:$password" "$c_registry/library/two:1" >/dev/null
say "anonymous pull, and push by who has logged in"

encoded=$(printf %s "$user:$password" | base64)
if grep -F -e "$password" -e "$encoded" -e 'eyJ' "$W"/[abc]/log; then fail "a password or token is in the log"; fi
