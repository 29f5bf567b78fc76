//! One line for each request to the registry, when its answer has ended: what the common log formats have, as fields. No
//! query and no header but the user agent, since either may carry a token.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, Method, Uri, Version};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::connection::Client;

/// Of a user agent, as long as it likes, this much is kept.
const USER_AGENT_CHARS_MAX: usize = 256;
/// The status of a request whose client left before the answer, as other servers write it.
const CLIENT_LEFT: u16 = 499;

/// `router`, with a line at level info for each request.
pub fn logged(router: Router) -> Router {
    router.layer(axum::middleware::from_fn(log))
}

async fn log(request: Request, next: Next) -> Response {
    let mut line = Line {
        client: request.extensions().get::<Client>().cloned(),
        method: request.method().clone(),
        uri: request.uri().clone(),
        version: request.version(),
        user_agent: user_agent(request.headers()),
        begun: Instant::now(),
        status: CLIENT_LEFT,
        sent_bytes: 0,
    };
    let response = next.run(request).await;
    line.status = response.status().as_u16();
    response.map(|body| Body::new(Counted { body, line }))
}

fn user_agent(headers: &HeaderMap) -> String {
    let text = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.chars().take(USER_AGENT_CHARS_MAX).collect()
}

/// Written when it is dropped: with the last byte, or with the connection.
struct Line {
    client: Option<Client>,
    method: Method,
    uri: Uri,
    version: Version,
    user_agent: String,
    begun: Instant,
    status: u16,
    sent_bytes: u64,
}

impl Drop for Line {
    fn drop(&mut self) {
        let client = self.client.as_ref().map(ToString::to_string).unwrap_or_default();
        tracing::info!(
            http.client = client,
            http.method = %self.method,
            http.path = self.uri.path(),
            http.version = ?self.version,
            http.status = self.status,
            sent_bytes = self.sent_bytes,
            duration_ms = self.begun.elapsed().as_millis(),
            http.user_agent = self.user_agent,
            "request"
        );
    }
}

/// A body whose bytes are counted as they are handed to the connection.
struct Counted {
    body: Body,
    line: Line,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.line.sent_bytes += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
