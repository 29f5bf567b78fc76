//! The error codes of the distribution specification ("Error Codes"), and the JSON around them.

use serde::Serialize;

/// A code that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Unsupported,
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// Of distribution: `n` of a listing is no number.
    PaginationNumberInvalid,
    /// Of distribution: what could not be fetched or is not ready.
    Unavailable,
    /// Of distribution: a fault of this side.
    Unknown,
}

#[derive(Serialize)]
struct Body<'a> {
    errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
struct Entry<'a> {
    code: ErrorCode,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

impl ErrorCode {
    /// The body of an answer.
    pub fn body(self, message: &str) -> String {
        self.body_with(message, None)
    }

    /// The same with what lies behind it.
    pub fn body_with(self, message: &str, detail: Option<&str>) -> String {
        // Strings and a plain enum always serialise.
        serde_json::to_string(&Body { errors: [Entry { code: self, message, detail }] }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_spelled_as_in_the_specification() {
        let body = ErrorCode::ManifestBlobUnknown.body("it \"is\" gone");
        assert_eq!(body, r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"it \"is\" gone"}]}"#);
        assert!(ErrorCode::TooManyRequests.body("").contains("\"TOOMANYREQUESTS\""));
    }
}
