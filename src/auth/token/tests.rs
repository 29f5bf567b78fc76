use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header, encode};
use multibase::Base;
use proptest::prelude::*;
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, KeyPair};
use serde_json::json;

use super::*;
use crate::oci::Action;

/// A P-256 certificate by openssl, and the names of its key by Python's hashlib.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIUD1cMeeKk3bVHHwP9uYYpZON9eQEwCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFdG9rZW4wIBcNMjYxMTI1MDIzMDExWhgPMjEyNjExMDEwMjMw
MTFaMBAxDjAMBgNVBAMMBXRva2VuMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
JbDkqgDiKS2g4W74Hmwhle4Ur0nA5CMu1OiIM7bVgDL0etRceNCmW3e69YzJmqLr
qnPEf/z9OP3XwhfCPichtaNTMFEwHQYDVR0OBBYEFBgXy7O9rOeWVa0bN0EQ/HfX
HleJMB8GA1UdIwQYMBaAFBgXy7O9rOeWVa0bN0EQ/HfXHleJMA8GA1UdEwEB/wQF
MAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAOYVVWKhycLiULKVNEcmA9jdI0/McSrD
ZXtWjniqdwK3AiBRaKmBg8bQvZeILmC+zC7UcR8SnzHBEP1J8w/KkiY5eA==
-----END CERTIFICATE-----
";
const FINGERPRINT: &str = "WJR5:AEFL:VOSQ:ESFD:5OPK:U33U:MILB:7JKT:VIGI:6M4V:IT33:KIIR";
const THUMBPRINT: &str = "Y0T3M_kRWkrGU7271ZeS2AF54s9sfyHaiT5Na1Jtrhg";

/// A key that signs tokens, and its certificate.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    pair: KeyPair,
    certificate: Certificate,
}

impl Signer {
    fn new(algorithm: Algorithm) -> Self {
        let (pair, key) = match algorithm {
            Algorithm::ES256 => ec(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::ES384 => ec(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::EdDSA => ed25519(),
            _ => rsa(),
        };
        let certificate = params("token server", IsCa::NoCa).self_signed(&pair).unwrap();
        Self { algorithm, key, pair, certificate }
    }

    fn tokens(&self) -> Tokens {
        tokens(|keys| keys.add_bundle(self.certificate.pem().as_bytes()).unwrap())
    }

    fn jwk(&self) -> Jwk {
        Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()
    }

    /// A header that names the key as RFC 7638 does.
    fn header(&self) -> Header {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.jwk().thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256).unwrap());
        header
    }

    fn sign(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.key).unwrap()
    }

    fn token(&self) -> String {
        self.sign(&self.header(), &claims())
    }
}

fn ec(algorithm: &'static rcgen::SignatureAlgorithm) -> (KeyPair, EncodingKey) {
    let pair = KeyPair::generate_for(algorithm).unwrap();
    let key = EncodingKey::from_ec_der(&pair.serialize_der());
    (pair, key)
}

fn ed25519() -> (KeyPair, EncodingKey) {
    let generated = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
    let key = EncodingKey::from_ed_der(generated.as_ref());
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(generated.as_ref());
    (KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).unwrap(), key)
}

fn rsa() -> (KeyPair, EncodingKey) {
    let generated = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = generated.as_der().unwrap();
    let der = der.as_ref().to_vec();
    // The key itself is the third field of PKCS #8.
    let (_, info) = x509_parser::der_parser::parse_der(&der).unwrap();
    let key = EncodingKey::from_rsa_der(info.as_sequence().unwrap()[2].as_slice().unwrap());
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der);
    (KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_RSA_SHA256).unwrap(), key)
}

fn params(name: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params
}

fn authority() -> IsCa {
    IsCa::Ca(BasicConstraints::Unconstrained)
}

fn tokens(add: impl FnOnce(&mut TrustedKeys)) -> Tokens {
    let mut keys = TrustedKeys::default();
    add(&mut keys);
    let algorithms =
        [Algorithm::RS256, Algorithm::PS512, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];
    Tokens {
        service: "shoal".to_owned(),
        issuer: "https://auth.example".to_owned(),
        algorithms: algorithms.to_vec(),
        keys,
    }
}

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn claims() -> Value {
    json!({
        "iss": "https://auth.example", "aud": "shoal", "sub": "alice",
        "iat": now(), "nbf": now(), "exp": now() + 300,
        "access": [{"type": "repository", "name": "library/app", "actions": ["pull", "push"]}],
    })
}

/// Claims with one of them replaced; `null` takes it away.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn access(name: &str, action: Action) -> Access {
    Access::Repository { name: name.parse().unwrap(), action }
}

fn certificate_text(certificate: &Certificate) -> String {
    Base::Base64Pad.encode(certificate.der())
}

#[test]
fn each_algorithm_is_verified_by_the_key_of_a_certificate() {
    for algorithm in
        [Algorithm::RS256, Algorithm::PS512, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA]
    {
        let signer = Signer::new(algorithm);
        let grants = signer.tokens().verify(&signer.token(), now()).unwrap();
        assert!(cover(&grants, &access("library/app", Action::Push)), "{algorithm:?}");
    }
}

#[test]
fn a_key_has_the_names_of_rfc_7638_and_of_libtrust() {
    let mut keys = TrustedKeys::default();
    keys.add_bundle(format!("a comment\n{CERTIFICATE}").as_bytes()).unwrap();
    for id in [FINGERPRINT, THUMBPRINT] {
        let header = Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::ES256) };
        assert!(keys.find(&header, now()).is_ok(), "{id}");
    }
}

#[test]
fn a_key_of_a_key_set_is_found_by_its_name() {
    let (signer, other) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::RS256));
    let mut jwk = signer.jwk();
    jwk.common.key_id = Some("2026".to_owned());
    let set = json!({"keys": [
        {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "new", "x": 1}, serde_json::to_value(&jwk).unwrap(),
        serde_json::to_value(other.jwk()).unwrap(),
    ]});
    let tokens = tokens(|keys| keys.add_jwks(set.to_string().as_bytes()).unwrap());
    let header = Header { kid: Some("2026".to_owned()), ..Header::new(Algorithm::ES256) };
    assert!(tokens.verify(&signer.sign(&header, &claims()), now()).is_ok());
    assert!(tokens.verify(&signer.token(), now()).is_ok(), "by its thumbprint");
    assert!(tokens.verify(&other.token(), now()).is_ok());
    assert!(TrustedKeys::default().add_jwks(b"{}").is_err());
}

#[test]
fn a_chain_that_leads_to_the_bundle_is_believed() {
    let root_pair = KeyPair::generate().unwrap();
    let root = params("root", authority()).self_signed(&root_pair).unwrap();
    let middle_pair = KeyPair::generate().unwrap();
    let middle = params("middle", authority()).signed_by(&middle_pair, &root, &root_pair).unwrap();
    let signer = Signer::new(Algorithm::ES256);
    let direct = params("leaf", IsCa::NoCa).signed_by(&signer.pair, &root, &root_pair).unwrap();
    let leaf = params("leaf", IsCa::NoCa).signed_by(&signer.pair, &middle, &middle_pair).unwrap();
    let mut old = params("leaf", IsCa::NoCa);
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let old = old.signed_by(&signer.pair, &root, &root_pair).unwrap();
    let trusting = tokens(|keys| keys.add_bundle(root.pem().as_bytes()).unwrap());

    let verify = |tokens: &Tokens, chain: &[&Certificate]| {
        let chain = chain.iter().map(|certificate| certificate_text(certificate)).collect();
        let header = Header { x5c: Some(chain), ..Header::new(Algorithm::ES256) };
        tokens.verify(&signer.sign(&header, &claims()), now()).map(|_| ())
    };
    assert_eq!(verify(&trusting, &[&direct]), Ok(()));
    assert_eq!(verify(&trusting, &[&leaf, &middle]), Ok(()));
    assert_eq!(verify(&signer.tokens(), &[&signer.certificate]), Ok(()), "the bundle has the leaf itself");

    let stray = Err(InvalidToken("its certificate does not lead to the bundle"));
    assert_eq!(verify(&trusting, &[&leaf]), stray);
    assert_eq!(verify(&trusting, &[&old]), stray);
    assert_eq!(verify(&trusting, &[&signer.certificate]), stray);
    assert_eq!(
        verify(&trusting, &[&root]).unwrap_err().0,
        "its signature is wrong",
        "the root's key did not sign"
    );
    assert_eq!(verify(&trusting, &[]), Err(InvalidToken("its chain has no certificates, or too many")));
    assert_eq!(
        verify(&trusting, &[&leaf; 9]),
        Err(InvalidToken("its chain has no certificates, or too many"))
    );
}

#[test]
fn claims_that_do_not_hold_are_refused() {
    let signer = Signer::new(Algorithm::ES256);
    let tokens = signer.tokens();
    let cases = [
        (with("exp", json!(now() - 61)), Some("it has expired")),
        (with("exp", json!(now() - 30)), None),
        (with("exp", json!(null)), Some("it lacks one of exp, iss and aud")),
        (with("exp", json!("tomorrow")), Some("it lacks one of exp, iss and aud")),
        (with("nbf", json!(now() + 90)), Some("it is of the future")),
        (with("nbf", json!(now() + 30)), None),
        (with("nbf", json!("yesterday")), Some("it is malformed")),
        (with("nbf", json!(null)), None),
        (with("iat", json!(now() + 90)), Some("it is of the future")),
        (with("iat", json!(null)), None),
        (with("aud", json!("another")), Some("it is for another service")),
        (with("aud", json!(["another", "shoal"])), None),
        (with("aud", json!([])), Some("it is for another service")),
        (with("aud", json!(null)), Some("it lacks one of exp, iss and aud")),
        (with("iss", json!("https://evil.example")), Some("its issuer is another")),
        (with("iss", json!(["https://evil.example", "https://auth.example"])), Some("it is malformed")),
        (with("iss", json!(null)), Some("it lacks one of exp, iss and aud")),
    ];
    for (claims, reason) in cases {
        let verified = tokens.verify(&signer.sign(&signer.header(), &claims), now());
        assert_eq!(verified.err().map(|error| error.0), reason, "{claims}");
    }
}

#[test]
fn a_token_cannot_choose_how_it_is_verified() {
    let signer = Signer::new(Algorithm::RS256);
    let tokens = signer.tokens();
    let refused = |token: &str| tokens.verify(token, now()).expect_err(token).0;
    let part = |value: Value| Base::Base64Url.encode(value.to_string());
    let (kid, good) = (signer.header().kid.unwrap(), signer.token());
    let good: Vec<&str> = good.split('.').collect();

    for algorithm in ["none", "None", "ES512", "HS256\u{0}"] {
        let header = part(json!({"alg": algorithm, "kid": kid}));
        assert_eq!(refused(&format!("{header}.{}.", good[1])), "it is malformed", "{algorithm}");
        assert_eq!(refused(&format!("{header}.{}.{}", good[1], good[2])), "it is malformed", "{algorithm}");
    }
    // What everybody knows of the key, as the secret of an HMAC.
    let public = [
        signer.pair.public_key_der(),
        signer.pair.public_key_pem().into_bytes(),
        signer.certificate.pem().into_bytes(),
    ];
    for secret in public {
        let header = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::HS256) };
        let forged = encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap();
        assert_eq!(refused(&forged), "its algorithm is not allowed");
    }
    // Another algorithm than the key's, and one of the key's that the config does not have.
    let other = Signer::new(Algorithm::ES256);
    let header = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::ES256) };
    assert_eq!(refused(&other.sign(&header, &claims())), "its algorithm is not allowed");
    let header = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::RS384) };
    assert_eq!(refused(&signer.sign(&header, &claims())), "its algorithm is not allowed");

    let tampered = part(with("access", json!([{"type": "repository", "name": "secret", "actions": ["*"]}])));
    assert_eq!(refused(&format!("{}.{tampered}.{}", good[0], good[2])), "its signature is wrong");
    assert_eq!(refused(&format!("{}.{}.", good[0], good[1])), "its signature is wrong");
    let header = Header { crit: Some(vec!["b64".to_owned()]), ..signer.header() };
    assert_eq!(refused(&signer.sign(&header, &claims())), "it demands extensions that are not known here");
    for junk in ["", ".", "..", "...", "a.b.c", "é.é.é", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
        refused(junk);
    }
}

#[test]
fn a_key_inside_a_token_is_believed_only_if_it_is_known() {
    let (signer, thief) = (Signer::new(Algorithm::ES256), Signer::new(Algorithm::ES256));
    let tokens = signer.tokens();
    let forge = |header: &Header| tokens.verify(&thief.sign(header, &claims()), now()).unwrap_err().0;
    let known = signer.header().kid;

    assert_eq!(forge(&thief.header()), "its key is not trusted");
    assert_eq!(forge(&Header::new(Algorithm::ES256)), "it names no key");
    assert_eq!(
        forge(&Header { jwk: Some(thief.jwk()), ..Header::new(Algorithm::ES256) }),
        "its key is not trusted"
    );
    assert_eq!(forge(&Header { jwk: Some(thief.jwk()), ..signer.header() }), "its key is not trusted");
    let mut disguised = thief.jwk();
    disguised.common.key_id = known.clone();
    assert_eq!(forge(&Header { jwk: Some(disguised), ..signer.header() }), "its signature is wrong");
    assert_eq!(forge(&Header { jwk: Some(signer.jwk()), ..signer.header() }), "its signature is wrong");
    let own_chain = vec![certificate_text(&thief.certificate)];
    assert_eq!(
        forge(&Header { x5c: Some(own_chain.clone()), ..signer.header() }),
        "its certificate does not lead to the bundle"
    );
    let mut chained = thief.jwk();
    chained.common.x509_chain = Some(own_chain);
    assert_eq!(
        forge(&Header { jwk: Some(chained), ..signer.header() }),
        "its certificate does not lead to the bundle"
    );
    let borrowed = vec![certificate_text(&signer.certificate)];
    assert_eq!(
        forge(&Header { x5c: Some(borrowed), ..Header::new(Algorithm::ES256) }),
        "its signature is wrong"
    );
    assert_eq!(forge(&signer.header()), "its signature is wrong");

    let honest = Header { jwk: Some(signer.jwk()), ..Header::new(Algorithm::ES256) };
    assert!(tokens.verify(&signer.sign(&honest, &claims()), now()).is_ok());
}

#[test]
fn only_what_is_listed_is_granted() {
    let signer = Signer::new(Algorithm::ES256);
    let tokens = signer.tokens();
    let allowed = |entries: Value, needed: &Access| {
        let token = signer.sign(&signer.header(), &with("access", entries));
        cover(&tokens.verify(&token, now()).unwrap(), needed)
    };
    let (pull, push) = (access("app", Action::Pull), access("app", Action::Push));
    let entry =
        |kind: &str, name: &str, actions: Value| json!([{"type": kind, "name": name, "actions": actions}]);

    assert!(allowed(entry("repository", "app", json!(["pull"])), &pull));
    assert!(!allowed(entry("repository", "app", json!(["pull"])), &push));
    assert!(!allowed(entry("repository", "app", json!(["push"])), &push), "who pushes also reads");
    assert!(allowed(entry("repository", "app", json!(["*"])), &access("app", Action::Delete)));
    assert!(!allowed(entry("repository", "app2", json!(["*"])), &pull));
    assert!(!allowed(entry("repository", "*", json!(["*"])), &pull), "a name is no pattern");
    assert!(!allowed(entry("repository(plugin)", "app", json!(["*"])), &pull));
    assert!(allowed(entry("registry", "catalog", json!(["*"])), &Access::Catalog));
    assert!(!allowed(entry("repository", "catalog", json!(["*"])), &Access::Catalog));
    let halves = json!([
        {"type": "repository", "name": "app", "actions": ["pull"]},
        {"type": "repository", "name": "app", "actions": ["push"]},
    ]);
    assert!(allowed(halves, &push));
    let junk = json!([1, null, "x", [], {}, {"type": "repository"}, {"type": "repository", "name": "app", "actions": "pull"},
        {"type": "repository", "name": 1, "actions": ["pull"]}, {"type": "repository", "name": "app", "actions": [1]}]);
    assert!(!allowed(junk, &pull));
    for nothing in [json!(null), json!([]), json!({}), json!("*"), json!(1)] {
        assert!(!allowed(nothing.clone(), &pull));
        assert!(allowed(nothing, &Access::Registry));
    }
}

proptest! {
    #[test]
    fn no_token_is_too_strange(token in "\\PC{0,300}") {
        let tokens = tokens(|keys| keys.add_bundle(CERTIFICATE.as_bytes()).unwrap());
        prop_assert!(tokens.verify(&token, 0).is_err());
    }

    #[test]
    fn no_key_file_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut keys = TrustedKeys::default();
        let _ = keys.add_bundle(&bytes);
        let _ = keys.add_jwks(&bytes);
        prop_assert!(keys.is_empty());
    }
}
