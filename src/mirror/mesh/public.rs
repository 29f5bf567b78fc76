//! Blobs of the public network: of whoever announces their digest in the DHT, in the mesh or not. Asked where the registry
//! gives no answer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use hyper::Request;
use tokio::time::{Instant, timeout, timeout_at};

use super::Mesh;
use super::ask::{Answer, HELD_TIMEOUT, from_byte};
use crate::ipfs::Peer;
use crate::mirror::{MirrorError, chain};
use crate::oci::Digest;
use crate::oci::manifest::MANIFEST_BYTES_MAX;

/// How long all of them are looked for and asked.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);
/// How many are asked.
const ASKED_MAX: usize = 16;
/// How long a manifest may take, all in all.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(8);
/// The repository that a stranger is asked in: by the digest it knows all that it needs.
const REPOSITORY: &str = "any";

impl Mesh {
    /// Opens a blob from `at` on at a peer that announces it, within some seconds. `None`: there is nobody, which is
    /// remembered for half a minute. The bytes are not held to the digest.
    pub(in crate::mirror) async fn public_blob(&self, digest: &Digest, at: u64) -> Option<(Peer, Answer)> {
        if self.0.unprovided.contains_key(digest) {
            return None;
        }
        let deadline = Instant::now() + FIND_TIMEOUT;
        let mut found = self.0.ipfs.find_digest(&digest.multihash()).take(ASKED_MAX);
        while let Ok(Some(peer)) = timeout_at(deadline, found.next()).await {
            if peer == self.0.us || self.0.banned.contains_key(&peer) {
                continue;
            }
            match self.ask_public(&peer, digest, at).await {
                Ok(answer @ Answer::Bytes { .. }) => return Some((peer, answer)),
                Ok(_) => tracing::debug!(%peer, %digest, "peer announces a blob and does not give it"),
                Err(error) => {
                    tracing::debug!(%peer, %digest, error = %chain(&error), "peer that announces a blob left out");
                }
            }
        }
        tracing::debug!(%digest, "nobody gives a blob by its digest");
        self.0.unprovided.insert(*digest, ());
        None
    }

    async fn ask_public(&self, peer: &Peer, digest: &Digest, at: u64) -> Result<Answer, MirrorError> {
        let request = Request::get(format!("/v2/{REPOSITORY}/blobs/{digest}")).body(Bytes::new());
        let mut request = request.map_err(|_| MirrorError::Closed)?;
        from_byte(&mut request, at, None);
        let asked = timeout(HELD_TIMEOUT, self.0.ipfs.request(peer, request)).await;
        match asked {
            Ok(response) => Ok(self.blob_answer(peer, at, response.map_err(MirrorError::Peer)?)),
            Err(_) => Ok(Answer::No),
        }
    }

    /// A manifest by its digest, which it has.
    pub(in crate::mirror) async fn public_manifest(&self, digest: &Digest) -> Option<(Peer, Bytes)> {
        let whole = async {
            let (peer, Answer::Bytes { mut bytes, .. }) = self.public_blob(digest, 0).await? else {
                return None;
            };
            let mut manifest = BytesMut::new();
            while let Some(chunk) = bytes.next().await {
                manifest.extend_from_slice(&chunk.ok()?);
                if manifest.len() > MANIFEST_BYTES_MAX {
                    break;
                }
            }
            if Digest::of(digest.algorithm(), &manifest) != *digest {
                self.ban(&peer);
                return None;
            }
            Some((peer, manifest.freeze()))
        };
        timeout(MANIFEST_TIMEOUT, whole).await.ok().flatten()
    }
}
