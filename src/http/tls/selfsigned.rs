//! A certificate that the daemon makes for itself: kept, so that who trusts it goes on doing so, and made anew before it
//! expires or when it is to have other names.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsError;
use crate::config::SELF_SIGNED_CERTIFICATE;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Some clients refuse certificates that are good for longer than 398 days.
const VALID_DAYS: u32 = 397;
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Key and certificate in one file, since they change together.
pub(super) fn pair(folder: &Path) -> PathBuf {
    folder.join("pair.pem")
}

/// The certificate alone, to be handed to clients.
fn public(folder: &Path) -> PathBuf {
    folder.join(SELF_SIGNED_CERTIFICATE)
}

/// Sees to it that there is a good pair for `names` in `folder`, and says when the next one is due.
pub(super) fn ensure(folder: &Path, names: &[String]) -> Result<SystemTime, TlsError> {
    let path = pair(folder);
    let kept = match fs::read(&path) {
        Ok(pem) => Certificate::parse(&pem).filter(|kept| kept.is_good(names)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(TlsError::Read { path, source }),
    };
    let certificate = match kept {
        Some(kept) => kept,
        None => make(folder, names)?,
    };
    tracing::info!(
        sha256 = certificate.fingerprint(),
        names = names.join(","),
        file = %public(folder).display(),
        "the certificate is self-signed: let clients trust it, as ca.crt in /etc/docker/certs.d/<host:port>/ or \
         /etc/containers/certs.d/<host:port>/, or as `ca` in containerd's hosts.toml"
    );
    Ok(certificate.expires_at - RENEW_BEFORE)
}

/// What of a certificate we look at.
struct Certificate {
    der: Vec<u8>,
    /// DNS names and IP addresses.
    names: Vec<String>,
    expires_at: SystemTime,
}

impl Certificate {
    /// `None` for what is no certificate of ours: it is replaced.
    fn parse(pem: &[u8]) -> Option<Self> {
        let pems = x509_parser::pem::Pem::iter_from_buffer(pem).filter_map(Result::ok);
        let der = pems.into_iter().find(|pem| pem.label == "CERTIFICATE")?.contents;
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let alternatives = parsed.subject_alternative_name().ok()??;
        let names = alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        });
        let names = names.collect();
        let expires_s = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(expires_s);
        Some(Self { names, expires_at, der })
    }

    /// As browsers and openssl show it.
    fn fingerprint(&self) -> String {
        let bytes: Vec<String> = Sha256::digest(&self.der).iter().map(|byte| format!("{byte:02X}")).collect();
        bytes.join(":")
    }

    /// Whether it is for these names, and will be for a while.
    fn is_good(&self, names: &[String]) -> bool {
        self.names == names && SystemTime::now() + RENEW_BEFORE < self.expires_at
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Makes a pair and writes it, the copy for clients last.
fn make(folder: &Path, names: &[String]) -> Result<Certificate, TlsError> {
    let unmade = |reason: String| TlsError::SelfSigned { names: names.join(", "), reason };
    let (certificate_pem, key_pem) = generate(names).map_err(|error| unmade(error.to_string()))?;
    let certificate = Certificate::parse(certificate_pem.as_bytes());
    let certificate = certificate.ok_or_else(|| unmade("it cannot be read back".to_owned()))?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| TlsError::Write { path: folder.to_owned(), source })?;
    write(&pair(folder), &format!("{certificate_pem}{key_pem}"), 0o600)?;
    write(&public(folder), &certificate_pem, 0o644)?;
    Ok(certificate)
}

/// Certificate and key, in PEM.
fn generate(names: &[String]) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "shoal, self-signed");
    params.distinguished_name = subject;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // The clocks of clients differ.
    let begins_at = SystemTime::now() - DAY;
    params.not_before = begins_at.into();
    params.not_after = (begins_at + VALID_DAYS * DAY).into();
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Puts a whole file into the place of an older one.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), TlsError> {
    let draft = path.with_extension("new");
    let written = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft);
    let written = written.and_then(|mut file| {
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    });
    written.map_err(|source| TlsError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_pair_is_kept_until_other_names_are_wanted_or_it_is_no_pair() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, names, other) =
            (folder.path().join("tls"), names(&["localhost", "::1"]), names(&["a.b"]));
        let renew_at = ensure(&folder, &names).unwrap();
        assert!(renew_at > SystemTime::now() + 300 * DAY);
        let first = fs::read(pair(&folder)).unwrap();
        assert_eq!(ensure(&folder, &names).unwrap(), renew_at);
        assert_eq!(fs::read(pair(&folder)).unwrap(), first);

        ensure(&folder, &other).unwrap();
        let second = fs::read(pair(&folder)).unwrap();
        assert_ne!(second, first);
        fs::write(pair(&folder), "spoilt").unwrap();
        ensure(&folder, &other).unwrap();
        assert!(Certificate::parse(&fs::read(pair(&folder)).unwrap()).unwrap().is_good(&other));
    }

    #[test]
    fn a_certificate_is_not_good_when_it_is_about_to_expire() {
        let names = names(&["localhost"]);
        let (pem, _) = generate(&names).unwrap();
        let mut certificate = Certificate::parse(pem.as_bytes()).unwrap();
        assert!(certificate.is_good(&names));
        certificate.expires_at = SystemTime::now() + RENEW_BEFORE - DAY;
        assert!(!certificate.is_good(&names));
    }

    #[test]
    fn only_the_daemon_reads_the_key() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        ensure(folder.path(), &names(&["localhost"])).unwrap();
        let mode = fs::metadata(pair(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let shown = fs::read_to_string(public(folder.path())).unwrap();
        assert!(shown.contains("CERTIFICATE") && !shown.contains("PRIVATE"), "{shown}");
    }
}
