//! The keys whose tokens are believed: those in the certificate bundle, those in the JSON Web Key Set, and the leaves of
//! certificate chains that end in the bundle.
//!
//! A key says which algorithms fit it, so that a token cannot choose how it is verified; and a key that comes inside a
//! token is never used unless it is one of these.

use std::collections::HashMap;

use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters, Jwk, JwkSet,
    OctetKeyPairParameters, PublicKeyUse, RSAKeyParameters, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use multibase::Base;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384, OID_SIG_ED25519};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

/// Certificates in the header of a token.
const CHAIN_LENGTH_MAX: usize = 8;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// A public key, and the algorithms that fit it: never those of a shared secret.
#[derive(Clone)]
pub(super) struct VerifyingKey {
    pub(super) key: DecodingKey,
    pub(super) algorithms: Vec<Algorithm>,
}

impl VerifyingKey {
    fn new(jwk: &Jwk) -> Result<Self, &'static str> {
        let fit: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => RSA,
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return Err("its curve is neither P-256 nor P-384"),
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            AlgorithmParameters::OctetKey(_) => return Err("a shared secret is no public key"),
            _ => return Err("its type is neither RSA, EC nor Ed25519"),
        };
        if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
            return Err("it is for encryption");
        }
        let named = jwk.common.key_algorithm.map(Algorithm::try_from);
        let named = named.transpose().map_err(|_| "its algorithm is unknown")?;
        let algorithms: Vec<_> =
            fit.iter().copied().filter(|algorithm| named.is_none_or(|named| named == *algorithm)).collect();
        if algorithms.is_empty() {
            return Err("its algorithm does not fit its type");
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|_| "it is malformed")?;
        Ok(Self { key, algorithms })
    }
}

/// What tokens may be signed with.
#[derive(Default)]
pub(super) struct TrustedKeys {
    /// By each name that a `kid` may have: that of the key set, the thumbprint of RFC 7638, and libtrust's fingerprint.
    by_id: HashMap<String, VerifyingKey>,
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustedKeys {
    /// Reads the certificates of a PEM bundle and adds their keys. A key that cannot sign tokens, but perhaps
    /// certificates, is no error.
    pub(super) fn add_bundle(&mut self, pem: &[u8]) -> Result<(), String> {
        for (n, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let wrong = |error: &dyn std::fmt::Display| format!("certificate {}: {error}", n + 1);
            let certificate = certificate.map_err(|error| wrong(&error))?;
            let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|error| wrong(&error))?;
            self.anchors.push(anchor.to_owned());
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| wrong(&error))?;
            if let Ok((jwk, key)) = certified_key(&parsed) {
                let ids = thumbprint(&jwk).into_iter().chain([fingerprint(parsed.public_key().raw)]);
                self.by_id.extend(ids.map(|id| (id, key.clone())));
            }
            self.certificates.push(certificate.into_owned());
        }
        Ok(())
    }

    /// Adds the keys of a JSON Web Key Set (RFC 7517). Those of a kind that cannot sign tokens are passed over (section
    /// 5), with a line in the log.
    pub(super) fn add_jwks(&mut self, json: &[u8]) -> Result<(), String> {
        let set: JwkSet =
            serde_json::from_slice(json).map_err(|error| format!("no JSON Web Key Set: {error}"))?;
        for (n, jwk) in set.keys.iter().enumerate() {
            match VerifyingKey::new(jwk) {
                Ok(key) => {
                    let ids = jwk.common.key_id.iter().cloned().chain(thumbprint(jwk));
                    self.by_id.extend(ids.map(|id| (id, key.clone())));
                }
                Err(reason) => {
                    tracing::warn!(key = n, reason, "a key of auth.token.jwks cannot sign tokens");
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty() && self.certificates.is_empty()
    }

    /// The key that a token's header names, if it is to be believed at `now`, in seconds since 1970. In the order of
    /// distribution: a chain of certificates, a key in the header, the name of a key.
    pub(super) fn find(&self, header: &Header, now: u64) -> Result<VerifyingKey, &'static str> {
        let known = |id: &str| self.by_id.get(id).cloned();
        if let Some(chain) = &header.x5c {
            return self.chained(chain, now);
        }
        if let Some(jwk) = &header.jwk {
            if let Some(chain) = &jwk.common.x509_chain {
                return self.chained(chain, now);
            }
            // The key is looked up, not taken: a header can hold anything.
            let ids = jwk.common.key_id.iter().cloned().chain(thumbprint(jwk));
            return ids.into_iter().find_map(|id| known(&id)).ok_or("its key is not trusted");
        }
        let id = header.kid.as_deref().ok_or("it names no key")?;
        known(id).ok_or("its key is not trusted")
    }

    /// The key of a chain's leaf: a certificate of the bundle, or one that leads to it, valid at `now` all the way.
    fn chained(&self, chain: &[String], now: u64) -> Result<VerifyingKey, &'static str> {
        if chain.is_empty() || chain.len() > CHAIN_LENGTH_MAX {
            return Err("its chain has no certificates, or too many");
        }
        let decode = |text: &String| Base::Base64Pad.decode(text).map(CertificateDer::from);
        let chain: Vec<_> =
            chain.iter().map(decode).collect::<Result<_, _>>().map_err(|_| "its chain is malformed")?;
        let leaf = &chain[0];
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| "its certificate is malformed")?;
        if self.certificates.contains(leaf) {
            let now = i64::try_from(now).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
            if !now.is_some_and(|now| parsed.validity().is_valid_at(now)) {
                return Err("its certificate is not valid at this time");
            }
        } else {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
            let end_entity = EndEntityCert::try_from(leaf).map_err(|_| "its certificate is malformed")?;
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            end_entity
                .verify_for_usage(algorithms, &self.anchors, &chain[1..], now, AnyUsage, None, None)
                .map_err(|_| "its certificate does not lead to the bundle")?;
        }
        certified_key(&parsed).map(|(_, key)| key)
    }
}

/// No extended key usage is reserved for registry tokens: distribution takes any.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn certified_key(certificate: &X509Certificate<'_>) -> Result<(Jwk, VerifyingKey), &'static str> {
    const UNSUITABLE: &str = "the key of its certificate is neither RSA, P-256, P-384 nor Ed25519";
    let encode = |bytes: &[u8]| Base::Base64Url.encode(bytes);
    let info = certificate.public_key();
    let algorithm = match info.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let number = |bytes: &[u8]| encode(&bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]);
            AlgorithmParameters::RSA(RSAKeyParameters {
                n: number(key.modulus),
                e: number(key.exponent),
                ..RSAKeyParameters::default()
            })
        }
        Ok(PublicKey::EC(point)) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
            let (curve, size_bytes) = match curve {
                Some(curve) if curve == OID_EC_P256 => (EllipticCurve::P256, 32),
                Some(curve) if curve == OID_NIST_EC_P384 => (EllipticCurve::P384, 48),
                _ => return Err(UNSUITABLE),
            };
            let [4, coordinates @ ..] = point.data() else { return Err(UNSUITABLE) };
            let Some((x, y)) = coordinates.split_at_checked(size_bytes) else { return Err(UNSUITABLE) };
            AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                curve,
                x: encode(x),
                y: encode(y),
                ..EllipticCurveKeyParameters::default()
            })
        }
        _ if info.algorithm.algorithm == OID_SIG_ED25519 => {
            AlgorithmParameters::OctetKeyPair(OctetKeyPairParameters {
                curve: EllipticCurve::Ed25519,
                x: encode(&info.subject_public_key.data),
                ..OctetKeyPairParameters::default()
            })
        }
        _ => return Err(UNSUITABLE),
    };
    let jwk = Jwk { common: CommonParameters::default(), algorithm };
    let key = VerifyingKey::new(&jwk)?;
    Ok((jwk, key))
}

/// RFC 7638, with SHA-256.
fn thumbprint(jwk: &Jwk) -> Option<String> {
    jwk.thumbprint(ThumbprintHash::SHA256).ok()
}

/// The name that libtrust gives a key, which older token servers send: 240 bits of the SHA-256 of its DER form, in base32,
/// a colon between each four characters.
fn fingerprint(der: &[u8]) -> String {
    let text = Base::Base32Upper.encode(&Sha256::digest(der)[..30]);
    let groups: Vec<_> = text.as_bytes().chunks(4).map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(":")
}
