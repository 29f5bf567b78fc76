//! Bodies of answers, held to what was said of them: small ones whole and within a bound, blobs as streams that are an
//! error if they stall or end short.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use reqwest::Response;
use tokio::time::timeout;

use super::UpstreamError;
use crate::oci::Host;

/// How long a body may bring nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a body that is read whole may take.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A blob, or the rest of one.
pub struct BlobBody {
    /// Of the whole blob. `None`: upstream does not say.
    pub size_bytes: Option<u64>,
    /// Where it begins: what was asked for, or 0 if upstream knows no ranges; then it does not end where it was asked to.
    pub at: u64,
    /// Ends with an error if less comes than was said or asked for.
    pub bytes: BoxStream<'static, Result<Bytes, UpstreamError>>,
}

/// The whole of a body, which must not exceed `bytes_max`.
pub(super) async fn whole(
    host: &Host,
    response: Response,
    what: &'static str,
    bytes_max: usize,
) -> Result<Bytes, UpstreamError> {
    let too_large = || UpstreamError::TooLarge { host: host.clone(), what, bytes_max };
    if response.content_length().is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large());
    }
    let mut bytes = streamed(host.clone(), response.content_length(), response.bytes_stream());
    let read = async {
        let mut all = BytesMut::new();
        while let Some(chunk) = bytes.next().await {
            all.extend_from_slice(&chunk?);
            if all.len() > bytes_max {
                return Err(too_large());
            }
        }
        Ok(all.freeze())
    };
    let late = |_| UpstreamError::Timeout { host: host.clone(), waited: WHOLE_TIMEOUT };
    timeout(WHOLE_TIMEOUT, read).await.map_err(late)?
}

/// A body as it comes, of `length` bytes if that was said.
pub(super) fn streamed(
    host: Host,
    length: Option<u64>,
    body: impl Stream<Item = reqwest::Result<Bytes>> + Send + 'static,
) -> BoxStream<'static, Result<Bytes, UpstreamError>> {
    let body = body.boxed();
    stream::try_unfold((host, body, 0_u64), move |(host, mut body, received)| async move {
        let next = timeout(STALL_TIMEOUT, body.next()).await;
        let Ok(next) = next else { return Err(UpstreamError::Stalled { host, waited: STALL_TIMEOUT }) };
        let truncated = |reason: String| UpstreamError::Truncated { host: host.clone(), received, reason };
        match next {
            Some(Ok(chunk)) => {
                let received = received + chunk.len() as u64;
                Ok(Some((chunk, (host, body, received))))
            }
            Some(Err(error)) => Err(truncated(innermost(&error))),
            None if length.is_some_and(|length| received < length) => {
                Err(truncated("end of file".to_owned()))
            }
            None => Ok(None),
        }
    })
    .boxed()
}

/// What an error began with: the layers above repeat the address, which may have a token in it.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map(ToString::to_string).unwrap_or_default()
}
