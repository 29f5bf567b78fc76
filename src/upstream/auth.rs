//! The answer to a registry's challenge: Basic, or a Bearer token from its token server, by `GET` or, with a refresh token,
//! by `POST` (distribution, "Token authentication" and "OAuth2 token authentication"). Tokens are kept per scope and
//! renewed before they run out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_auth::ChallengeParser;
use moka::future::Cache;
use multibase::Base;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Body, Method, Request, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::UpstreamError;
use super::body::whole;
use super::client::{Get, HttpClient};
use super::credentials::{Login, Logins};
use crate::oci::{Host, RepoName};

/// Tokens kept per registry.
const TOKENS_MAX: u64 = 1024;
/// What a token lives that does not say it (distribution, "Token response fields").
const TOKEN_TTL: Duration = Duration::from_secs(60);
const TOKEN_TTL_MAX: Duration = Duration::from_secs(3600);
const TOKEN_ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Challenges that are looked at.
const CHALLENGES_MAX: usize = 8;
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
const CLIENT_ID: &str = "shoal";

/// What a registry wants to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

/// Answers the challenges of one registry.
pub(super) struct Auth {
    host: Host,
    client: HttpClient,
    logins: Logins,
    tokens: Cache<(Url, Option<String>, String), Token>,
    /// Credentials may be shown to a token server that speaks plain http.
    plain_http: bool,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    renew_at: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) fn new(host: Host, client: HttpClient, logins: Logins, plain_http: bool) -> Self {
        let tokens = Cache::builder().max_capacity(TOKENS_MAX).time_to_live(TOKEN_TTL_MAX).build();
        Self { host, client, logins, tokens, plain_http }
    }

    /// The strongest challenge of an answer that we can meet.
    pub(super) fn challenge(&self, response: &Response) -> Option<Challenge> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let texts: Vec<&str> = headers.filter_map(|header| header.to_str().ok()).collect();
        strongest(&texts)
    }

    /// What to show for pulling from a repository. `refused`: what was shown before did not do.
    pub(super) async fn answer(
        &self,
        challenge: &Challenge,
        repo: &RepoName,
        refused: bool,
    ) -> Result<Option<HeaderValue>, UpstreamError> {
        match challenge {
            Challenge::Basic => match self.logins.get().await? {
                Some(Login::Password(user, password)) => {
                    basic(&user, password.reveal()).map(Some).ok_or_else(|| self.unusable())
                }
                Some(Login::RefreshToken(_)) | None => Ok(None),
            },
            Challenge::Bearer { realm, service } => {
                let scope = format!("repository:{repo}:pull");
                let key = (realm.clone(), service.clone(), scope.clone());
                let known = self.tokens.get(&key).await;
                if refused || known.is_some_and(|token| token.renew_at <= Instant::now()) {
                    self.tokens.invalidate(&key).await;
                }
                let fetch = self.fetch_token(realm, service.as_deref(), &scope);
                let token = self.tokens.try_get_with(key, fetch).await;
                token.map(|token| Some(token.header)).map_err(|error| self.again(&error))
            }
        }
    }

    /// The error of a fetch that several waited for.
    fn again(&self, error: &Arc<UpstreamError>) -> UpstreamError {
        let (host, detail) = (self.host.clone(), error.to_string());
        match &**error {
            UpstreamError::Timeout { waited, .. } => UpstreamError::Timeout { host, waited: *waited },
            error if error.is_transient() => UpstreamError::Unreachable { host, reason: detail },
            _ => UpstreamError::Unauthorized { host, detail },
        }
    }

    fn unusable(&self) -> UpstreamError {
        let reason = "they cannot be written into a header".to_owned();
        UpstreamError::Credentials { host: self.host.clone(), reason }
    }

    async fn fetch_token(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
    ) -> Result<Token, UpstreamError> {
        let login = self.logins.get().await?;
        if login.is_some() && realm.scheme() != "https" && !self.plain_http {
            let reason =
                format!("the token server {} is not asked over https", realm.origin().ascii_serialization());
            return Err(UpstreamError::Credentials { host: self.host.clone(), reason });
        }
        let response = match &login {
            Some(Login::RefreshToken(token)) => {
                let grant = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
                self.post(realm, service, scope, &grant).await?
            }
            Some(Login::Password(user, password)) => {
                let authorization = basic(user, password.reveal()).ok_or_else(|| self.unusable())?;
                let response = self.get(realm, service, scope, Some(authorization)).await?;
                // Some servers know OAuth2 alone.
                match response.status() {
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                        let grant = [
                            ("grant_type", "password"),
                            ("username", user.as_str()),
                            ("password", password.reveal()),
                        ];
                        self.post(realm, service, scope, &grant).await?
                    }
                    _ => response,
                }
            }
            None => self.get(realm, service, scope, None).await?,
        };
        self.read(response).await
    }

    async fn get(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, UpstreamError> {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("scope", scope);
            service.map(|service| query.append_pair("service", service));
        }
        self.client.send(Get { method: Method::GET, url, headers: HeaderMap::new(), authorization }).await
    }

    async fn post(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
        grant: &[(&str, &str)],
    ) -> Result<Response, UpstreamError> {
        let form = {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.extend_pairs(grant).append_pair("client_id", CLIENT_ID).append_pair("scope", scope);
            service.map(|service| form.append_pair("service", service));
            form.finish()
        };
        let mut request = Request::new(Method::POST, realm.clone());
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, kind);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        *request.body_mut() = Some(Body::from(form));
        let waited = TOKEN_TIMEOUT;
        let late = |_| UpstreamError::Timeout { host: self.host.clone(), waited };
        tokio::time::timeout(waited, self.client.execute(request)).await.map_err(late)?
    }

    async fn read(&self, response: Response) -> Result<Token, UpstreamError> {
        let (host, status) = (self.host.clone(), response.status());
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(UpstreamError::Status { host, status: status.as_u16() });
        }
        if !status.is_success() {
            let detail = format!("its token server answered {}", status.as_u16());
            return Err(UpstreamError::Unauthorized { host, detail });
        }
        let body = whole(&host, response, "a token", TOKEN_ANSWER_BYTES_MAX).await?;
        let malformed =
            |reason: String| UpstreamError::Malformed { host: host.clone(), what: "a token", reason };
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| malformed("it has none".to_owned()))?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| malformed("it is no header".to_owned()))?;
        header.set_sensitive(true);
        let lives = answer.expires_in.map_or(TOKEN_TTL, Duration::from_secs).min(TOKEN_TTL_MAX);
        Ok(Token { header, renew_at: Instant::now() + lives.mul_f32(0.8) })
    }
}

/// Bearer goes before Basic.
fn strongest(headers: &[&str]) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for challenge in ChallengeParser::new(header).take(CHALLENGES_MAX) {
            let Ok(challenge) = challenge else { break };
            let parameter = |wanted: &str| {
                let found = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
                if let Some(realm) = realm.filter(|realm| matches!(realm.scheme(), "http" | "https")) {
                    return Some(Challenge::Bearer { realm, service: parameter("service") });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let encoded = Base::Base64Pad.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {encoded}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_strongest_challenge_is_met() {
        let bearer =
            r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a:pull""#;
        let Some(Challenge::Bearer { realm, service }) = strongest(&["Basic realm=\"x\"", bearer]) else {
            panic!("a bearer challenge was expected");
        };
        assert_eq!((realm.as_str(), service.as_deref()), ("https://auth.example/token", Some("registry")));
        assert_eq!(strongest(&[r#"basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(strongest(&[r#"Bearer realm="file:///etc/passwd""#]), None);
        assert_eq!(strongest(&["Negotiate"]), None);
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = strongest(&[&text]);
        }
    }
}
