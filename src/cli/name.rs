//! `shoal name`: what the daemon does with IPNS names when asked.

use std::fmt::Write as _;

use hyper::Method;

use super::client::{ask, encoded};
use super::status::print_json;
use super::{CommandError, Which, print};
use crate::api;

pub(super) fn resolve(which: &Which, name: &str) -> Result<(), CommandError> {
    let resolved: api::Resolved = ask(which, &Method::GET, &format!("/v0/resolve?name={}", encoded(name)))?;
    print(&resolved.value);
    Ok(())
}

pub(super) fn publish(which: &Which) -> Result<(), CommandError> {
    let status: api::Status = ask(which, &Method::POST, "/v0/publish")?;
    published(status.own)
}

pub(super) fn overwrite(which: &Which) -> Result<(), CommandError> {
    let status: api::Status = ask(which, &Method::POST, "/v0/name/overwrite")?;
    published(status.own)
}

pub(super) fn adopt(which: &Which, json: bool) -> Result<(), CommandError> {
    let adopted: api::Adopted = ask(which, &Method::POST, "/v0/name/adopt")?;
    if json {
        print_json(&adopted);
    } else {
        print(adopted_text(&adopted).trim_end());
    }
    published(Some(adopted.own).filter(|_| !json))
}

/// Says what is published now; an error if it is not.
fn published(own: Option<api::Own>) -> Result<(), CommandError> {
    let Some(own) = own else { return Ok(()) };
    match own.error {
        Some(error) => Err(anyhow::anyhow!("not published: {error}").into()),
        None => {
            print(&format!("{} /ipfs/{} sequence {}", own.name, own.root, own.sequence.unwrap_or_default()));
            Ok(())
        }
    }
}

/// Writing to a string cannot fail.
fn adopted_text(adopted: &api::Adopted) -> String {
    let mut text = String::from("merged: all that the other daemon has published is in the own tree\n");
    for api::TagConflict { repository, tag, ours, theirs } in &adopted.conflicts {
        let _ = writeln!(
            text,
            "conflict   {repository}:{tag} is {ours}; there it was {theirs}, which stays by its digest"
        );
    }
    if adopted.missing_files > 0 {
        let _ = writeln!(
            text,
            "{} files did not come: they are fetched when they are asked for",
            adopted.missing_files
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_told_one_a_line() {
        let adopted = serde_json::json!({
            "own": {"name": "k51", "root": "baf", "sequence": 3, "published_at": null, "state": "published", "error": null},
            "conflicts": [{"repository": "library/app", "tag": "1", "ours": "sha256:aa", "theirs": "sha256:bb"}],
            "missing_files": 2,
        });
        let adopted: api::Adopted = serde_json::from_value(adopted).unwrap();
        let text = adopted_text(&adopted);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("library/app:1 is sha256:aa; there it was sha256:bb"));
        assert!(lines[2].starts_with("2 files did not come"));
    }
}
