//! Whole daemons against a network that means them ill: peers that break each protocol, records that were forged, trees
//! that a valid key publishes and no honest writer makes. An image that an honest peer has is pulled all the same, what
//! was known stays, and memory stays flat.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod answers;
mod author;
mod bitswap;
#[path = "../common/mod.rs"]
mod common;
mod flood;
mod forge;
mod gossip;
mod gossiper;
mod honest;
mod http;
mod names;
mod peer;
mod trees;
mod wire;
mod yamux;
