//! The registry API held to the OCI distribution specification 1.1, end-1 to end-14, against the real binary: what
//! clients send, what they must not send, and what they do when they leave.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../common/mod.rs"]
mod common;

mod bad_input;
mod lists;
mod manifests;
mod mounts;
mod pulls;
mod random_requests;
mod raw;
mod strangers;
mod uploads;

use std::process::Command;

use common::Daemon;
use reqwest::{Response, StatusCode};
use serde_json::Value;

/// What the daemon says of itself on its control socket.
fn status(daemon: &Daemon) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args(["status", "--json", "--config"])
        .arg(daemon.config())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The top of the own tree: the same CID means that nothing in it has changed.
fn root(daemon: &Daemon) -> String {
    status(daemon)["own"]["root"].as_str().unwrap().to_owned()
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// Holds an answer to a status and a code of the specification, and gives what it says.
async fn refused(response: Response, status: u16, code: &str) -> String {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["errors"][0]["code"], code, "{body}");
    body["errors"][0]["message"].as_str().unwrap().to_owned()
}

/// Opens an upload and gives the address that it goes on at.
async fn open_upload(daemon: &Daemon, repo: &str) -> String {
    let opened = daemon.client.post(daemon.url(&format!("{repo}/blobs/uploads/"))).send().await.unwrap();
    assert_eq!(opened.status(), StatusCode::ACCEPTED);
    assert_eq!(header(&opened, "range"), Some("0-0"));
    daemon.location(&opened)
}

/// The address that closes an upload: a client appends to what it was given, query or not.
fn closing(location: &str, digest: impl std::fmt::Display) -> String {
    let joint = if location.contains('?') { '&' } else { '?' };
    format!("{location}{joint}digest={digest}")
}
