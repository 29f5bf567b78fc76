//! Whole daemons against a network that means them ill: peers that break each protocol, records that were forged, trees
//! that a valid key publishes and no honest writer makes. An image that an honest peer has is pulled all the same, what
//! was known stays, and memory stays flat.
//!
//! | | floods | lengths, messages without end | half-closed, silent, slow | ids used again | wrong order | hostile values |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | connections, yamux | `flood`, `places` | `yamux` | `http` (silent streams) | `yamux` | `yamux` | `yamux` |
//! | identify | `flood` | `wire`, `flood` | `wire` | `flood` (pushes) | `wire` (push before answer) | `flood` |
//! | Kademlia | `flood`, `names` (providers) | `wire` | `wire`, `names` (mute) | `wire` (one request), `gossip` (one sequence) | `names` | `names` |
//! | IPNS records | `flood` | `names` (size) | | `gossip` (one sequence) | `names` | `names` |
//! | gossipsub, fetch | `gossip` | `wire` | `wire` | `gossip` (one message id) | `gossip` | `gossip` |
//! | Bitswap | `bitswap` | `bitswap`, `wire` | `bitswap` | `bitswap` (one want) | `bitswap` | `bitswap` |
//! | HTTP, as asked | `http` | `http` | `http` | `http` (one stream) | `http` | `http` |
//! | HTTP, as answered | `answers` | `answers` | `answers` | | `answers` | `answers` (packed, unasked) |
//! | trees | | `trees` | | | | `trees`, `names` |

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
mod places;
mod trees;
mod wire;
mod yamux;
