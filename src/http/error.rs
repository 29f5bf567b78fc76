//! What failed → code and status, one table. The client gets the code of the specification; the log gets the chain of
//! causes, once, here.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::guard::BodyStalled;
use crate::auth::Refusal;
use crate::mirror::{MirrorError, chain};
use crate::oci::ErrorCode;
use crate::oci::name::NameError;
use crate::oci::route::RouteError;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error("{1} is unknown here")]
    Unknown(Thing, String),
    /// A mirrored registry did not deliver. Clients go elsewhere upon 404; any other status would be taken for the answer
    /// of the registry itself, and some are asked again at once.
    #[error("{what} could not be had: {}", chain(.cause))]
    Missed { thing: Thing, what: String, cause: Box<MirrorError> },
    #[error("the range lies outside of the blob")]
    Range { size_bytes: u64 },
    #[error("{0}")]
    BadUpload(String),
    #[error("there is no answer after {} s: try again later", .0.as_secs())]
    Late(Duration),
    /// `challenge`: how to be allowed; without one nothing that the client can send would help.
    #[error("{refusal}")]
    Refused { refusal: Refusal, challenge: Option<String> },
}

/// What is not there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Thing {
    Manifest,
    Blob,
    Repository,
    Registry,
}

impl Failure {
    /// What a client is told when the registry that it means, or a fill from it, failed.
    pub(super) fn of_mirror(thing: Thing, what: impl FnOnce() -> String, cause: MirrorError) -> Self {
        if cause.is_of_upstream() {
            Self::Missed { thing, what: what(), cause: Box::new(cause) }
        } else {
            cause.into()
        }
    }

    fn classify(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::Route(error) => match error {
                RouteError::NotFound => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
                RouteError::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
                RouteError::Name(_) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
                RouteError::Reference(NameError::Digest(_)) | RouteError::DigestMissing => {
                    (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid)
                }
                RouteError::Reference(_) => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
                RouteError::TooManyTags(_) => (StatusCode::URI_TOO_LONG, ErrorCode::ManifestInvalid),
                RouteError::Number(_) => (StatusCode::BAD_REQUEST, ErrorCode::PaginationNumberInvalid),
            },
            Self::Mirror(error) => classify(error),
            Self::Missed { thing: Thing::Manifest, .. } => {
                (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown)
            }
            Self::Missed { .. } => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown),
            Self::Unknown(Thing::Manifest, _) => (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown),
            Self::Unknown(Thing::Blob, _) => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown),
            Self::Unknown(Thing::Repository | Thing::Registry, _) => {
                (StatusCode::NOT_FOUND, ErrorCode::NameUnknown)
            }
            Self::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::SizeInvalid),
            Self::BadUpload(_) => (StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid),
            Self::Late(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
            Self::Refused { refusal: Refusal::Busy, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
            }
            Self::Refused { challenge: None, .. } => (StatusCode::FORBIDDEN, ErrorCode::Denied),
            // Not 403, as in RFC 6750: clients ask the token server for more after a 401 only.
            Self::Refused { refusal: Refusal::Scope(_), .. } => (StatusCode::UNAUTHORIZED, ErrorCode::Denied),
            Self::Refused { .. } => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
        }
    }
}

/// No wildcard: a new failure must be given its place.
fn classify(error: &MirrorError) -> (StatusCode, ErrorCode) {
    match error {
        MirrorError::ReadOnly | MirrorError::DeleteDisabled => {
            (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported)
        }
        MirrorError::NotOurs { .. } => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Denied),
        MirrorError::UploadUnknown(_) => (StatusCode::NOT_FOUND, ErrorCode::BlobUploadUnknown),
        MirrorError::UploadRange { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::BlobUploadInvalid),
        MirrorError::UploadBusy(_) => (StatusCode::CONFLICT, ErrorCode::BlobUploadInvalid),
        // Not 429: containerd repeats that at once, five times.
        MirrorError::TooManyUploads(_) => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests),
        MirrorError::DigestMismatch { .. } => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
        MirrorError::Body(error) if BodyStalled::is_cause_of(error) => {
            (StatusCode::REQUEST_TIMEOUT, ErrorCode::BlobUploadInvalid)
        }
        MirrorError::Body(_) => (StatusCode::BAD_REQUEST, ErrorCode::BlobUploadInvalid),
        MirrorError::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
        MirrorError::ManifestTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::ManifestInvalid),
        MirrorError::Missing { .. } => (StatusCode::NOT_FOUND, ErrorCode::ManifestBlobUnknown),
        MirrorError::Fetch { .. } | MirrorError::Unresolved(_) | MirrorError::Closed => {
            (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
        }
        MirrorError::Naming { .. } | MirrorError::Slow { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
        }
        MirrorError::Elsewhere(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
        MirrorError::Misaddressed { .. } | MirrorError::NoLayout(_) => {
            (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid)
        }
        MirrorError::Unlinked(_) => (StatusCode::NOT_FOUND, ErrorCode::NameUnknown),
        MirrorError::SeveralImages { .. } | MirrorError::TooManyLayouts(_) => {
            (StatusCode::CONFLICT, ErrorCode::Unsupported)
        }
        MirrorError::Dag(error) if error.is_fetch() => {
            (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
        }
        MirrorError::Upstream(_)
        | MirrorError::Peer(_)
        | MirrorError::Late { .. }
        | MirrorError::TooManyFills(_)
        | MirrorError::WrongSize { .. }
        | MirrorError::Short { .. }
        | MirrorError::NotUpstream { .. }
        | MirrorError::Unfinishable { .. } => (StatusCode::BAD_GATEWAY, ErrorCode::Unavailable),
        MirrorError::Fill(error) => classify(error),
        MirrorError::Awaited { source, .. } | MirrorError::GivenUp { source, .. } => classify(source),
        MirrorError::FillBroken { .. } => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable),
        MirrorError::NotMirrored(_) | MirrorError::NoImage(_) | MirrorError::Name(_) => {
            (StatusCode::NOT_FOUND, ErrorCode::NameUnknown)
        }
        MirrorError::NoOtherWriter | MirrorError::NotAdoptable { .. } | MirrorError::Rotate(_) => {
            (StatusCode::CONFLICT, ErrorCode::Unsupported)
        }
        MirrorError::TooManyPins(_) | MirrorError::Pinned { .. } | MirrorError::Platform(_) => {
            (StatusCode::CONFLICT, ErrorCode::Unsupported)
        }
        MirrorError::NotFreed(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown),
        MirrorError::Tree { .. }
        | MirrorError::Layout { .. }
        | MirrorError::Forged { .. }
        | MirrorError::NoManifest { .. }
        | MirrorError::Commit(_)
        | MirrorError::Store(_)
        | MirrorError::Dag(_) => (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown),
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, code) = self.classify();
        let message = chain(&self);
        let detail = match &self {
            Self::Missed { cause, .. } => Some(chain(&**cause)),
            _ => None,
        };
        if let (Self::Missed { what, .. }, Some(detail)) = (&self, &detail) {
            tracing::info!(%what, error = %detail, "missed: the client is sent elsewhere");
        }
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), error = %message, "request failed");
        }
        let mut response = Response::new(Body::from(code.body_with(&message, detail.as_deref())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match &self {
            Self::Route(RouteError::Method(allowed)) => {
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            Self::Range { size_bytes } => {
                super::set(headers, axum::http::header::CONTENT_RANGE, format!("bytes */{size_bytes}"))
            }
            Self::Mirror(MirrorError::UploadRange { repo, id, received, .. }) => {
                super::push::describe_upload(headers, repo, id, *received);
            }
            Self::Refused { challenge: Some(challenge), .. } if status == StatusCode::UNAUTHORIZED => {
                super::set(headers, WWW_AUTHENTICATE, challenge);
            }
            _ => (),
        }
        response
    }
}
