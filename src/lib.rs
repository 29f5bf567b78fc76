//! Shoal: a peer-to-peer mirror and registry for container images, in one binary.
//!
//! Users push to their own daemon. Whoever knows its IPNS name pulls the images from the swarm, also when the publisher
//! is unreachable or gone. This page is the map: what the parts are, who may use whom, what is deliberately absent.
//!
//! # The parts
//!
//! | part | what it is | may use |
//! | --- | --- | --- |
//! | [`oci`] | digests, names, manifests, routes, ranges, image archives. Pure. | nothing of ours |
//! | [`ipld`] | blocks, UnixFS, IPNS records. Pure. | nothing of ours |
//! | [`ipfs`] | the seam to the network: fetch, provide, resolve, publish, HTTP between peers | `ipld` |
//! | [`store`] | what is on disk: packs of blocks, an index, the state | `oci`, `ipld` |
//! | [`web`] | IPFS over plain HTTP: delegated routers and trustless gateways | `ipld`, `ipfs`, `upstream` |
//! | [`node`] | the embedded libp2p node, as an [`ipfs::Ipfs`]: Kademlia, Bitswap, records over gossipsub, the mesh, the way in behind NATs | `ipld`, `ipfs`, `store`, `web` |
//! | [`kubo`] | a Kubo daemon over its RPC API, as an [`ipfs::Ipfs`] in the place of the node | `ipld`, `ipfs`, `store` |
//! | [`dag`] | files and directories as DAGs, local first, filled from the network | `ipld`, `ipfs`, `store` |
//! | [`upstream`] | the registries that are mirrored, as a client of theirs | `oci` |
//! | [`naming`] | names that lead to a path of IPFS: DNSLink and ENS | `ipld` |
//! | [`mirror`] | what a pull and a push mean: the own root, the readonly roots, layouts anywhere on IPFS, uploads, publishing, pull-through | `oci`, `ipld`, `ipfs`, `store`, `dag`, `upstream`, `naming` |
//! | [`auth`] | who may do what: passwords, tokens, anonymous pull | `oci` |
//! | [`http`] | the registry API, what peers may ask, and the control socket; axum in, [`mirror::Mirror`] out | `oci`, `ipld`, `ipfs`, `mirror`, `auth`, `api` |
//! | [`config`] | file and environment → checked [`config::Config`] | `oci`, `ipld` |
//! | [`logging`] | how log lines are written | nothing of ours |
//! | [`keystore`] | key files | `ipld` |
//! | [`api`] | what daemon and command line say to each other | nothing of ours |
//! | [`cli`] | the command line; moves images between files and the daemon, points container engines at the mirror | `config`, `keystore`, `oci`, `api`, `kubo` |
//! | [`tasks`] | spawns, names, cancels and awaits what lives long | nothing of ours |
//! | [`metrics`] | every metric, declared once | nothing of ours |
//! | [`network`] | which of the two networks the daemon has, and whose keys names mean | `api`, `ipfs`, `ipld`, `keystore`, `kubo`, `mirror`, `node`, `store`, `web` |
//! | [`daemon`] | where parts meet: opens, starts in order, stops in reverse | all |
//!
//! `config`, `tasks` and `metrics` are open to all but the pure parts. `tests/architecture.rs` holds the code to this table.
//!
//! # Seven flows
//!
//! *A pull, found at a readonly root.* [`http`] reads a route and asks [`mirror::Mirror::manifest`]; the sources are asked
//! in order, the own root first; for a readonly root the path of distribution's layout is walked by [`dag::Tree`], each
//! directory from the blockstore, else from the network by [`ipfs::Ipfs::fetch`], verified and kept. Blobs are streamed
//! leaf by leaf by [`dag::file`], read ahead within a bound, and held to their digest once.
//!
//! *A push.* Bytes go into the blockstore as they come, hashed on two levels; the closing `PUT` compares the digest, and
//! one commit puts the blob into the own tree: pack synced, index flushed, root on disk, then `201`. Publishing follows
//! behind: new roots become one signed record, its sequence on disk before it leaves. Where a Kubo is the network, what the
//! new root has and the last one had not goes there first, and is pinned.
//!
//! *A pull-through.* What no tree has is looked for at the registry that the request means. A tag is confirmed by a `HEAD`
//! unless that was done within its time to live; a manifest or blob becomes one fill, however many ask: its bytes go to all
//! readers as they come and, as a push would, into a second store with a tree of its own, whose blocks no stranger gets.
//! Its last byte goes out, and its commit is made, only if the digest matched. Where the registry gives no answer, whoever
//! announces the digest in the DHT is asked.
//!
//! *A place anywhere on IPFS.* A repository such as `ipns/<name>/<path>` says itself where it lies. The name is resolved
//! within a budget, or its last answer counts; directories are walked down to an image layout, whose index says what a tag
//! is, or to the tree of a registry. Nothing is published for it, and nobody can push there.
//!
//! *A want from a peer.* A stream of the swarm → Bitswap message → the peer's ledger → the blockstore → at most a budget of
//! blocks back. Nothing above [`store`] takes part, and a peer's want never makes us fetch.
//!
//! *A moved name.* A record arrives, on the topic of its name, by a peer's put or by asking; signature and expiry are checked,
//! and it must be newer. Its root is served once its changed directories are here; until then, and if they cannot be had,
//! the old one is. Behind that `mirror/replicate.rs` brings its tags and manifests, or all of its blobs.
//!
//! *Space that comes back.* A delete takes links from the own tree. A round of `mirror/gc.rs` takes those that no manifest
//! needs and no client relies on, marks what lies below every root in use, below uploads and below what is being read,
//! and sweeps the rest out of [`store`]; whatever is put or read meanwhile stays.
//!
//! # What holds everywhere, and what is absent
//!
//! * Absence is `Ok(None)`, failure is `Err`. "Not found" is said only when every source said so.
//! * One owner for each changing thing: the event loop has the swarm, `mirror/commit.rs` the own root,
//!   `mirror/publish` its record, a task per name what is followed. No lock is held across an await.
//! * Bytes are verified where they enter: a block at [`ipld::Block::verify`], a blob before its commit, a record before it
//!   is stored or believed. Inside, the types are trusted.
//! * Everything has a bound, with its unit in its name.
//! * There is no trait with one implementation, no global state, no unbounded queue, no retry without a pause, and no
//!   request of a client that waits for the DHT once a root is known.
//!
//! # Words
//!
//! *Root*: the top CID of a published tree. *Source*: a place to look, the own root or a readonly one. *Upstream*: a registry that is
//! mirrored. *Fill*: a blob on its way from there. *Follow*: keeping
//! a name's newest root. *Want*: a block somebody waits for. *Session*: whom to ask for the blocks of one DAG. *Ledger*:
//! what a peer wants of us. Verbs: `get` is local, `fetch` is the network, `lookup` walks a tree, `resolve` is a name.

#![warn(unreachable_pub)]

pub mod api;
pub mod auth;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dag;
pub mod http;
pub mod ipfs;
pub mod ipld;
pub mod keystore;
pub mod kubo;
pub mod logging;
pub mod metrics;
pub mod mirror;
pub mod naming;
pub mod network;
pub mod node;
pub mod oci;
pub mod store;
pub mod tasks;
pub mod upstream;
pub mod web;
