//! Where the bytes of a fill come from.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::super::{MirrorError, Origin};
use crate::oci::{Digest, Repository};
use crate::upstream::Upstream;

/// Whom to ask for one blob. Cheap to clone.
#[derive(Clone)]
pub(super) struct Supply {
    pub(super) digest: Digest,
    pub(super) repository: Repository,
    /// If a manifest has told it.
    pub(super) size_bytes: Option<u64>,
    pub(super) upstream: Upstream,
}

/// Bytes on their way.
pub(super) struct Opened {
    /// Of the whole blob, if the source tells it.
    pub(super) size_bytes: Option<u64>,
    /// Where they begin.
    pub(super) at: u64,
    pub(super) from: Origin,
    pub(super) bytes: BoxStream<'static, Result<Bytes, MirrorError>>,
}

impl Supply {
    /// Opens the blob at `at`, or before it where a source knows no ranges. `None`: nobody has it.
    pub(super) async fn open(&mut self, at: u64) -> Result<Option<Opened>, MirrorError> {
        let body = self.upstream.blob(&self.repository.name, &self.digest, at, None).await?;
        Ok(body.map(|body| Opened {
            size_bytes: body.size_bytes,
            at: body.at,
            from: Origin::Upstream(self.repository.host.clone()),
            bytes: body.bytes.map(|chunk| chunk.map_err(MirrorError::from)).boxed(),
        }))
    }

    /// A part of the blob for one reader alone, straight from upstream.
    pub(super) async fn part(&self, from: u64, to: u64) -> Result<Option<Opened>, MirrorError> {
        let body = self.upstream.blob(&self.repository.name, &self.digest, from, Some(to)).await?;
        Ok(body.map(|body| Opened {
            size_bytes: body.size_bytes,
            at: body.at,
            from: Origin::Upstream(self.repository.host.clone()),
            bytes: body.bytes.map(|chunk| chunk.map_err(MirrorError::from)).boxed(),
        }))
    }

    /// The whole did not have its digest.
    pub(super) fn blame(&mut self) {
        tracing::warn!(digest = %self.digest, repo.name = %self.repository, "upstream sent other bytes than the digest says");
    }
}
