#!/usr/bin/env bash
# Signatures of cosign and of notation: signed at the publisher, verified at a reader who knows its name and at a mirror.
set -euo pipefail
. "$(dirname "$0")/lib.sh"; offline "$@"
scene "15: signatures"
export HOME=$W XDG_CONFIG_HOME=$W/config COSIGN_PASSWORD=""
cosign_() { in_chroot forky timeout 60 cosign "$@"; }
notation_() { in_chroot forky timeout 60 notation "$@"; }
quietly() { "$@" >"$W/said" 2>&1 || { cat "$W/said" >&2; fail "$*"; }; }

shoal_config a "" ""; shoal_start a
KEY="" shoal_config b "$a_p2p" "$a_ipns"; shoal_start b
at_a=$a_registry/library/app at_b=$b_registry/library/app
image "$W/img" 1; one=$DIGEST
push "$W/img:1" "$at_a:1"

# Without a transparency log, a time stamper and a certificate authority, since nothing of them can be reached.
quietly cosign_ signing-config create --out "$W/signing.json"
quietly cosign_ trusted-root create --out "$W/root.json"
for key in ours another; do quietly cosign_ generate-key-pair --output-key-prefix "$W/$key"; done
cosign_verifies() {
  cosign_ verify --key "$W/$1.pub" --trusted-root "$W/root.json" --insecure-ignore-tlog --allow-http-registry "$2"
}
quietly cosign_ sign --yes --key "$W/ours.key" --signing-config "$W/signing.json" --trusted-root "$W/root.json" \
  --allow-http-registry "$at_a@$one"
quietly cosign_verifies ours "$at_a:1"
tags=$(curl -s "http://$a_registry/v2/library/app/tags/list" | jq -c .tags)
[ "$tags" = '["1"]' ] || fail "cosign did not use the referrers API: $tags"
wait_for "$(news_within 30)" "cosign verifies at the reader" cosign_verifies ours "$at_b:1"
if cosign_verifies another "$at_b:1" >"$W/said" 2>&1; then fail "cosign takes a signature for another's key"; fi
say "cosign $(in_chroot forky dpkg-query -W -f '${Version}' cosign | grep -Eo '^[0-9]+\.[0-9]+')"

cat >"$W/policy.json" <<'J'
{"version": "1.0", "trustPolicies": [{"name": "ours", "registryScopes": ["*"], "signatureVerification": {"level": "strict"},
 "trustStores": ["ca:ours.example"], "trustedIdentities": ["*"]}]}
J
quietly notation_ cert generate-test --default ours.example
quietly notation_ policy import "$W/policy.json"
if notation_ verify --insecure-registry "$at_a@$one" >"$W/said" 2>&1; then fail "notation verifies what it has not signed"; fi
# It keeps a list under a tag by default, as without the referrers API, and asks the API when it verifies.
quietly notation_ sign --insecure-registry "$at_a@$one"
quietly notation_ verify --insecure-registry "$at_a@$one"
wait_for "$(news_within 30)" "notation verifies at the reader" notation_ verify --insecure-registry "$at_b@$one"
say "notation $(in_chroot forky dpkg-query -W -f '${Version}' notation | grep -Eo '^[0-9]+\.[0-9]+')"

# A daemon of another network, which asks the publisher as it would any registry.
KEY="" shoal_config m "" ""
printf 'mirror: {defaultregistry: registry.example, registries: {registry.example: {upstream: "http://%s"}}}\n' "$a_registry" >>"$W/m/config.yaml"
shoal_start m; at_m=$m_registry/library/app
quietly cosign_verifies ours "$at_m:1"
quietly notation_ verify --insecure-registry "$at_m@$one"
say "both verify at a mirror of the publisher"

shoal_stop a
quietly cosign_verifies ours "$at_b:1"
quietly notation_ verify --insecure-registry "$at_b@$one"
quietly cosign_verifies ours "$at_m:1"
quietly notation_ verify --insecure-registry "$at_m@$one"
say "both verify at the reader, and at the mirror, when the publisher is gone"
