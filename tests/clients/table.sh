# table.sh - the clients of the table, one after the other; sourced by 11-clients.sh. CLIENT_OPERATION does one operation
# and fails if the client does, or if what came of it is not what it should be. An operation that is missing here is
# not offered by the client. A row sets: SUITE, whose release of the client it is (empty: this machine's); DIR, a folder
# of its own; OWN, an image nobody has yet, as a layout; own, its digest; MINE, a repository of its own to push to;
# PROXY, a registry that cuts a blob.

# of_suite COMMAND... - COMMAND of the row's release. With IN_CHROOT=exec the shell becomes the command.
of_suite() { if [ -n "$SUITE" ]; then in_chroot "$SUITE" "$@"; else ${IN_CHROOT:-} "$@"; fi; }

# own_archive - the row's own image as $DIR/own.tar, named as it is to be pushed.
own_archive() { skopeo copy -q "oci:$OWN:own" "oci-archive:$DIR/own.tar:$MINE:own"; }

# --- what should have come of it ---

layers_of() { skopeo inspect --tls-verify=false --raw --config "$1" | jq -c .rootfs.diff_ids; }
same() { [ "$1" = "$2" ] || fail "$3 is $1, not $2"; }

# is_whole REFERENCE [DIGEST] - skopeo gets all of it, every platform.
is_whole() {
  skopeo copy -q --all --src-tls-verify=false "docker://$1" "dir:$(mktemp -d "$DIR/whole.XXXXXX")"
  [ $# -lt 2 ] || same "$(digest_of "$1")" "$2" "$1"
}
# is_own REFERENCE [DIGEST] - the row's own image, perhaps with its layers compressed anew.
is_own() { is_whole "$@"; same "$(layers_of "docker://$1")" "$(layers_of "oci:$OWN:own")" "$1"; }
# is_list REFERENCE - an index of two platforms.
is_list() {
  is_whole "$1"
  same "$(skopeo inspect --tls-verify=false --raw "docker://$1" | jq -r '[.manifests[].platform.architecture] | sort | join(" ")')" \
    "amd64 arm64" "the platforms of $1"
}
# is_layout FOLDER DIGEST - an OCI layout whose only tag, if it has any, is DIGEST.
is_layout() { same "$(jq -r '.manifests[0].digest' "$1/index.json")" "$2" "the layout"; }
is_gone() {
  local repository=${1#*/}
  same "$(curl -s -o "$DIR/gone" -w '%{http_code}' "http://${1%%/*}/v2/${repository%:*}/manifests/${1##*:}")" 404 "the answer for $1"
}
has_resumed() {
  grep -q '^cut ' "$DIR/proxy" || fail "nothing was cut"
  grep -q '^resumed ' "$DIR/proxy" || fail "the rest was not asked for"
}

# --- containerd ---

containerd_start() {
  printf 'version = 2\nroot = "%s/root"\nstate = "%s/state"\n[grpc]\naddress = "%s/sock"\n[ttrpc]\naddress = "%s/ttrpc"\n' \
    "$DIR" "$DIR" "$DIR" "$DIR" >"$DIR/config.toml"
  IN_CHROOT=exec of_suite containerd --config "$DIR/config.toml" --log-level warn >"$DIR/log" 2>&1 & PIDS+=("$!")
  wait_for 60 "containerd starts" ctr_ version
}
ctr_() { of_suite timeout 60 ctr -a "$DIR/sock" "$@"; }
containerd_has() { same "$(ctr_ images ls "name==$1" | awk 'NR == 2 {print $3}')" "$2" "$1 in containerd"; }
containerd_push() {
  own_archive
  ctr_ images import "$DIR/own.tar"
  ctr_ images push --plain-http "$MINE:own"
  is_own "$MINE:own" "$own"
}
containerd_tag() { ctr_ images pull --plain-http "$APP:1"; containerd_has "$APP:1" "$one"; }
containerd_digest() { ctr_ images pull --plain-http "$APP@$two"; containerd_has "$APP@$two" "$two"; }
containerd_multi() {
  ctr_ images pull --plain-http --all-platforms "$APP:multi"
  ctr_ images push --plain-http "$MINE:multi" "$APP:multi"
  is_list "$MINE:multi"; same "$(digest_of "$MINE:multi")" "$multi" "what was pushed"
}
containerd_resume() {
  ctr_ images pull --plain-http "$PROXY/library/app:large"
  containerd_has "$PROXY/library/app:large" "$large"; has_resumed
}

# --- Docker, with its own store and with containerd's ---

docker_start() { docker_start_with '{"features": {"containerd-snapshotter": false}}'; }
docker_start_with() {
  echo "$1" >"$DIR/daemon.json"
  IN_CHROOT=exec of_suite dockerd --config-file "$DIR/daemon.json" --data-root "$DIR/data" --exec-root "$DIR/exec" \
    -p "$DIR/pid" -H "unix://$DIR/sock" --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
    >"$DIR/log" 2>&1 & PIDS+=("$!")
  wait_for 60 "the Docker engine starts" docker_ info
}
docker_() { of_suite timeout 60 docker -H "unix://$DIR/sock" "$@"; }
docker_has() { grep -q "@$2" <<<"$(docker_ image inspect --format '{{.RepoDigests}}' "$1")" || fail "Docker has another $1"; }
docker_push() {
  skopeo copy -q "oci:$OWN:own" "docker-archive:$DIR/own.tar:$MINE:own"
  docker_ load -i "$DIR/own.tar"
  docker_ push "$MINE:own"
  is_own "$MINE:own"
}
docker_tag() { docker_ pull "$APP:1"; docker_has "$APP:1" "$one"; }
docker_digest() { docker_ pull "$APP@$two"; docker_has "$APP@$two" "$two"; }
docker_multi() {
  local arch
  for arch in amd64 arm64; do
    docker_ pull --platform "linux/$arch" "$APP:multi"
    same "$(docker_ image inspect --format '{{.Architecture}}' "$APP:multi")" "$arch" "the platform"
    docker_ tag "$APP:multi" "$MINE:$arch"
    docker_ push "$MINE:$arch"
  done
  docker_ manifest create --insecure "$MINE:multi" "$MINE:amd64" "$MINE:arm64"
  docker_ manifest push --insecure "$MINE:multi"
  is_list "$MINE:multi"
}
docker_resume() { docker_ pull "$PROXY/library/app:large"; docker_has "$PROXY/library/app:large" "$large"; has_resumed; }

docker_containerd_start() { docker_start_with '{"features": {"containerd-snapshotter": true}}'; }
docker_containerd_push() { docker_push; }
docker_containerd_tag() { docker_tag; }
docker_containerd_digest() { docker_digest; }
docker_containerd_multi() {
  docker_ pull --platform linux/amd64 "$APP:multi"
  docker_ pull --platform linux/arm64 "$APP:multi"
  docker_ tag "$APP:multi" "$MINE:multi"
  docker_ push "$MINE:multi"
  is_list "$MINE:multi"; same "$(digest_of "$MINE:multi")" "$multi" "what was pushed"
}
docker_containerd_resume() { docker_resume; }

# --- podman, buildah, skopeo ---

podman_() {
  of_suite timeout 60 podman --root "$DIR/store" --runroot "$DIR/run" --storage-driver vfs --runtime runc \
    --cgroup-manager cgroupfs "$@"
}
podman_has() { same "$(podman_ image inspect --format '{{.Digest}}' "$1")" "$2" "$1 in podman"; }
podman_push() {
  own_archive
  podman_ pull -q "oci-archive:$DIR/own.tar"
  podman_ push -q --tls-verify=false "$MINE:own"
  is_own "$MINE:own"
}
podman_tag() { podman_ pull -q --tls-verify=false "$APP:1"; podman_has "$APP:1" "$one"; }
podman_digest() { podman_ pull -q --tls-verify=false "$APP@$two"; podman_has "$APP@$two" "$two"; }
podman_multi() {
  podman_ pull -q --tls-verify=false --arch arm64 "$APP:multi"
  same "$(podman_ image inspect --format '{{.Architecture}}' "$APP:multi")" arm64 "the platform"
  podman_ manifest create list
  podman_ manifest add --all --tls-verify=false list "docker://$APP:multi"
  podman_ manifest push --all --tls-verify=false list "docker://$MINE:multi"
  is_list "$MINE:multi"
}
podman_resume() {
  podman_ pull -q --tls-verify=false "$PROXY/library/app:large"
  podman_has "$PROXY/library/app:large" "$large"; has_resumed
}

buildah_() { timeout 60 buildah --root "$DIR/store" --runroot "$DIR/run" --storage-driver vfs "$@"; }
buildah_has() { same "$(buildah_ inspect --type image --format '{{.FromImageDigest}}' "$1")" "$2" "$1 in buildah"; }
buildah_push() {
  own_archive
  buildah_ pull -q "oci-archive:$DIR/own.tar"
  buildah_ push -q --tls-verify=false "$MINE:own"
  is_own "$MINE:own"
}
buildah_tag() { buildah_ pull -q --tls-verify=false "$APP:1"; buildah_has "$APP:1" "$one"; }
buildah_digest() { buildah_ pull -q --tls-verify=false "$APP@$two"; buildah_has "$APP@$two" "$two"; }
buildah_multi() {
  local arch container
  buildah_ pull -q --tls-verify=false --arch arm64 "$APP:multi"
  buildah_ manifest create list
  for arch in amd64 arm64; do
    container=$(buildah_ from --arch "$arch" scratch)
    buildah_ copy -q "$container" "$OWN/index.json" "/$arch"
    buildah_ commit -q --manifest list "$container"
  done
  buildah_ manifest push -q --all --tls-verify=false list "docker://$MINE:multi"
  is_list "$MINE:multi"
}

skopeo_copy() { of_suite timeout 60 skopeo copy -q --src-tls-verify=false --dest-tls-verify=false "$@"; }
skopeo_push() { skopeo_copy "oci:$OWN:own" "docker://$MINE:own"; is_own "$MINE:own" "$own"; }
skopeo_tag() { skopeo_copy "docker://$APP:1" "oci:$DIR/tag:1"; is_layout "$DIR/tag" "$one"; }
skopeo_digest() { skopeo_copy "docker://$APP@$two" "oci:$DIR/digest:2"; is_layout "$DIR/digest" "$two"; }
skopeo_multi() {
  skopeo_copy --all "docker://$APP:multi" "oci:$DIR/multi:multi"
  skopeo_copy --all "oci:$DIR/multi:multi" "docker://$MINE:multi"
  is_list "$MINE:multi"; same "$(digest_of "$MINE:multi")" "$multi" "what was pushed"
}
skopeo_delete() { of_suite skopeo delete --tls-verify=false "docker://$MINE:own"; is_gone "$MINE:own"; }
skopeo_resume() {
  skopeo_copy "docker://$PROXY/library/app:large" "oci:$DIR/large:1"
  is_layout "$DIR/large" "$large"; has_resumed
}

# --- umoci: its manifests have no mediaType ---

umoci_push() {
  umoci init --layout "$DIR/umoci"
  umoci new --image "$DIR/umoci:1"
  umoci insert --rootless --image "$DIR/umoci:1" "$OWN/index.json" /file
  skopeo_copy "oci:$DIR/umoci:1" "docker://$MINE:1"
  same "$(skopeo inspect --tls-verify=false --raw "docker://$MINE:1" | jq -r .mediaType)" null "its mediaType"
  is_whole "$MINE:1" "$(umoci_digest_of)"
}
umoci_digest_of() { jq -r '.manifests[0].digest' "$DIR/umoci/index.json"; }
# Everybody must be told the type by the registry; containerd is the strictest.
umoci_tag() {
  skopeo_copy "docker://$MINE:1" "oci:$DIR/tag:1"
  umoci unpack --rootless --image "$DIR/tag:1" "$DIR/unpacked"
  cmp "$DIR/unpacked/rootfs/file" "$OWN/index.json"
  timeout 60 ctr -a "$W/containerd/sock" images pull --plain-http "$MINE:1"
}
umoci_digest() { skopeo_copy "docker://$MINE@$(umoci_digest_of)" "oci:$DIR/digest:1"; is_layout "$DIR/digest" "$(umoci_digest_of)"; }

# --- oras, crane ---

oras_() { of_suite timeout 60 oras "$@"; }
oras_push() {
  # Its working folder is /, and it takes relative paths only.
  oras_ push --plain-http "$MINE:own" "${OWN#/}/index.json:text/plain"
  oras_ pull --plain-http -o "$DIR/pulled" "$MINE:own"
  cmp "$DIR/pulled$OWN/index.json" "$OWN/index.json"
}
oras_tag() { oras_ cp --from-plain-http "$APP:1" --to-oci-layout "$DIR/tag:1"; is_layout "$DIR/tag" "$one"; }
oras_digest() { oras_ cp --from-plain-http "$APP@$two" --to-oci-layout "$DIR/digest:2"; is_layout "$DIR/digest" "$two"; }
oras_multi() {
  oras_ cp --from-plain-http "$APP:multi" --to-oci-layout "$DIR/multi:multi"
  oras_ cp --from-oci-layout "$DIR/multi:multi" --to-plain-http "$MINE:multi"
  is_list "$MINE:multi"; same "$(digest_of "$MINE:multi")" "$multi" "what was pushed"
}
oras_delete() { oras_ manifest delete --plain-http --force "$MINE:own"; is_gone "$MINE:own"; }

crane_() { of_suite timeout 60 crane --insecure "$@"; }
crane_push() { crane_ push "$OWN" "$MINE:own"; is_own "$MINE:own" "$own"; }
crane_tag() { crane_ pull --format oci "$APP:1" "$DIR/tag"; is_layout "$DIR/tag" "$one"; }
crane_digest() { crane_ pull --format oci "$APP@$two" "$DIR/digest"; is_layout "$DIR/digest" "$two"; }
crane_multi() {
  crane_ pull --format oci "$APP:multi" "$DIR/multi"
  crane_ push "$DIR/multi" "$MINE:multi"
  is_list "$MINE:multi"; same "$(digest_of "$MINE:multi")" "$multi" "what was pushed"
}
crane_delete() { crane_ delete "$MINE:own"; is_gone "$MINE:own"; }

# --- Python ---

python_oras_() { timeout 60 "$PYTHON_TOOLS/bin/python" "$CLIENTS/python-oras.py" "$@"; }
python_oras_push() {
  head -c 1000000 /dev/urandom >"$DIR/file"
  python_oras_ push "$MINE:own" "$DIR/file"
  head -c 1000000 /dev/urandom >"$DIR/chunks"
  python_oras_ push-chunked "$MINE:chunks" "$DIR/chunks"
}
python_oras_tag() {
  python_oras_ pull "$MINE:own" "$DIR/tag"; cmp "$DIR/tag/file" "$DIR/file"
  python_oras_ pull "$MINE:chunks" "$DIR/tag"; cmp "$DIR/tag/chunks" "$DIR/chunks"
}
python_oras_digest() {
  local digest
  digest=$(skopeo inspect --tls-verify=false --raw "docker://$MINE:own" | sha256sum | cut -d' ' -f1)
  python_oras_ pull "$MINE@sha256:$digest" "$DIR/digest"; cmp "$DIR/digest/file" "$DIR/file"
}
python_oras_delete() { python_oras_ delete "$MINE:own"; is_gone "$MINE:own"; }

dxf_() { DXF_HOST=${APP%%/*} DXF_INSECURE=1 DXF_PLATFORM=${PLATFORM:-linux/amd64} timeout 60 "$PYTHON_TOOLS/bin/dxf" "$@"; }
dxf_push() { head -c 1000000 /dev/urandom >"$DIR/file"; dxf_ push-blob "${MINE#*/}" "$DIR/file" @own; }
dxf_tag() { dxf_ pull-blob "${MINE#*/}" @own >"$DIR/tag"; cmp "$DIR/tag" "$DIR/file"; }
dxf_digest() { dxf_ pull-blob library/app "@$two" >"$DIR/digest"; [ -s "$DIR/digest" ]; }
dxf_multi() {
  local arch
  for arch in amd64 arm64; do
    PLATFORM=linux/$arch dxf_ get-digest library/app multi >"$DIR/config"
    PLATFORM=linux/$arch dxf_ pull-blob library/app "$(cat "$DIR/config")" >"$DIR/$arch"
    same "$(jq -r .architecture "$DIR/$arch")" "$arch" "the platform"
  done
}
dxf_delete() {
  dxf_ del-alias "${MINE#*/}" own
  is_gone "$MINE:own"
  dxf_ del-blob "${MINE#*/}" "sha256:$(sha256sum "$DIR/file" | cut -d' ' -f1)"
}

# --- the tables of README.md ---

# Testing's versions move, and a reason may be worded anew.
comparable() { sed -E 's/ [0-9.]+ \(testing\)/ (testing)/g; s/no: [^|]*/no /g'; }

# table_of_readme HEAD FILE - the table whose first cell is HEAD is the one in FILE, or is made so by UPDATE=1.
table_of_readme() {
  local readme=$CLIENTS/README.md
  if [ -n "${UPDATE:-}" ]; then
    awk -v table="$2" -v head="| $1 |" '
      index($0, head) == 1 {while ((getline line <table) > 0) print line; inside = 1}
      !/^\|/ {inside = 0}
      !inside' "$readme" >"$W/readme"
    cat "$W/readme" >"$readme"
  fi
  diff <(awk -v head="| $1 |" 'index($0, head) == 1 {inside = 1} !/^\|/ {inside = 0} inside' "$readme" | comparable) \
    <(comparable <"$2") >"$W/difference" || {
    cat "$W/failures" "$W/difference" >&2 || true
    fail "the table of README.md is not what was measured"
  }
}
