//! The forms of a private key that can be imported, turned into the one that is kept: libp2p's protobuf.

use libp2p::identity::Keypair;
use multibase::Base;
use zeroize::Zeroizing;

/// Turns any form that can be imported into libp2p's protobuf; it is not looked into. The error says what is wrong.
pub(super) fn to_protobuf(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let base64 = |text: &str| Base::Base64Pad.decode(text).map(Zeroizing::new);
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    match str::from_utf8(bytes).map(str::trim_ascii) {
        Ok(pem) if pem.starts_with("-----BEGIN") => {
            let body = pem
                .strip_prefix("-----BEGIN PRIVATE KEY-----")
                .and_then(|rest| rest.strip_suffix("-----END PRIVATE KEY-----"))
                .ok_or("it is PEM, but not one `PRIVATE KEY` without encryption")?;
            let text: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
            let der = base64(&text).map_err(|_| "its PEM is no base64")?;
            from_pkcs8(&der).ok_or("its PEM is no PKCS #8 of Ed25519 or RSA")
        }
        Ok(text) if text.bytes().all(is_base64) => base64(text).map_err(|_| "it is no base64"),
        _ => Ok(Zeroizing::new(bytes.to_vec())),
    }
}

/// RFC 8410 for Ed25519; for RSA the PKCS #1 inside is what libp2p uses.
fn from_pkcs8(mut der: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let mut fields = take_der(&mut der, DER_SEQUENCE)?;
    take_der(&mut fields, DER_INTEGER)?;
    let mut algorithm = take_der(&mut fields, DER_SEQUENCE)?;
    let mut key = take_der(&mut fields, DER_OCTETS)?;
    match take_der(&mut algorithm, DER_OBJECT)? {
        ED25519 => {
            let mut seed = Zeroizing::new(take_der(&mut key, DER_OCTETS)?.to_vec());
            let key = Keypair::ed25519_from_bytes(seed.as_mut_slice()).ok()?;
            key.to_protobuf_encoding().ok().map(Zeroizing::new)
        }
        RSA => {
            let mut protobuf = Zeroizing::new(Vec::with_capacity(key.len() + 16));
            protobuf.extend([0x08, 0, 0x12]); // Type: RSA; Data follows with its length.
            prost::encode_length_delimiter(key.len(), &mut *protobuf).ok()?;
            protobuf.extend(key);
            Some(protobuf)
        }
        _ => None,
    }
}

const DER_INTEGER: u8 = 0x02;
const DER_OCTETS: u8 = 0x04;
const DER_OBJECT: u8 = 0x06;
const DER_SEQUENCE: u8 = 0x30;

/// Takes the value in front off `der`, if it has this tag and fewer than 64 KiB.
fn take_der<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let [found, length, rest @ ..] = der else { return None };
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81 | 0x82 => {
            let (length, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    *der = rest;
    (*found == tag).then_some(value)
}

/// Gives `bytes` to every decoder of foreign keys. For fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(protobuf) = to_protobuf(bytes) {
        let _ = Keypair::from_protobuf_encoding(&protobuf);
    }
    let _ = from_pkcs8(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEMS: [&str; 2] = [
        include_str!("../../tests/fixtures/keys/ed25519.pem"),
        include_str!("../../tests/fixtures/keys/rsa.pem"),
    ];

    proptest! {
        #[test]
        fn hostile_key_material_does_no_harm(junk in prop::collection::vec(any::<u8>(), 0..100)) {
            fuzz(&junk);
            fuzz(Base::Base64Pad.encode(&junk).as_bytes());
        }

        #[test]
        fn a_changed_key_does_no_harm(
            which in 0..2_usize,
            // The fields that frame the key are in front.
            (at, cut, put) in (0..48_usize, 0..8_usize, prop::collection::vec(any::<u8>(), 0..8)),
        ) {
            let text: String = PEMS[which].lines().filter(|line| !line.starts_with('-')).collect();
            let mut der = Base::Base64Pad.decode(&text).unwrap();
            der.splice(at..(at + cut).min(der.len()), put);
            fuzz(&der);
            let changed = Base::Base64Pad.encode(&der);
            fuzz(format!("-----BEGIN PRIVATE KEY-----\n{changed}\n-----END PRIVATE KEY-----\n").as_bytes());
        }
    }
}
