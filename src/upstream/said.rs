//! What a registry says of its refusal, in its own words (distribution-spec, "Error Codes"): the best reason that a user
//! can be given.

use std::fmt;
use std::time::Duration;

use futures::StreamExt;
use reqwest::Response;
use serde::Deserialize;
use tokio::time::timeout;

/// What of a refusal is read, and for how long: nobody waits for the sake of a text.
const REFUSAL_BYTES_MAX: usize = 16 << 10;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// What of its text is passed on.
const TEXT_CHARS_MAX: usize = 200;

/// The text of a refusal. Shown as `: "TEXT"`, or as nothing if there was none. At most 200 characters, on one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(Option<String>);

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<Entry>,
    /// Of token servers: Docker Hub's, and those of OAuth2 (RFC 6749, section 5.2).
    details: Option<String>,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    message: Option<String>,
}

impl Said {
    /// Reads the body of a refusal. Whatever is wrong with it, there is just no text then.
    pub(super) async fn of(response: Response) -> Self {
        let mut chunks = response.bytes_stream();
        let mut bytes = Vec::new();
        let read = async {
            while let Some(Ok(chunk)) = chunks.next().await
                && bytes.len() + chunk.len() <= REFUSAL_BYTES_MAX
            {
                bytes.extend_from_slice(&chunk);
            }
        };
        // What came until then may do.
        let _ = timeout(REFUSAL_TIMEOUT, read).await;
        Self::parse(&bytes)
    }

    fn parse(body: &[u8]) -> Self {
        let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else { return Self(None) };
        let Refusal { errors, details, error_description } = refusal;
        let texts = errors.into_iter().filter_map(|entry| entry.message);
        let mut texts = texts.chain(details).chain(error_description).map(|text| on_one_line(&text));
        Self(texts.find(|text| !text.is_empty()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|text| write!(f, ": \"{text}\""))
    }
}

fn on_one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.trim().chars().take(TEXT_CHARS_MAX).collect()
}

/// Reads whatever bytes as the body of a refusal: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    let said = Said::parse(bytes).to_string();
    assert!(said.chars().count() <= TEXT_CHARS_MAX + 4 && !said.contains(char::is_control), "{said:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(body: &str) -> String {
        Said::parse(body.as_bytes()).to_string()
    }

    #[test]
    fn a_text_is_read_wherever_registries_write_it() {
        assert_eq!(
            shown(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"upgrade your plan"}]}"#),
            ": \"upgrade your plan\""
        );
        assert_eq!(shown(r#"{"errors":[{"code":"DENIED"},{"message":"a\nb\u001b[31m"}]}"#), ": \"a b [31m\"");
        assert_eq!(shown(r#"{"details":"incorrect username or password"}"#).len(), 34);
        assert_eq!(shown(r#"{"error":"invalid_grant","error_description":"expired"}"#), ": \"expired\"");
        for none in ["", "<html>denied</html>", "{}", r#"{"errors":[{"message":"  "}]}"#, r#"{"errors":7}"#] {
            assert_eq!(shown(none), "", "{none}");
        }
    }

    #[test]
    fn a_long_text_is_cut() {
        let body = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "ü".repeat(5000));
        assert_eq!(shown(&body).chars().count(), TEXT_CHARS_MAX + 4);
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_left(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Said::parse(&body);
        }
    }
}
