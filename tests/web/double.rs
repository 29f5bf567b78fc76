//! A server on loopback that answers as the test says, and remembers what it was asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use futures::{StreamExt, stream};
use shoal::tasks::Tasks;
use shoal::web::{Web, WebConfig};
use tokio::net::TcpListener;
use url::Url;

pub const NDJSON: &str = "application/x-ndjson";
pub const JSON: &str = "application/json";
pub const RECORD: &str = "application/vnd.ipfs.ipns-record";
pub const RAW: &str = "application/vnd.ipld.raw";
pub const CAR: &str = "application/vnd.ipld.car";

const BODY_BYTES_MAX: usize = 1 << 20;

/// What it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub body: Bytes,
}

pub struct Double {
    pub url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Double {
    pub async fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let (seen, answer) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(answer));
        let noted = seen.clone();
        let router = Router::new().fallback(move |request: Request| {
            let (noted, answer) = (noted.clone(), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let seen = Seen {
                    method: head.method.to_string(),
                    path: head.uri.path().to_owned(),
                    query: head.uri.query().unwrap_or_default().to_owned(),
                    body: to_bytes(body, BODY_BYTES_MAX).await.unwrap(),
                };
                noted.lock().unwrap().push(seen.clone());
                answer(&seen)
            }
        });
        // Ends with the runtime of the test.
        Tasks::new().spawn_short("double", |_| async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn asked(&self) -> usize {
        self.seen().len()
    }
}

pub fn web(routers: &[&Double], gateways: &[&Double]) -> Web {
    let urls = |doubles: &[&Double]| doubles.iter().map(|double| double.url.clone()).collect();
    Web::start(&Tasks::new(), &WebConfig { routers: urls(routers), gateways: urls(gateways) }).unwrap()
}

pub fn said(content_type: &str, body: impl Into<Body>) -> Response {
    Response::builder().header(CONTENT_TYPE, content_type).body(body.into()).unwrap()
}

pub fn status(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

pub fn redirect_to(url: &Url) -> Response {
    Response::builder().status(302).header("location", url.as_str()).body(Body::empty()).unwrap()
}

/// A body that repeats itself for ever.
pub fn endless(piece: Vec<u8>) -> Body {
    let piece = Bytes::from(piece);
    Body::from_stream(stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone())))
}

/// A body that begins and does not go on.
pub fn stalled(piece: Vec<u8>) -> Body {
    Body::from_stream(stream::once(async move { Ok::<_, std::io::Error>(piece) }).chain(stream::pending()))
}
