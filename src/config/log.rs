//! The section `log`.

use serde_json::{Map, Value};

use super::check::value_error;
use super::{ConfigError, raw};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub level: LogLevel,
    pub json: bool,
    /// On every line: words as keys, scalars as values.
    pub fields: Map<String, Value>,
    /// Whether each request to the registry is a line.
    pub access: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The word of the config and of log filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

pub(super) fn check(raw: raw::Log) -> Result<LogConfig, ConfigError> {
    let level = match raw.level.as_deref().unwrap_or("info") {
        "error" => LogLevel::Error,
        "warn" => LogLevel::Warn,
        "info" => LogLevel::Info,
        "debug" => LogLevel::Debug,
        "trace" => LogLevel::Trace,
        other => {
            let reason = "one of error, warn, info, debug, trace is expected";
            return Err(value_error("log.level", other, reason));
        }
    };
    let json = match raw.formatter.as_deref().unwrap_or("text") {
        "text" => false,
        "json" => true,
        other => return Err(value_error("log.formatter", other, "text or json is expected")),
    };
    for (name, value) in &raw.fields {
        let is_word = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
        if name.is_empty() || !name.chars().all(is_word) {
            let reason = "the name of a field has letters, digits, `.`, `_` and `-` only";
            return Err(value_error("log.fields", name, reason));
        }
        if value.is_object() || value.is_array() || value.is_null() {
            let reason = "a word, a number, true or false is expected";
            return Err(value_error(&format!("log.fields.{name}"), &value.to_string(), reason));
        }
    }
    let access = !raw.accesslog.disabled.unwrap_or(false);
    Ok(LogConfig { level, json, fields: raw.fields, access })
}
