//! How long an answer may be in the making.

use std::time::Duration;

use axum::response::Response;

use super::error::Failure;
use crate::oci::Route;

/// Nobody waits longer for a manifest or a list; a client that is told so may come again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Gives up an answer that is not there in time. What takes the bytes of a blob may go on for as long as they come.
pub(super) async fn in_time(
    route: RouteKind,
    answer: impl Future<Output = Result<Response, Failure>>,
) -> Result<Response, Failure> {
    match route {
        RouteKind::Upload => answer.await,
        RouteKind::Other => {
            let answered = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
            answered.unwrap_or(Err(Failure::Late(ANSWER_TIMEOUT)))
        }
    }
}

/// Whether a request brings a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteKind {
    Upload,
    Other,
}

impl From<&Route> for RouteKind {
    fn from(route: &Route) -> Self {
        match route {
            Route::StartUpload { .. } | Route::AppendUpload { .. } | Route::FinishUpload { .. } => {
                Self::Upload
            }
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_come_is_given_up_but_an_upload_is_not() {
        let late = in_time(RouteKind::Other, std::future::pending()).await;
        assert!(matches!(late, Err(Failure::Late(_))));
        let upload = in_time(RouteKind::Upload, async {
            tokio::time::sleep(2 * ANSWER_TIMEOUT).await;
            Ok(Response::default())
        });
        assert!(upload.await.is_ok());
    }
}
