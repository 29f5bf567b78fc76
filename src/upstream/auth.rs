//! The answer to a registry's challenge: Basic, or a Bearer token from its token server, by `GET` or, with a refresh token,
//! by `POST` (distribution, "Token authentication" and "OAuth2 token authentication"). Tokens are kept per scope and
//! renewed before they run out.

use std::future::ready;
use std::time::{Duration, SystemTime};

use http_auth::ChallengeParser;
use moka::Entry;
use moka::future::Cache;
use moka::ops::compute::Op;
use multibase::Base;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Body, Method, Request, Response, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::body::whole;
use super::client::{Get, HttpClient};
use super::credentials::{Login, Logins};
use super::endpoint::retry_after;
use super::{Refuser, Said, UpstreamError};
use crate::oci::Host;

/// Tokens kept per registry.
const TOKENS_MAX: u64 = 1024;
/// What a token lives that does not say it, and the least that one may say (distribution, "Token response fields").
const TOKEN_TTL_MIN: Duration = Duration::from_secs(60);
const TOKEN_TTL_MAX: Duration = Duration::from_secs(3600);
/// The part of its life after which a token is renewed.
const RENEWED_AFTER: f64 = 0.8;
const SCOPE_BYTES_MAX: usize = 512;
/// What 429 of a token server without `Retry-After` is taken to mean.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(10);
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
    /// Seconds; a number of any kind.
    expires_in: Option<f64>,
}

impl Auth {
    pub(super) fn new(host: Host, client: HttpClient, logins: Logins, plain_http: bool) -> Self {
        let tokens = Cache::builder().max_capacity(TOKENS_MAX).time_to_live(TOKEN_TTL_MAX).build();
        Self { host, client, logins, tokens, plain_http }
    }

    /// The strongest challenge of an answer that we can meet, and the scope it names, if that is for pulling alone.
    pub(super) fn challenge(&self, response: &Response) -> Option<(Challenge, Option<String>)> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let texts: Vec<&str> = headers.filter_map(|header| header.to_str().ok()).collect();
        strongest(&texts)
    }

    /// What to show for `scope`. `refused`: what was shown before and did not do; if there is nothing else it is
    /// returned again.
    pub(super) async fn answer(
        &self,
        challenge: &Challenge,
        scope: &str,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, UpstreamError> {
        match challenge {
            Challenge::Basic => {
                let shown = self.basic().await?;
                if shown.is_none() || shown.as_ref() != refused {
                    return Ok(shown);
                }
                self.logins.forget();
                self.basic().await
            }
            Challenge::Bearer { realm, service } => {
                let key = (realm.clone(), service.clone(), scope.to_owned());
                let known = self.tokens.get(&key).await;
                let spent =
                    |token: &Token| token.renew_at <= Instant::now() || Some(&token.header) == refused;
                if known.as_ref().is_some_and(spent) {
                    // Looked at once more: somebody else may just have renewed it.
                    let remove = |entry: Option<Entry<_, Token>>| {
                        ready(match entry.is_some_and(|entry| spent(entry.value())) {
                            true => Op::Remove,
                            false => Op::Nop,
                        })
                    };
                    self.tokens.entry(key.clone()).and_compute_with(remove).await;
                }
                let fetch = self.fetch_token(realm, service.as_deref(), scope);
                let token = self.tokens.try_get_with(key, fetch).await;
                token.map(|token| Some(token.header)).map_err(|error| (*error).clone())
            }
        }
    }

    async fn basic(&self) -> Result<Option<HeaderValue>, UpstreamError> {
        match self.logins.get().await? {
            Some(Login::Password(user, password)) => {
                basic(&user, password.reveal()).map(Some).ok_or_else(|| self.unusable())
            }
            Some(Login::RefreshToken(_)) | None => Ok(None),
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
        let retry_after = retry_after(response.headers(), SystemTime::now());
        if status.is_server_error() {
            return Err(UpstreamError::Status { host, status: status.as_u16(), retry_after });
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            let retry_after = retry_after.unwrap_or(RETRY_AFTER_DEFAULT);
            return Err(UpstreamError::RateLimited { host, retry_after, said: Said::of(response).await });
        }
        if !status.is_success() {
            // A helper may have had better ones in the meantime.
            self.logins.forget();
            let (by, said) = (Refuser::TokenServer(status.as_u16()), Said::of(response).await);
            return Err(UpstreamError::Unauthorized { host, by, said });
        }
        let body = whole(&host, response, "a token", TOKEN_ANSWER_BYTES_MAX).await?;
        let malformed =
            |reason: String| UpstreamError::Malformed { host: host.clone(), what: "a token", reason };
        // What serde says of it might have a part of the token in it.
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| malformed("it is not the JSON of one".to_owned()))?;
        let mut tokens = [answer.token, answer.access_token].into_iter().flatten();
        let token = tokens.find(|token| !token.is_empty());
        let token = token.ok_or_else(|| malformed("it has none".to_owned()))?;
        let mut header = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| malformed("it is no header".to_owned()))?;
        header.set_sensitive(true);
        let lives = answer.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let lives = lives.unwrap_or_default().clamp(TOKEN_TTL_MIN, TOKEN_TTL_MAX);
        Ok(Token { header, renew_at: Instant::now() + lives.mul_f64(RENEWED_AFTER) })
    }
}

/// Bearer goes before Basic.
fn strongest(headers: &[&str]) -> Option<(Challenge, Option<String>)> {
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
                    let scope = parameter("scope").filter(|scope| is_for_pulling(scope));
                    return Some((Challenge::Bearer { realm, service: parameter("service") }, scope));
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some((Challenge::Basic, None));
            }
        }
    }
    basic
}

/// No token is asked for that could do more.
fn is_for_pulling(scope: &str) -> bool {
    let repository = scope.strip_prefix("repository:").and_then(|rest| rest.strip_suffix(":pull"));
    repository.is_some_and(|name| !name.is_empty() && !name.contains([' ', ':', ',']))
        && scope.len() <= SCOPE_BYTES_MAX
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let encoded = Base::Base64Pad.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {encoded}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Reads whatever bytes as challenges, one a line: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Some((_, Some(scope))) = strongest(&text.lines().collect::<Vec<_>>()) {
        assert!(is_for_pulling(&scope), "{scope}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_strongest_challenge_is_met() {
        let bearer =
            r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a:pull""#;
        let Some((Challenge::Bearer { realm, service }, scope)) = strongest(&["Basic realm=\"x\"", bearer])
        else {
            panic!("a bearer challenge was expected");
        };
        assert_eq!(scope.as_deref(), Some("repository:a:pull"));
        assert_eq!((realm.as_str(), service.as_deref()), ("https://auth.example/token", Some("registry")));
        assert_eq!(strongest(&[r#"basic realm="x""#]), Some((Challenge::Basic, None)));
        assert_eq!(strongest(&[r#"Bearer realm="file:///etc/passwd""#]), None);
        assert_eq!(strongest(&["Negotiate"]), None);
    }

    #[test]
    fn no_scope_is_taken_from_a_challenge_but_for_pulling() {
        for (scope, taken) in [
            ("repository:hub/library/alpine:pull", true),
            ("repository:a:pull,push", false),
            ("repository:a:pull repository:b:push", false),
            ("repository:a:push repository:b:pull", false),
            ("repository::pull", false),
            ("registry:catalog:*", false),
            ("*", false),
        ] {
            assert_eq!(is_for_pulling(scope), taken, "{scope}");
        }
    }

    proptest! {
        #[test]
        fn a_challenge_is_read_as_it_was_meant(
            path in "[a-z/]{0,20}", service in "[a-z. ]{1,20}", comma in ", ?",
        ) {
            let header = format!(r#"Bearer realm="https://auth.example/{path}"{comma}service="{service}""#);
            let realm = Url::parse(&format!("https://auth.example/{path}")).unwrap();
            let bearer = Challenge::Bearer { realm, service: Some(service) };
            prop_assert_eq!(strongest(&[&header]), Some((bearer, None)));
        }

        #[test]
        fn any_challenge_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = strongest(&[&text]);
        }
    }
}
