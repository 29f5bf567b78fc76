//! Why the daemon refuses a request, as it says itself.

use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use serde::Deserialize;

use super::registry::{JSON_BYTES_MAX, RegistryError, read_whole};

/// What the daemon says, in the form of the specification ("Error Codes").
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// Why a registry that it mirrors did not deliver.
    pub(super) detail: Option<String>,
}

impl Refusal {
    pub(super) async fn read(answer: Response<Incoming>, what: &str) -> Self {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Error>,
        }
        #[derive(Deserialize)]
        struct Error {
            #[serde(default)]
            message: String,
            detail: Option<serde_json::Value>,
        }
        let status = answer.status();
        let body = read_whole(answer, JSON_BYTES_MAX, what).await.unwrap_or_default();
        match serde_json::from_slice::<Errors>(&body) {
            Ok(Errors { errors }) if !errors.is_empty() => {
                let detail = errors.iter().find_map(|error| error.detail.as_ref()?.as_str());
                let detail = detail.map(str::to_owned);
                let messages = errors.into_iter().map(|error| error.message).collect::<Vec<_>>();
                Self { status, message: messages.join("; "), detail }
            }
            _ => Self { status, message: format!("the daemon answered {status}"), detail: None },
        }
    }

    pub(super) fn into_error(self, what: String) -> RegistryError {
        let Self { status, message, detail } = self;
        // The message of a mirror holds it already.
        let detail = detail.filter(|detail| !message.contains(detail));
        let message = detail.map_or(message.clone(), |detail| format!("{message}: {detail}"));
        RegistryError::Refused { what, status, message }
    }
}

pub(super) async fn refused(answer: Response<Incoming>, what: String) -> RegistryError {
    Refusal::read(answer, &what).await.into_error(what)
}
