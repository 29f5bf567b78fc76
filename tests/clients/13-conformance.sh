#!/usr/bin/env bash
# The OCI conformance suite, every API and all data on: against a daemon, and read-only against a reader that has all of
# it from another daemon over the swarm. Nothing fails and nothing is skipped.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "13: conformance"
REPO1=conformance/repo1

# conformance REGISTRY OUT - runs the suite; what it says stands in OUT/screen.txt.
conformance() {
  mkdir -p "$2"
  (cd "$2" && OCI_REGISTRY=$1 OCI_TLS=disabled OCI_VERSION=1.1 OCI_RESULTS_DIR=$2 OCI_REPO1=$REPO1 OCI_REPO2=conformance/repo2 \
    timeout 300 "$CONFORMANCE" >"$2/screen.txt" 2>&1) || true
  # Its summary, since it breaks down over its reports when nothing may be pushed.
  python3 - "$2/screen.txt" <<'P' || { grep -E ': (FAIL|Error|Skip)' -A3 "$2/screen.txt" | head -40 >&2; fail "the suite is not content with $1"; }
import re, sys
count = {name: int(number) for name, number in re.findall(r"^  (Pass|FAIL|Error|Skip|Disabled)\.+: +(\d+)$", open(sys.argv[1]).read(), re.M)}
print("  " + ", ".join(f"{name.lower()} {number}" for name, number in count.items()))
sys.exit(count["Pass"] == 0 or count["FAIL"] + count["Error"] + count["Skip"] > 0)
P
}
on() { local value=$1 name; shift; for name; do export "OCI_$name=$value"; done; }
reading=(API_PULL API_BLOBS_ATOMIC API_BLOBS_DIGEST_HEADER API_MANIFESTS_ATOMIC API_MANIFESTS_DIGEST_HEADER API_TAGS_ATOMIC API_TAGS_LIST API_REFERRER)
writing=(API_PUSH API_BLOBS_DELETE API_MANIFESTS_DELETE API_TAGS_DELETE API_BLOBS_UPLOAD_CANCEL API_BLOBS_MOUNT_ANONYMOUS API_MANIFESTS_TAG_PARAM)
data=(IMAGE INDEX INDEX_LIST SPARSE ARTIFACT SUBJECT SUBJECT_MISSING ARTIFACT_LIST SUBJECT_LIST DATA_FIELD NONDISTRIBUTABLE CUSTOM_FIELDS NO_LAYERS EMPTY_BLOB SHA512)
on true "${reading[@]}" "${writing[@]}" "${data[@]/#/DATA_}"

# The suite pushes images without their blobs on purpose.
LOG_LEVEL=warn shoal_config a "" ""
export REGISTRY_VALIDATION_DISABLED=true; shoal_start a; unset REGISTRY_VALIDATION_DISABLED
say "reading and writing"
conformance "$a_registry" "$W/full"

# What the suite deletes at its end is pushed again for the reader: an image, and an artifact that refers to it.
REPO1=library/app
image "$W/img" 1; one=$DIGEST
push "$W/img:1" "$a_registry/$REPO1:1"
config=$(jq -r .config.digest "$W/img/blobs/sha256/${one#sha256:}")
size=$(stat -c %s "$W/img/blobs/sha256/${one#sha256:}")
artifact=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.example.note","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[],"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s}}' \
  "$config" "$(stat -c %s "$W/img/blobs/sha256/${config#sha256:}")" "$one" "$size")
artifact_digest=sha256:$(printf %s "$artifact" | sha256sum | cut -d' ' -f1)
curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "$artifact" -o /dev/null \
  "http://$a_registry/v2/$REPO1/manifests/$artifact_digest"
push "$W/img:1" "$a_registry/$REPO1:last"
KEY="" shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
has() { curl -sfI "http://$1/v2/$REPO1/manifests/last"; }
wait_for 20 "the reader has the last tag" has "$b_registry"

# Of manifests that it did not push itself the suite wants the digest header without looking at the answer of a HEAD.
curl -sfI "http://$b_registry/v2/$REPO1/manifests/1" | grep -qi "^docker-content-digest: $one" || fail "HEAD gives no digest"
on false "${writing[@]}" API_MANIFESTS_DIGEST_HEADER
export OCI_RO_DATA_TAGS="1 last" OCI_RO_DATA_MANIFESTS="$one $artifact_digest" OCI_RO_DATA_REFERRERS=$one
OCI_RO_DATA_BLOBS=$(jq -r '[.config, .layers[]] | map(.digest) | join(" ")' "$W/img/blobs/sha256/${one#sha256:}")
export OCI_RO_DATA_BLOBS
say "read-only, by name"
conformance "$b_registry" "$W/reader"
