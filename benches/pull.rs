//! Pulls and pushes through the registry API of a mirror, in one process: what HTTP, routing and look-ups cost beside the
//! bytes. No socket takes part.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use common::Nobody;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use futures::stream;
use http_body_util::BodyExt as _;
use libp2p::identity::Keypair;
use shoal::auth::Auth;
use shoal::config::{NamingConfig, Validation};
use shoal::http::router;
use shoal::metrics::Metrics;
use shoal::mirror::{Mirror, MirrorConfig, Signer, SigningKey};
use shoal::naming::Naming;
use shoal::oci::Digest;
use shoal::store::{Store, StoreOptions};
use shoal::tasks::Tasks;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tower::ServiceExt as _;

const BLOB_BYTES: usize = 64 << 20;
/// What a client's body comes in.
const PIECE_BYTES: usize = 64 << 10;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn main() {
    divan::main();
}

/// The registry API of a daemon with a key and without a network.
struct Fixture {
    api: Router,
    runtime: Runtime,
    tasks: Tasks,
    _store: Store,
    _folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let tasks = Tasks::new();
        let signer = Signer {
            key: SigningKey::Ours(Box::new(Keypair::generate_ed25519())),
            fresh: true,
            record_validity: Duration::from_secs(48 * 3600),
            former: Vec::new(),
        };
        let config = MirrorConfig {
            signer: Some(signer),
            readonly: Vec::new(),
            follow_quota_bytes: None,
            uploads_max: 16,
            upload_idle_timeout: Duration::from_secs(3600),
            delete_enabled: false,
            validation: Validation { image_blobs: true, index_manifests: true },
            pull_through: None,
            naming: Naming::new(&NamingConfig::default()).unwrap(),
        };
        let mirror = runtime.block_on(async {
            Mirror::start(&tasks, &store, Arc::new(Nobody), &broadcast::channel(1).0, config).await.unwrap()
        });
        let api = router(Auth::allow_all(), mirror, Metrics::default());
        Self { api, runtime, tasks, _store: store, _folder: folder }
    }

    async fn ask(&self, request: Request<Body>) -> Response {
        let response = self.api.clone().oneshot(request).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        response
    }

    async fn push(&self, digest: &Digest, content: &Bytes) {
        let start = Request::post("/v2/bench/app/blobs/uploads/").body(Body::empty()).unwrap();
        let started = self.ask(start).await;
        let at = started.headers()[LOCATION].to_str().unwrap();
        let pieces: Vec<_> = content.chunks(PIECE_BYTES).map(|piece| content.slice_ref(piece)).collect();
        let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>)));
        let put = Request::put(format!("{at}?digest={digest}")).body(body).unwrap();
        assert_eq!(self.ask(put).await.status(), StatusCode::CREATED);
    }

    /// Asks by GET and reads the answer to its end; returns how many bytes it had.
    async fn pull(&self, path: &str) -> usize {
        let mut body = self.ask(Request::get(path).body(Body::empty()).unwrap()).await.into_body();
        let mut size_bytes = 0;
        while let Some(frame) = body.frame().await {
            size_bytes += black_box(frame.unwrap()).data_ref().map_or(0, Bytes::len);
        }
        size_bytes
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.runtime.block_on(self.tasks.shutdown(Duration::from_secs(5)));
    }
}

/// A blob of which no two leaves are the same, and no two blobs either.
fn blob(number: u64) -> (Digest, Bytes) {
    let mut bytes = vec![0x5a; BLOB_BYTES];
    for (n, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
        piece[..8].copy_from_slice(&n.to_le_bytes());
        piece[8..16].copy_from_slice(&number.to_le_bytes());
    }
    (Digest::sha256(&bytes), bytes.into())
}

#[divan::bench(sample_count = 10)]
fn push_64_mib(bencher: Bencher<'_, '_>) {
    let f = Fixture::new();
    let mut next = 0;
    bencher
        .counter(BytesCount::new(BLOB_BYTES))
        .with_inputs(|| {
            next += 1;
            blob(next)
        })
        .bench_local_refs(|(digest, content)| f.runtime.block_on(f.push(digest, content)));
}

#[divan::bench(sample_count = 10)]
fn pull_64_mib(bencher: Bencher<'_, '_>) {
    let f = Fixture::new();
    let (digest, content) = blob(0);
    f.runtime.block_on(f.push(&digest, &content));
    let path = format!("/v2/bench/app/blobs/{digest}");
    bencher.counter(BytesCount::new(BLOB_BYTES)).bench_local(|| {
        assert_eq!(f.runtime.block_on(f.pull(&path)), BLOB_BYTES);
    });
}

#[divan::bench]
fn manifest_by_tag(bencher: Bencher<'_, '_>) {
    let f = Fixture::new();
    let config = Digest::sha256(b"{}");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[]}}"#
    );
    let path = "/v2/bench/app/manifests/v1";
    f.runtime.block_on(async {
        f.push(&config, &Bytes::from_static(b"{}")).await;
        let put = Request::put(path).header(CONTENT_TYPE, MANIFEST).body(Body::from(manifest)).unwrap();
        f.ask(put).await;
    });
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| f.runtime.block_on(f.pull(path)));
}
