//! The HTTP client: no redirect is followed, no proxy is used, every answer has a type, a size and a pace.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode};
use tokio::time::timeout;
use url::Url;

use super::places::Reach;
use crate::upstream::PublicOnly;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request to the header of its answer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a body may bring nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Of what an answer says of its own type, that is passed on in an error.
const TYPE_CHARS_MAX: usize = 100;

/// Why a router or gateway gave nothing.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WebError {
    #[error("the HTTP client cannot be set up: {0}")]
    Client(String),
    #[error("{place} cannot be reached: {reason}")]
    Unreachable { place: String, reason: String },
    #[error("{place} did not answer within {} s", .waited.as_secs())]
    Timeout { place: String, waited: Duration },
    #[error("{place} answers with status {status}")]
    Status { place: String, status: u16, retry_after: Option<Duration> },
    /// It answers, and does not give this.
    #[error("{place} refuses with status {status}")]
    Refused { place: String, status: u16 },
    #[error("{place} redirects, which is not followed: configure the URL that it leads to")]
    Redirect { place: String },
    #[error("{place} answers with {found:?} where {wanted} is expected")]
    ContentType { place: String, found: String, wanted: &'static str },
    #[error("{place} answers with more than {bytes_max} bytes")]
    TooLarge { place: String, bytes_max: usize },
    #[error("{place} broke off: {reason}")]
    Truncated { place: String, reason: String },
    /// Bytes that are not what they were asked for: it lies, or something on the way does.
    #[error("{place} sends what was not asked for: {what}")]
    Wrong { place: String, what: String },
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Http {
    any: Client,
    guarded: Client,
    guard: PublicOnly,
}

/// An answer with status 200.
pub(super) struct Answer {
    pub(super) place: String,
    pub(super) response: Response,
}

impl Http {
    pub(super) fn new() -> Result<Self, WebError> {
        let guard = PublicOnly::default();
        let guarded = guard.clone();
        Ok(Self {
            any: build(builder)?,
            guarded: build(move || builder().dns_resolver(guarded.clone()))?,
            guard,
        })
    }

    /// Asks for what is one of these types. `Ok(None)`: it is not there (404, 410).
    pub(super) async fn get(
        &self,
        url: Url,
        reach: Reach,
        accept: &'static str,
    ) -> Result<Option<Answer>, WebError> {
        let place = place_of(&url);
        let client = match reach {
            Reach::Any => &self.any,
            Reach::Public => {
                let refused = |error: crate::upstream::NotPublic| WebError::Unreachable {
                    place: place.clone(),
                    reason: error.to_string(),
                };
                self.guard.check(&url).map_err(refused)?;
                &self.guarded
            }
        };
        send(place, client.get(url).header(ACCEPT, accept)).await
    }

    /// Puts something to a router of the config.
    pub(super) async fn put(
        &self,
        url: Url,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<(), WebError> {
        let place = place_of(&url);
        let request = self.any.put(url).header(CONTENT_TYPE, content_type).body(body);
        let refused = WebError::Refused { place: place.clone(), status: StatusCode::NOT_FOUND.as_u16() };
        send(place, request).await?.map(drop).ok_or(refused)
    }
}

impl Answer {
    /// What the answer says that it is, without parameters.
    pub(super) fn content_type(&self) -> &str {
        let value = self.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
    }

    pub(super) fn require_type(&self, wanted: &'static str) -> Result<(), WebError> {
        if self.content_type().eq_ignore_ascii_case(wanted) {
            return Ok(());
        }
        let found = self.content_type().chars().take(TYPE_CHARS_MAX).collect();
        Err(WebError::ContentType { place: self.place.clone(), found, wanted })
    }

    /// The next bytes of the body; `Ok(None)`: its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, WebError> {
        let late = |_| WebError::Timeout { place: self.place.clone(), waited: STALL_TIMEOUT };
        let broken = |error: reqwest::Error| WebError::Truncated {
            place: self.place.clone(),
            reason: innermost(&error),
        };
        timeout(STALL_TIMEOUT, self.response.chunk()).await.map_err(late)?.map_err(broken)
    }

    /// The whole of a body of at most `bytes_max`.
    pub(super) async fn whole(mut self, bytes_max: usize) -> Result<Bytes, WebError> {
        let too_large = |place: &str| WebError::TooLarge { place: place.to_owned(), bytes_max };
        if self.response.content_length().is_some_and(|length| length > bytes_max as u64) {
            return Err(too_large(&self.place));
        }
        let mut all = BytesMut::new();
        while let Some(bytes) = self.chunk().await? {
            if all.len() + bytes.len() > bytes_max {
                return Err(too_large(&self.place));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }
}

/// A URL as it is told to people: its path may hold a key.
pub(super) fn place_of(url: &Url) -> String {
    url.origin().ascii_serialization()
}

async fn send(place: String, request: RequestBuilder) -> Result<Option<Answer>, WebError> {
    let late = |_| WebError::Timeout { place: place.clone(), waited: HEADER_TIMEOUT };
    let failed =
        |error: reqwest::Error| WebError::Unreachable { place: place.clone(), reason: innermost(&error) };
    let response = timeout(HEADER_TIMEOUT, request.send()).await.map_err(late)?.map_err(failed)?;
    let status = response.status();
    match status.as_u16() {
        200..=299 => Ok(Some(Answer { place, response })),
        300..=399 => Err(WebError::Redirect { place }),
        404 | 410 => Ok(None),
        // The place refuses this, or knows it not to be the right thing to ask.
        400 | 401 | 403 | 406 | 415 | 451 | 501 => Err(WebError::Refused { place, status: status.as_u16() }),
        _ => {
            let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = after.and_then(|value| value.parse().ok()).map(Duration::from_secs);
            Err(WebError::Status { place, status: status.as_u16(), retry_after })
        }
    }
}

fn builder() -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE_TIMEOUT)
}

/// A small container may have no authorities at all: what needs none of them works.
fn build(builder: impl Fn() -> ClientBuilder) -> Result<Client, WebError> {
    let built = builder().build().or_else(|error| {
        let error = innermost(&error);
        tracing::warn!(error, "the system's certificate authorities cannot be used: no https URL is trusted");
        builder().tls_certs_only([]).build()
    });
    built.map_err(|error| WebError::Client(innermost(&error)))
}

/// What an error began with: the layers above repeat the address.
fn innermost(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map(ToString::to_string).unwrap_or_default()
}
