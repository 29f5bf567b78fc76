//! One address of a registry: what it asked to be shown, whether it is left in peace, and what it says of its limits.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::UpstreamError;
use super::auth::{Auth, Challenge};
use super::breaker::Breaker;
use super::client::{Get, HttpClient};
use super::credentials::Logins;
use crate::config::RegistryConfig;
use crate::oci::{Host, RepoName};

/// What 429 without `Retry-After` is taken to mean.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(10);
/// Docker Hub's: pulls that are left, and of how many, such as `76;w=21600`.
const RATE_REMAINING: &str = "ratelimit-remaining";
const RATE_LIMIT: &str = "ratelimit-limit";

pub(super) struct Endpoint {
    host: Host,
    /// What `/v2/…` is appended to.
    base: Url,
    client: HttpClient,
    auth: Auth,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What it last asked for: shown without being asked again.
    challenge: Option<Challenge>,
    breaker: Breaker,
    rate_limit: Option<(u64, u64)>,
}

impl Endpoint {
    pub(super) fn new(host: &Host, base: Url, config: &RegistryConfig) -> Result<Self, UpstreamError> {
        let client = HttpClient::new(host, config)?;
        let logins = Logins::new(host.clone(), config.credentials.clone());
        let plain_http = config.insecure || base.scheme() == "http";
        let auth = Auth::new(host.clone(), client.clone(), logins, plain_http);
        Ok(Self { host: host.clone(), base, client, auth, state: Mutex::default() })
    }

    /// Asks for something below `/v2/REPO/`. `Ok(None)`: it is not there.
    pub(super) async fn get(
        &self,
        method: Method,
        repo: &RepoName,
        below: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Response>, UpstreamError> {
        self.may_ask()?;
        let outcome = match self.try_get(method, repo, below, headers).await {
            Ok(response) => self.judge(response),
            Err(error) => Err(error),
        };
        let mut state = self.state();
        match &outcome {
            Err(error @ UpstreamError::RateLimited { retry_after, .. }) => {
                state.breaker.failed(Instant::now(), error.to_string(), Some(*retry_after));
            }
            Err(error) if error.is_transient() => {
                state.breaker.failed(Instant::now(), error.to_string(), None);
            }
            _ => state.breaker.succeeded(),
        }
        outcome
    }

    fn may_ask(&self) -> Result<(), UpstreamError> {
        let mut state = self.state();
        state.breaker.may_ask(Instant::now()).map_err(|wait| {
            let last = state.breaker.last().unwrap_or("it asked for it").to_owned();
            UpstreamError::Resting { host: self.host.clone(), wait, last }
        })
    }

    async fn try_get(
        &self,
        method: Method,
        repo: &RepoName,
        below: &str,
        headers: &HeaderMap,
    ) -> Result<Response, UpstreamError> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/v2/{repo}/{below}", self.base.path().trim_end_matches('/')));
        let known = self.state().challenge.clone();
        let authorization = match &known {
            Some(challenge) => self.auth.answer(challenge, repo, false).await?,
            None => None,
        };
        let shown = authorization.is_some();
        let get = Get { method, url, headers: headers.clone(), authorization };
        let response = self.client.send(get.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(challenge) = self.auth.challenge(&response) else { return Ok(response) };
        let refused = shown && known.as_ref() == Some(&challenge);
        let Some(authorization) = self.auth.answer(&challenge, repo, refused).await? else {
            return Ok(response);
        };
        self.state().challenge = Some(challenge);
        self.client.send(Get { authorization: Some(authorization), ..get }).await
    }

    /// What an answer means.
    fn judge(&self, response: Response) -> Result<Option<Response>, UpstreamError> {
        self.note_rate_limit(response.headers());
        let (host, status) = (self.host.clone(), response.status());
        match status {
            status if status.is_success() => Ok(Some(response)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => {
                Err(UpstreamError::Unauthorized { host, detail: "it answered 401".to_owned() })
            }
            StatusCode::FORBIDDEN => Err(UpstreamError::Forbidden(host)),
            StatusCode::TOO_MANY_REQUESTS => {
                let asked = retry_after(response.headers(), SystemTime::now());
                Err(UpstreamError::RateLimited { host, retry_after: asked.unwrap_or(RETRY_AFTER_DEFAULT) })
            }
            status => Err(UpstreamError::Status { host, status: status.as_u16() }),
        }
    }

    fn note_rate_limit(&self, headers: &HeaderMap) {
        let number = |name: &str| {
            let text = headers.get(name)?.to_str().ok()?;
            text.split(';').next()?.trim().parse::<u64>().ok()
        };
        if let (Some(remaining), Some(limit)) = (number(RATE_REMAINING), number(RATE_LIMIT)) {
            self.state().rate_limit = Some((remaining, limit));
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        !self.state().breaker.is_resting(Instant::now())
    }

    pub(super) fn error(&self) -> Option<String> {
        self.state().breaker.last().map(str::to_owned)
    }

    pub(super) fn rate_limit(&self) -> Option<(u64, u64)> {
        self.state().rate_limit
    }

    /// A panic leaves what was known before.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at_s = u64::try_from(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second()).ok()?;
    let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Some(Duration::from_secs(at_s.saturating_sub(now_s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, UNIX_EPOCH + Duration::from_secs(1_000_000_000))
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 09 Sep 2001 01:46:50 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(read("Sat, 09 Sep 2000 01:46:50 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }
}
