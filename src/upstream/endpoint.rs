//! One address of a registry: what it asked to be shown, whether it is left in peace, and what it says of its limits.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::auth::{Auth, Challenge};
use super::breaker::{Breaker, Kind, Rest};
use super::client::{Connector, Get, HttpClient};
use super::credentials::Logins;
use super::{Refuser, Said, UpstreamError};
use crate::config::RegistryConfig;
use crate::oci::{Host, RepoName};

/// What 429 without `Retry-After` is taken to mean.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(10);
/// How long a request waits for the outcome of one that finds out whether a rest did any good.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// Docker Hub's: pulls that are left, and of how many, such as `76;w=21600`.
const RATE_REMAINING: &str = "ratelimit-remaining";
const RATE_LIMIT: &str = "ratelimit-limit";
/// The segment of a path where the API begins (distribution-spec, "Determining Support").
const API: &str = "v2";

pub(super) struct Endpoint {
    host: Host,
    base: Base,
    client: HttpClient,
    auth: Auth,
    state: Mutex<State>,
    /// Something became known of it.
    settled: Notify,
}

/// What is asked below `/v2/REPO/`.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) repo: &'a RepoName,
    pub(super) below: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    /// We are to fetch it for several.
    pub(super) is_for_mesh: bool,
}

/// An endpoint's URL, whose path lies above `/v2`, or says by a `v2` in it where that is: so one repository, or one project
/// of a registry that mirrors others, stands for a whole registry.
struct Base {
    url: Url,
    /// `/v2/`, with what is above and below it.
    path: String,
    /// What comes before our names of repositories: empty, or with a slash behind it.
    within: String,
}

impl Ask<'_> {
    fn kind(&self) -> Kind {
        match self.below.starts_with("blobs/") {
            true if self.is_for_mesh => Kind::BlobForMesh,
            true => Kind::Blob,
            false => Kind::Manifest,
        }
    }
}

impl Base {
    fn new(url: Url) -> Self {
        let path = url.path().trim_matches('/');
        let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
        let (above, within) = match words.iter().position(|word| *word == API) {
            Some(at) => (&words[..at], &words[at + 1..]),
            None => (&words[..], &[][..]),
        };
        let slashed = |words: &[&str]| words.iter().map(|word| format!("{word}/")).collect::<String>();
        let (above, within) = (slashed(above), slashed(within));
        Self { path: format!("/{above}{API}/{within}"), within, url }
    }

    fn url_of(&self, ask: &Ask<'_>) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{}/{}", self.path, ask.repo, ask.below));
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        url
    }

    /// What a token for pulling must be good for (distribution, "Token scope documentation").
    fn scope_of(&self, repo: &RepoName) -> String {
        format!("repository:{}{repo}:pull", self.within)
    }
}

#[derive(Default)]
struct State {
    /// What it last asked for: shown without being asked again.
    challenge: Option<Challenge>,
    breaker: Breaker,
    rate_limit: Option<(u64, u64)>,
}

impl Endpoint {
    pub(super) fn new(host: &Host, url: Url, config: &RegistryConfig, connector: &Connector) -> Self {
        let client = HttpClient::new(host.clone(), connector.clone(), config.insecure);
        let logins = Logins::new(host.clone(), config.credentials.clone());
        let plain_http = config.insecure || url.scheme() == "http";
        let auth = Auth::new(host.clone(), client.clone(), logins, plain_http);
        Self {
            host: host.clone(),
            base: Base::new(url),
            client,
            auth,
            state: Mutex::default(),
            settled: Notify::new(),
        }
    }

    /// Asks. `Ok(None)`: it is not there. Token, redirects and all, the header of the answer is waited for no longer
    /// than `patience`; not for so long after one was waited for in vain.
    pub(super) async fn get(
        &self,
        ask: &Ask<'_>,
        patience: Duration,
    ) -> Result<Option<Response>, UpstreamError> {
        let kind = ask.kind();
        let patience = self.admit(kind, patience).await?;
        let late = |_| Err(UpstreamError::Timeout { host: self.host.clone(), waited: patience });
        let outcome = match timeout(patience, self.try_get(ask)).await.unwrap_or_else(late) {
            Ok(response) => self.judge(response).await,
            Err(error) => Err(error),
        };
        let mut state = self.state();
        match &outcome {
            Err(error) if error.is_transient() => {
                let (now, said) = (Instant::now(), error.to_string());
                match error.retry_after() {
                    Some(rest) => state.breaker.asked_for_rest(now, kind, said, rest),
                    None if error.is_timeout() => state.breaker.hung(now, said, patience),
                    None => state.breaker.failed(now, said),
                }
            }
            // Nothing was heard of the registry.
            Err(UpstreamError::Credentials { .. } | UpstreamError::NotPublic { .. }) => (),
            _ => state.breaker.succeeded(),
        }
        drop(state);
        self.settled.notify_waiters();
        outcome
    }

    /// How long an answer may be waited for. While one request finds out whether a rest did any good, the others wait: to be
    /// refused would send them elsewhere for what is here in a moment.
    async fn admit(&self, kind: Kind, patience: Duration) -> Result<Duration, UpstreamError> {
        let (begun, mut left) = (Instant::now(), patience);
        loop {
            let settled = self.settled.notified();
            let Rest { wait, last, is_probed } =
                match self.state().breaker.may_ask(Instant::now(), kind, left) {
                    Ok(patience) => return Ok(patience),
                    Err(rest) => rest,
                };
            let until = begun + patience.min(PROBE_WAIT);
            if !is_probed || timeout_at(until, settled).await.is_err() {
                return Err(UpstreamError::Resting { host: self.host.clone(), wait, last });
            }
            left = patience.saturating_sub(begun.elapsed());
        }
    }

    /// Waits for the outcome of the request that finds out whether a rest did any good, 1 s at most. `false`: there is none.
    pub(super) async fn settles(&self) -> bool {
        let settled = self.settled.notified();
        let is_probed = self.state().breaker.is_probed();
        // One that takes longer is not waited for.
        is_probed && timeout(PROBE_WAIT, settled).await.is_ok()
    }

    async fn try_get(&self, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let scope = self.base.scope_of(ask.repo);
        let known = self.state().challenge.clone();
        let shown = match &known {
            Some(challenge) => self.auth.answer(challenge, &scope, None).await?,
            None => None,
        };
        let (method, url, headers) = (ask.method.clone(), self.base.url_of(ask), ask.headers.clone());
        let get = Get { method, url, headers, authorization: shown.clone() };
        let response = self.client.send(get.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some((challenge, wanted)) = self.auth.challenge(&response) else { return Ok(response) };
        let scope = wanted.unwrap_or(scope);
        let authorization = self.auth.answer(&challenge, &scope, shown.as_ref()).await?;
        if authorization.is_none() || authorization == shown {
            return Ok(response);
        }
        self.state().challenge = Some(challenge);
        self.client.send(Get { authorization, ..get }).await
    }

    /// What an answer means.
    async fn judge(&self, response: Response) -> Result<Option<Response>, UpstreamError> {
        self.note_rate_limit(response.headers());
        let (host, status) = (self.host.clone(), response.status());
        match status {
            status if status.is_success() => Ok(Some(response)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => {
                let (by, said) = (Refuser::Registry, Said::of(response).await);
                Err(UpstreamError::Unauthorized { host, by, said })
            }
            StatusCode::FORBIDDEN => Err(UpstreamError::Forbidden { host, said: Said::of(response).await }),
            StatusCode::TOO_MANY_REQUESTS => {
                let asked = retry_after(response.headers(), SystemTime::now());
                let (retry_after, said) = (asked.unwrap_or(RETRY_AFTER_DEFAULT), Said::of(response).await);
                Err(UpstreamError::RateLimited { host, retry_after, said })
            }
            status => {
                let retry_after = retry_after(response.headers(), SystemTime::now());
                Err(UpstreamError::Status { host, status: status.as_u16(), retry_after })
            }
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

    /// Whether it is asked for manifests.
    pub(super) fn is_asked(&self) -> bool {
        !self.state().breaker.is_resting(Instant::now(), Kind::Manifest)
    }

    pub(super) fn error(&self) -> Option<String> {
        self.state().breaker.last(Instant::now()).map(str::to_owned)
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
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
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
    fn a_path_with_v2_in_it_is_taken_as_it_is() {
        let repo: RepoName = "library/alpine".parse().unwrap();
        for (url, asked, scope) in [
            (
                "https://r.example",
                "https://r.example/v2/library/alpine/tags/list",
                "repository:library/alpine:pull",
            ),
            (
                "https://r.example/below/",
                "https://r.example/below/v2/library/alpine/tags/list",
                "repository:library/alpine:pull",
            ),
            (
                "https://r.example/v2/hub",
                "https://r.example/v2/hub/library/alpine/tags/list",
                "repository:hub/library/alpine:pull",
            ),
            (
                "http://r.example:5000/a/v2/",
                "http://r.example:5000/a/v2/library/alpine/tags/list",
                "repository:library/alpine:pull",
            ),
        ] {
            let base = Base::new(url.parse().unwrap());
            let (below, query, headers) = ("tags/list".to_owned(), Vec::new(), HeaderMap::new());
            let ask = Ask { method: Method::GET, repo: &repo, below, query, headers, is_for_mesh: false };
            assert_eq!(base.url_of(&ask).as_str(), asked);
            assert_eq!(base.scope_of(&repo), scope);
        }
    }

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
