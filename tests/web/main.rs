//! Delegated routers and trustless gateways: whole daemons that know nobody but them, and doubles of both that mean ill.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../common/mod.rs"]
mod common;
mod daemons;
mod double;
mod gateways;
mod routers;
