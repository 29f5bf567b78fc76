//! A certificate authority of a test.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use reqwest::{Client, ClientBuilder, Identity};
use tempfile::TempDir;

use super::PATIENCE;

/// A certificate authority, and a folder for what it issues.
pub struct Authority {
    folder: TempDir,
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { folder: TempDir::new().unwrap(), certificate, key }
    }

    /// Certificate and key, in PEM.
    pub fn issue(&self, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.certificate, &self.key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The files of a server's pair, with the certificate of the authority beside them.
    pub fn pair_files(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ServerAuth);
        fs::write(self.path("ca.pem"), self.certificate.pem()).unwrap();
        fs::write(self.path("server.pem"), certificate).unwrap();
        fs::write(self.path("server.key"), key).unwrap();
        (self.path("server.pem"), self.path("server.key"))
    }

    /// A client that trusts this authority and no other.
    pub fn client(&self) -> ClientBuilder {
        trusting(self.certificate.pem().as_bytes())
    }

    /// The files of a client's pair.
    pub fn client_files(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ClientAuth);
        fs::write(self.path("client.pem"), certificate).unwrap();
        fs::write(self.path("client.key"), key).unwrap();
        (self.path("client.pem"), self.path("client.key"))
    }

    pub fn identity(&self) -> Identity {
        let (certificate, key) = self.issue(ExtendedKeyUsagePurpose::ClientAuth);
        Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap()
    }
}

/// A client that trusts this certificate and no other.
pub fn trusting(pem: &[u8]) -> ClientBuilder {
    let certificate = reqwest::Certificate::from_pem(pem).unwrap();
    Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([certificate])
}
