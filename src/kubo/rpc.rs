//! The RPC API of Kubo as HTTP: a POST per command, arguments in the query, an answer that may fail behind its first byte.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body_util::BodyExt;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Body, Certificate, Client, Request, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use url::Url;
use uuid::Uuid;

use super::KuboError;
use crate::config::{KuboApi, KuboConfig};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What Kubo is told to give up after; we do so this much later, if it is deaf.
const GRACE: Duration = Duration::from_secs(5);
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Of an error that Kubo explains itself with.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Shown of one, in characters.
const MESSAGE_CHARS_MAX: usize = 300;
/// How rustls begins to say that it does not trust who answers.
const CERTIFICATE_REFUSED: &str = "invalid peer certificate";
/// The trailer that an answer fails with which began well.
const STREAM_ERROR: &str = "x-stream-error";

/// A Kubo as it is asked. Cheap to clone.
#[derive(Clone)]
pub(super) struct Rpc {
    client: Client,
    base: Url,
    authorization: Option<HeaderValue>,
    /// For people.
    pub(super) api: String,
}

/// What is asked of it.
pub(super) struct Call<'a> {
    pub(super) command: &'static str,
    pub(super) query: &'a [(&'a str, &'a str)],
    /// Kubo gives up after this.
    pub(super) patience: Duration,
    /// Of the answer.
    pub(super) bytes_max: usize,
}

#[derive(serde::Deserialize)]
struct Refusal {
    #[serde(rename = "Message")]
    message: String,
}

impl Rpc {
    /// Reads the file of authorities: not for an asynchronous thread that serves.
    pub(super) fn new(config: &KuboConfig) -> Result<Self, KuboError> {
        let wrong = |key: &'static str, reason: String| KuboError::Config { key, reason };
        let mut builder = Client::builder()
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        if let KuboApi::Unix(path) = &config.api {
            builder = builder.unix_socket(path.as_path());
        }
        match &config.ca {
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| {
                    wrong("ipfsapica", format!("cannot read {}: {error}", path.display()))
                })?;
                let authorities = Certificate::from_pem_bundle(&pem)
                    .map_err(|error| wrong("ipfsapica", innermost(&error)))?;
                if authorities.is_empty() {
                    return Err(wrong("ipfsapica", format!("{} has no certificate in PEM", path.display())));
                }
                builder = builder.tls_certs_merge(authorities);
            }
            // A small container may have no authorities at all, and plain http needs none.
            None if config.api.base().is_some_and(|base| base.scheme() == "http") => {
                builder = builder.tls_certs_only([]);
            }
            None => (),
        }
        let client = builder.build().map_err(|error| wrong("ipfsapiaddress", innermost(&error)))?;
        let base = config.api.base();
        let base = base.ok_or_else(|| wrong("ipfsapiaddress", "it is no address of an API".to_owned()))?;
        let authorization = config.authorization.as_ref().map(|secret| {
            HeaderValue::from_str(secret.reveal()).map(|mut value| {
                value.set_sensitive(true);
                value
            })
        });
        let authorization =
            authorization.transpose().map_err(|error| wrong("ipfsapiauth", error.to_string()))?;
        Ok(Self { client, base, authorization, api: config.api.to_string() })
    }

    /// A command whose answer is one JSON value. All of these may be dropped midway.
    pub(super) async fn ask<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, KuboError> {
        let command = call.command;
        let bytes = self.call(call, None).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.strange(command, &error.to_string()))
    }

    /// A command whose answer is taken as it is.
    pub(super) async fn bytes(&self, call: Call<'_>) -> Result<Bytes, KuboError> {
        self.call(call, None).await
    }

    /// A command that takes a file, as its parts come.
    pub(super) async fn send<S, E>(&self, call: Call<'_>, file: S) -> Result<Bytes, KuboError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        use futures::{StreamExt, stream};
        // Random, so that it is in no file.
        let boundary = Uuid::new_v4().simple().to_string();
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let around = |text: String| stream::once(async move { Ok(Bytes::from(text)) });
        let body = Body::wrap_stream(around(head).chain(file).chain(around(tail)));
        self.call(call, Some((format!("multipart/form-data; boundary={boundary}"), body))).await
    }

    async fn call(&self, call: Call<'_>, body: Option<(String, Body)>) -> Result<Bytes, KuboError> {
        let (command, patience) = (call.command, call.patience + GRACE);
        let late = |_| KuboError::Timeout { api: self.api.clone(), command, seconds: patience.as_secs() };
        // Boxed: a request is much larger than what waits for it.
        timeout(patience, Box::pin(self.exchange(call, body))).await.map_err(late)?
    }

    async fn exchange(&self, call: Call<'_>, body: Option<(String, Body)>) -> Result<Bytes, KuboError> {
        let Call { command, query, patience, bytes_max } = call;
        let unreachable = |reason: String| match reason.contains(CERTIFICATE_REFUSED) {
            true => KuboError::Untrusted { api: self.api.clone(), reason },
            false => KuboError::Unreachable { api: self.api.clone(), reason },
        };
        let mut url = self.base.join(command).map_err(|error| unreachable(error.to_string()))?;
        url.query_pairs_mut().extend_pairs(query).append_pair("timeout", &format!("{}s", patience.as_secs()));
        let mut request = Request::new(reqwest::Method::POST, url);
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        if let Some((content_type, body)) = body {
            let content_type = HeaderValue::from_str(&content_type);
            request.headers_mut().extend(content_type.ok().map(|value| (CONTENT_TYPE, value)));
            *request.body_mut() = Some(body);
        }
        let response = self.client.execute(request).await;
        let response = response.map_err(|error| unreachable(innermost(&error)))?;
        match response.status() {
            StatusCode::OK => self.whole(command, response, bytes_max).await,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(KuboError::Forbidden {
                api: self.api.clone(),
                command,
                status: response.status().as_u16(),
            }),
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Err(unreachable(format!("what stands before it answers {}", response.status())))
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                Err(self.strange(command, &format!("the answer is {}", response.status())))
            }
            status => {
                let said = self.whole(command, response, MESSAGE_BYTES_MAX).await.unwrap_or_default();
                let message = serde_json::from_slice(&said).map(|refusal: Refusal| refusal.message);
                Err(self.refused(command, &message.unwrap_or_else(|_| format!("the answer is {status}"))))
            }
        }
    }

    /// The whole of an answer, and no error in its trailer.
    async fn whole(
        &self,
        command: &'static str,
        response: reqwest::Response,
        bytes_max: usize,
    ) -> Result<Bytes, KuboError> {
        let mut body = hyper::Response::<Body>::from(response).into_body();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| KuboError::Unreachable {
                api: self.api.clone(),
                reason: format!("its answer broke off: {}", innermost(&error)),
            })?;
            let frame = match frame.into_data() {
                Ok(bytes) => {
                    all.extend_from_slice(&bytes);
                    if all.len() > bytes_max {
                        return Err(self.strange(command, &format!("it has more than {bytes_max} bytes")));
                    }
                    continue;
                }
                Err(frame) => frame,
            };
            let trailers = frame.into_trailers().unwrap_or_default();
            if let Some(error) = trailers.get(STREAM_ERROR).filter(|error| !error.is_empty()) {
                return Err(self.refused(command, &String::from_utf8_lossy(error.as_bytes())));
            }
        }
        Ok(all.freeze())
    }

    pub(super) fn refused(&self, command: &'static str, message: &str) -> KuboError {
        let message = message.chars().filter(|letter| !letter.is_control()).take(MESSAGE_CHARS_MAX).collect();
        KuboError::Refused { api: self.api.clone(), command, message }
    }

    pub(super) fn strange(&self, command: &'static str, reason: &str) -> KuboError {
        KuboError::Strange { api: self.api.clone(), command, reason: reason.to_owned() }
    }
}

/// What an error began with, which alone says something.
fn innermost(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map(ToString::to_string).unwrap_or_default()
}
