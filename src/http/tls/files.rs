//! PEM files → what rustls needs. Blocking: to be called off the async threads.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, crypto, version};

use super::{ALPN_HTTP1, ALPN_HTTP2, TlsError, selfsigned};
use crate::config::{TlsConfig, TlsPair, TlsVersion};

/// A PEM file that is larger has something else in it than certificates.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where certificates and keys come from.
pub(super) struct Source {
    tls: TlsConfig,
    http2: bool,
    folder: PathBuf,
}

/// What a handshake goes by, as the files were when they were read.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    pub(super) stamp: Stamp,
    /// When a pair of our own is to be made anew.
    pub(super) renew_at: Option<SystemTime>,
}

/// How the files look from outside: changes with one, also when another is put in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<(SystemTime, u64, u64)>>);

impl Source {
    /// A self-signed pair is kept in `folder`.
    pub(super) fn new(tls: TlsConfig, http2: bool, folder: PathBuf) -> Self {
        Self { tls, http2, folder }
    }

    pub(super) fn stamp(&self) -> Stamp {
        let (certificate, key) = self.pair();
        let files = [certificate, key].into_iter().chain(self.tls.client_cas.iter().cloned());
        let look = |path: PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
        };
        Stamp(files.map(look).collect())
    }

    fn pair(&self) -> (PathBuf, PathBuf) {
        match &self.tls.pair {
            TlsPair::Files { certificate, key } => (certificate.clone(), key.clone()),
            TlsPair::SelfSigned { .. } => (selfsigned::pair(&self.folder), selfsigned::pair(&self.folder)),
        }
    }

    /// Reads everything; makes a self-signed pair, if that is wanted and there is no good one.
    pub(super) fn load(&self) -> Result<Loaded, TlsError> {
        let renew_at = match &self.tls.pair {
            TlsPair::Files { .. } => None,
            TlsPair::SelfSigned { names } => Some(selfsigned::ensure(&self.folder, names)?),
        };
        // Looked at before they are read: a change in between is seen at the next look.
        let stamp = self.stamp();
        let (certificate, key) = self.pair();
        let chain = certificates(&certificate)?;
        let private = PrivateKeyDer::from_pem_slice(&read(&key)?);
        let private = private.map_err(|error| pem_error(&key, "private key", &error.to_string()))?;

        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let versions: &[&SupportedProtocolVersion] = match self.tls.minimum {
            TlsVersion::Tls12 => &[&version::TLS13, &version::TLS12],
            TlsVersion::Tls13 => &[&version::TLS13],
        };
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
        let builder = match self.client_verifier(provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, private).map_err(|source| TlsError::Pair {
            certificate,
            key,
            source,
        })?;
        if self.http2 {
            config.alpn_protocols.push(ALPN_HTTP2.to_vec());
        }
        config.alpn_protocols.push(ALPN_HTTP1.to_vec());
        Ok(Loaded { config: Arc::new(config), stamp, renew_at })
    }

    /// `None` if clients need no certificate.
    fn client_verifier(
        &self,
        provider: Arc<crypto::CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let Some(last) = self.tls.client_cas.last() else { return Ok(None) };
        let unusable = |path: &Path, reason: String| TlsError::ClientCa { path: path.to_owned(), reason };
        let mut roots = RootCertStore::empty();
        for path in &self.tls.client_cas {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(path, error.to_string()))?;
            }
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = if self.tls.client_optional { builder.allow_unauthenticated() } else { builder };
        builder.build().map(Some).map_err(|error| unusable(last, error.to_string()))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: &str| pem_error(path, "certificate", reason);
    let bytes = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| wrong(&error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("no items found"));
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let wrong = |source| TlsError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(wrong)?.len() > FILE_BYTES_MAX {
        return Err(wrong(std::io::ErrorKind::FileTooLarge.into()));
    }
    fs::read(path).map_err(wrong)
}

fn pem_error(path: &Path, what: &'static str, reason: &str) -> TlsError {
    TlsError::Pem { path: path.to_owned(), what, reason: reason.to_owned() }
}
