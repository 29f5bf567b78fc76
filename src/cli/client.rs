//! Asks the running daemon, over its Unix socket.

use std::path::Path;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{CommandError, Which};
use crate::api;

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A value as it is written in a query.
pub(super) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Sends one request and reads the JSON that comes back; an error is what the daemon says.
pub(super) fn ask<T: DeserializeOwned>(
    which: &Which,
    method: &Method,
    target: &str,
) -> Result<T, CommandError> {
    let socket = super::load(which.config.clone())?.store.root_directory.join(api::SOCKET);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let request = Request::builder().method(method).uri(target).body(Empty::<Bytes>::new());
    let request = request.context("cannot ask the daemon")?;
    Ok(runtime.block_on(exchange(&socket, request))?)
}

/// The same with a body, on a connection of its own. Dropping the future withdraws the request.
pub(super) async fn exchange<T, B>(socket: &Path, mut request: Request<B>) -> anyhow::Result<T>
where
    T: DeserializeOwned,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
{
    let stream = UnixStream::connect(socket).await;
    let stream = stream.with_context(|| {
        format!("no daemon answers at {}: start one with `shoal serve`", socket.display())
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    request.headers_mut().insert(HOST, HeaderValue::from_static("shoal"));
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        match serde_json::from_slice::<api::Failure>(&body) {
            Ok(failure) => bail!(failure.error),
            Err(_) => bail!("the daemon answered {status}"),
        }
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => {
            ended?;
            bail!("the daemon closed the connection")
        }
    }
}
