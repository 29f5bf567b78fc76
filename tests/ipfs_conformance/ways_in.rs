//! The other ways to the API of a Kubo: a Unix socket, and https with an authority that no system knows.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;

use axum::serve::Listener;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::attached::{ADDRESS, AUTH, attached, is_published, until};
use crate::common::authority::Authority;
use crate::common::{Image, daemon};
use crate::double::Double;
use crate::kubo::{Kubo, Release};

const CA: &str = "REGISTRY_STORAGE_IPFS_IPFSAPICA";

/// Ends TLS before the double.
struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Tls {
    async fn bind(authority: &Authority) -> Self {
        let (certificate, key) = authority.pair_files();
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = self.tcp.accept().await.unwrap();
            // Who does not trust the certificate goes away.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// What `shoal config check` says with these variables.
fn check(environment: &[(&str, &str)]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(["config", "check"]).env(AUTH, "bearer:t0ken").envs(environment.iter().copied());
    let output = command.output().unwrap();
    let said = [output.stdout.clone(), output.stderr.clone()].concat();
    (output, String::from_utf8(said).unwrap())
}

/// A push through `address` comes to be published.
async fn carries(address: &str, ca: Option<&str>) {
    let setup = attached(address).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "self");
    let setup = match ca {
        Some(ca) => setup.env(CA, ca),
        None => setup,
    };
    let writer = setup.start();
    writer.push("library/app", "1", &Image::small(21)).await;
    let status = until(&writer, "published", is_published).await;
    assert_eq!(status.node.kubo.unwrap().api, address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_leads_to_kubo() {
    let (mut double, folder) = (Double::start().await, TempDir::new().unwrap());
    double.has_key("self");
    let socket = folder.path().join("api.sock");
    double.answers_at(UnixListener::bind(&socket).unwrap());
    let address = format!("/unix{}", socket.display());
    carries(&address, None).await;
    let (output, said) = check(&[(ADDRESS, &address)]);
    assert!(output.status.success() && said.contains(&format!("Kubo 0.43.0 answers at {address}")), "{said}");

    let nobody = format!("/unix{}/nobody.sock", folder.path().display());
    let (output, said) = check(&[(ADDRESS, &nobody)]);
    assert!(!output.status.success() && said.contains(&format!("{nobody} does not answer")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_trusted_by_an_authority_that_is_named() {
    let (mut double, authority) = (Double::start().await, Authority::new());
    double.has_key("self");
    let tls = Tls::bind(&authority).await;
    let address = format!("https://localhost:{}", tls.local_addr().unwrap().port());
    double.answers_at(tls);
    let ca = authority.path("ca.pem").display().to_string();
    carries(&address, Some(&ca)).await;
    let (output, said) = check(&[(ADDRESS, &address), (CA, &ca)]);
    assert!(output.status.success() && said.contains("Kubo 0.43.0 answers"), "{said}");

    let (output, said) = check(&[(ADDRESS, &address)]);
    assert!(!output.status.success() && said.contains("storage.ipfs.ipfsapica"), "{said}");
    let (output, said) = check(&[(ADDRESS, &address), (CA, "/does/not/exist.pem")]);
    assert!(!output.status.success() && said.contains("cannot read /does/not/exist.pem"), "{said}");
    let (output, said) = check(&[(ADDRESS, &address), (CA, env!("CARGO_MANIFEST_DIR"))]);
    assert!(!output.status.success() && said.contains("storage.ipfs.ipfsapica: cannot read"), "{said}");
    let key = authority.path("server.key").display().to_string();
    let (output, said) = check(&[(ADDRESS, &address), (CA, &key)]);
    assert!(!output.status.success() && said.contains("has no certificate in PEM"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_kubo_is_reached_by_its_unix_socket() {
    let folder = TempDir::new().unwrap();
    let address = format!("/unix{}", folder.path().join("api.sock").display());
    let only = format!("[\"{address}\"]");
    let Some((kubo, other)) = Kubo::pair_with(Release::Newest, &[("Addresses.API", &only)]) else { return };
    assert_eq!(kubo.api(), address);
    let ours = attached(&address).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "self").start();
    let image = Image::small(22);
    ours.push("library/app", "1", &image).await;
    let root = until(&ours, "published", is_published).await.own.unwrap().root;
    assert!(kubo.run(&["pin", "ls", "--type=recursive", "-q"]).contains(&root));
    let there = other.run(&["id", "-f", "<addrs>"]);
    let reader = daemon().read_only().dials(&ours.address).dials(there.split_whitespace().next().unwrap());
    reader.reads(&ours.ipns).start().serves("library/app", "1", &image).await;
}
