//! Values from the environment, in distribution's grammar: `REGISTRY_STORAGE_IPFS_WRITEIPNSKEY`, `REGISTRY_P2P_LISTEN_0`;
//! each parsed as YAML and laid over the file in lexical order.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{ConfigError, Warning, nearest, schema};

const PREFIX: &str = "REGISTRY_";
/// The last words of keys that hold secrets.
const SECRETS: &[&str] = &["password", "identitytoken"];
/// Where podman and skopeo keep their credentials: nothing of ours, though it begins so.
const OF_PODMAN: &str = "REGISTRY_AUTH_FILE";

/// Lays the variables over `file`. Names that no key has are one warning each.
pub(super) fn overlay(
    file: &mut Value,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Vec<Warning>, ConfigError> {
    let variables: BTreeMap<String, String> =
        environment.filter(|(name, _)| name.starts_with(PREFIX) && name != OF_PODMAN).collect();
    let mut warnings = Vec::new();
    for (name, text) in variables {
        let lower = name[PREFIX.len()..].to_lowercase();
        let path: Vec<&str> = lower.split('_').collect();
        if !is_known(&path) {
            // Whoever sets such a variable relies on being protected.
            if path.first() == Some(&"auth") {
                let reason = "it names no key of auth: htpasswd, token and anonymous are known".to_owned();
                return Err(ConfigError::Environment { name, value: "…".to_owned(), reason });
            }
            warnings.push(unknown(&name, &path));
            continue;
        }
        let parsed = serde_saphyr::from_str(&text);
        let value = match path.last() {
            // Text whatever it looks like, and not to be shown.
            Some(word) if SECRETS.contains(word) => match parsed {
                Ok(Value::String(secret)) => Value::String(secret),
                _ => Value::String(text),
            },
            _ => parsed.map_err(|error| ConfigError::Environment {
                name: name.clone(),
                value: text.clone(),
                reason: super::first_line(&error.to_string()),
            })?,
        };
        set(file, &name, &path, value)?;
    }
    Ok(warnings)
}

/// Whether a key has this path; below free-form sections everything has.
fn is_known(path: &[&str]) -> bool {
    let mut at = schema();
    for word in path {
        match at {
            Value::Object(keys) if keys.is_empty() => return true,
            Value::Object(keys) => match keys.get(*word) {
                Some(below) => at = below,
                None => return false,
            },
            Value::Array(_) => match word.parse::<usize>() {
                Ok(_) => at = at.get(0).unwrap_or(&Value::Null),
                Err(_) => return false,
            },
            _ => return false,
        }
    }
    true
}

fn unknown(name: &str, path: &[&str]) -> Warning {
    let known = super::paths(schema());
    let hint = nearest(&path.join("."), known.iter().map(String::as_str))
        .map(|known| format!(": did you mean {PREFIX}{}?", known.to_uppercase().replace('.', "_")))
        .unwrap_or_default();
    Warning(format!("environment variable {name} names no key and is ignored{hint}"))
}

fn set(file: &mut Value, name: &str, path: &[&str], value: Value) -> Result<(), ConfigError> {
    let Some((word, rest)) = path.split_first() else {
        *file = value;
        return Ok(());
    };
    if let Ok(index) = word.parse::<usize>() {
        if !file.is_array() {
            *file = Value::Array(Vec::new());
        }
        let list = file.as_array_mut().map_or(&mut [][..], |list| {
            if list.len() == index {
                list.push(Value::Null);
            }
            list.as_mut_slice()
        });
        let length = list.len();
        let entry = list.get_mut(index).ok_or_else(|| ConfigError::Environment {
            name: name.to_owned(),
            value: value.to_string(),
            reason: format!("the list has {length} entries: the next is {length}"),
        })?;
        return set(entry, name, rest, value);
    }
    if !file.is_object() {
        *file = Value::Object(Map::new());
    }
    if let Some(keys) = file.as_object_mut() {
        return set(keys.entry((*word).to_owned()).or_insert(Value::Null), name, rest, value);
    }
    Ok(())
}
