//! Blobs of the public network: of whoever announces their digest in the DHT, in the mesh or not. Asked where the registry
//! gives no answer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use hyper::Request;
use tokio::time::{Instant, timeout, timeout_at};

use super::ask::{Answer, HELD_TIMEOUT, from_byte};
use super::{Mesh, UNPROVIDED_FOR};
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
        if self.0.unprovided.get(digest).is_some_and(|at| at.elapsed() < UNPROVIDED_FOR) {
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
        self.0.unprovided.insert(*digest, Instant::now());
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use cid::Cid;
    use futures::stream::BoxStream;
    use hyper::Response;
    use tokio::sync::watch;

    use super::*;
    use crate::ipfs::{Ipfs, IpfsError, Nowhere, PeerBody, Want};
    use crate::ipld::ipns::{IpnsName, IpnsRecord};
    use crate::ipld::{Block, Multihash};
    use crate::mirror::mesh::UNPROVIDED_MAX;
    use crate::tasks::Tasks;

    /// A network where nobody announces anything. Counts the searches.
    #[derive(Default)]
    struct Deserted(AtomicU64);

    #[async_trait]
    impl Ipfs for Deserted {
        async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
            Nowhere.fetch(want).await
        }

        async fn provide(&self, roots: &[Cid]) -> Result<(), IpfsError> {
            Nowhere.provide(roots).await
        }

        async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
            Nowhere.resolve(name).await
        }

        async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
            Nowhere.publish(record).await
        }

        fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
            Nowhere.mesh()
        }

        fn find_digest(&self, _: &Multihash) -> BoxStream<'static, Peer> {
            self.0.fetch_add(1, Ordering::Relaxed);
            futures::stream::empty().boxed()
        }

        async fn request(&self, peer: &Peer, asked: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
            Nowhere.request(peer, asked).await
        }
    }

    fn deserted() -> (Mesh, Arc<Deserted>, Tasks) {
        let (tasks, network) = (Tasks::new(), Arc::<Deserted>::default());
        (Mesh::start(&tasks, network.clone(), Peer::new("us")), network, tasks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_that_nobody_gave_is_not_looked_for_again_until_half_a_minute_has_passed() {
        let (mesh, network, _tasks) = deserted();
        let (digest, moment) = (Digest::sha256(b"nowhere"), Duration::from_millis(1));
        for (passed, searches) in [(Duration::ZERO, 1), (UNPROVIDED_FOR - moment, 1), (moment, 2)] {
            tokio::time::advance(passed).await;
            assert!(mesh.public_blob(&digest, 0).await.is_none());
            assert_eq!(network.0.load(Ordering::Relaxed), searches, "after {passed:?} more");
        }
        assert!(mesh.public_blob(&Digest::sha256(b"another"), 0).await.is_none());
        assert_eq!(network.0.load(Ordering::Relaxed), 3, "of others nothing is known");
    }

    #[tokio::test(start_paused = true)]
    async fn of_so_many_blobs_only_it_is_remembered_that_nobody_gives_them() {
        let (mesh, network, _tasks) = deserted();
        for blob in 0..2 * UNPROVIDED_MAX {
            assert!(mesh.public_blob(&Digest::sha256(&blob.to_be_bytes()), 0).await.is_none());
        }
        mesh.0.unprovided.run_pending_tasks();
        assert!((1..=UNPROVIDED_MAX).contains(&mesh.0.unprovided.entry_count()));
        assert_eq!(network.0.load(Ordering::Relaxed), 2 * UNPROVIDED_MAX, "each was looked for");
    }
}
