//! The pages of the control socket for image layouts that are kept.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::{Buf, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use tokio::time::timeout;

use super::control::failure;
use super::push::body;
use crate::api::{Changed, LAYOUT_FILE_BYTES_MAX, Layout, LayoutFile};
use crate::ipld::parse_cid;
use crate::mirror::{BodyError, KeptLayout, Mirror, MirrorError, chain};

/// How long the rest of a body is read that was refused.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn router(mirror: Mirror) -> Router {
    let pages = get(list).post(add).delete(remove);
    Router::new().route("/v0/layouts", pages).layer(DefaultBodyLimit::disable()).with_state(mirror)
}

async fn list(State(mirror): State<Mirror>) -> Json<Vec<Layout>> {
    Json(mirror.layouts().into_iter().map(describe).collect())
}

fn describe(layout: KeptLayout) -> Layout {
    let KeptLayout { cid, name, size_bytes, added_at_s } = layout;
    Layout { cid: cid.to_string(), name, size_bytes, added_at_s }
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

async fn add(
    State(mirror): State<Mirror>,
    Query(Named { name }): Query<Named>,
    request: Request,
) -> Response {
    match receive(&mirror, &name, request).await {
        Ok(layout) => Json(describe(layout)).into_response(),
        Err(error) => failed(&error),
    }
}

async fn receive(mirror: &Mirror, name: &str, request: Request<Body>) -> Result<KeptLayout, MirrorError> {
    let mut incoming = Incoming { body: body(request).boxed(), buffer: BytesMut::new() };
    let layout = take_in(mirror, name, &mut incoming).await;
    if layout.is_err() {
        // Who is still sending reads no answer.
        let rest = incoming.body.try_for_each(async |_| Ok(()));
        let _ = timeout(DRAIN_TIMEOUT, rest).await;
    }
    layout
}

async fn take_in(mirror: &Mirror, name: &str, incoming: &mut Incoming) -> Result<KeptLayout, MirrorError> {
    let mut writer = mirror.add_layout()?;
    while let Some(LayoutFile { path, size_bytes }) = incoming.next_file().await? {
        writer.file(&path, incoming.content(size_bytes)).await?;
    }
    Box::pin(writer.finish(name)).await
}

#[derive(Deserialize)]
struct Removed {
    cid: String,
}

async fn remove(State(mirror): State<Mirror>, Query(Removed { cid }): Query<Removed>) -> Response {
    let Some(cid) = parse_cid(&cid) else {
        return failure(StatusCode::BAD_REQUEST, format!("{cid:?} is no CID"));
    };
    match mirror.remove_layout(&cid).await {
        Ok(changed) => Json(Changed { changed }).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &MirrorError) -> Response {
    let status = match error {
        MirrorError::NoLayout(_) | MirrorError::Layout { .. } | MirrorError::Body(_) => {
            StatusCode::BAD_REQUEST
        }
        MirrorError::TooManyLayouts(_) => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    failure(status, chain(error))
}

/// A body of files, each with a line of JSON before it.
struct Incoming {
    body: BoxStream<'static, Result<Bytes, BodyError>>,
    /// What came and is not taken yet.
    buffer: BytesMut,
}

impl Incoming {
    /// What the next file is; `None` at the end.
    async fn next_file(&mut self) -> Result<Option<LayoutFile>, MirrorError> {
        let malformed = |what: &str| MirrorError::NoLayout(format!("the request {what}"));
        loop {
            if let Some(end) = self.buffer.iter().take(LAYOUT_FILE_BYTES_MAX).position(|byte| *byte == b'\n')
            {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                let file = serde_json::from_slice::<LayoutFile>(&line);
                return file.map(Some).map_err(|_| malformed("has a line that describes no file"));
            }
            if self.buffer.len() >= LAYOUT_FILE_BYTES_MAX {
                return Err(malformed("has a line that is too long"));
            }
            match self.body.try_next().await.map_err(MirrorError::Body)? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(malformed("ends within a line")),
            }
        }
    }

    /// The bytes of the file; must be read to their end before the next file is.
    fn content(&mut self, size_bytes: u64) -> BoxStream<'_, Result<Bytes, BodyError>> {
        stream::try_unfold((self, size_bytes), |(incoming, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let mut bytes = match incoming.buffer.is_empty() {
                false => incoming.buffer.split().freeze(),
                true => incoming.body.try_next().await?.ok_or("the request ends within a file")?,
            };
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            if bytes.len() > wanted {
                incoming.buffer.extend_from_slice(&bytes.split_off(wanted));
            }
            let left = left - bytes.len() as u64;
            Ok(Some((bytes, (incoming, left))))
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(body: &[u8], chunk_bytes: usize) -> Incoming {
        let chunks: Vec<Result<Bytes, BodyError>> =
            body.chunks(chunk_bytes).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        Incoming { body: stream::iter(chunks).boxed(), buffer: BytesMut::new() }
    }

    async fn read(mut incoming: Incoming) -> Result<Vec<(String, Vec<u8>)>, MirrorError> {
        let mut files = Vec::new();
        while let Some(LayoutFile { path, size_bytes }) = incoming.next_file().await? {
            let content = incoming.content(size_bytes).try_collect::<Vec<Bytes>>().await;
            files.push((path, content.map_err(MirrorError::Body)?.concat()));
        }
        Ok(files)
    }

    #[tokio::test]
    async fn files_are_told_apart_however_their_bytes_come() {
        let body = b"{\"path\":\"a\",\"size_bytes\":3}\n{}\n{\"path\":\"b/c\",\"size_bytes\":0}\n{\"path\":\"d\",\"size_bytes\":1}\nx";
        let files = [("a", b"{}\n".as_slice()), ("b/c", b""), ("d", b"x")];
        let files = files.map(|(path, content)| (path.to_owned(), content.to_owned()));
        for chunk_bytes in [1, 2, 3, 7, 1000] {
            assert_eq!(read(incoming(body, chunk_bytes)).await.unwrap(), files, "{chunk_bytes}");
        }
    }

    #[tokio::test]
    async fn what_is_cut_short_or_no_file_is_refused() {
        let long = format!("{{\"path\":\"{}", "a".repeat(2 * LAYOUT_FILE_BYTES_MAX));
        for body in [
            "x",
            "{}\n",
            "{\"path\":\"a\",\"size_bytes\":3}\nxx",
            "{\"path\":\"a\",\"size_bytes\":-1}\n",
            &long,
        ] {
            assert!(read(incoming(body.as_bytes(), 50)).await.is_err(), "{body}");
        }
    }
}
