//! What goes wrong with a pull or a push.

use std::sync::Arc;

use super::Origin;
use crate::dag::DagError;
use crate::ipld::ipns::IpnsName;
use crate::oci::manifest::ManifestError;
use crate::oci::{Digest, RepoName};
use crate::store::StoreError;

/// What went wrong, as far as somebody tells it apart.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("this daemon is read-only: set storage.ipfs.writeipnskey to push to it")]
    ReadOnly,
    #[error("deleting is off: set storage.delete.enabled to allow it")]
    DeleteDisabled,
    /// Only its author can delete it.
    #[error("{what} comes from {origin}, whose author alone can delete it")]
    NotOurs { what: String, origin: Origin },
    #[error("upload {0} is unknown: it was finished, cancelled, or idle for too long")]
    UploadUnknown(String),
    #[error("the chunk begins at byte {at}, but upload {id} of {repo} has received {received}")]
    UploadRange { repo: RepoName, id: String, at: u64, received: u64 },
    #[error("upload {0} is being written to by another request")]
    UploadBusy(String),
    #[error("{0} uploads are open: finish some first")]
    TooManyUploads(usize),
    #[error("the content has digest {actual}, not {expected}")]
    DigestMismatch { expected: Digest, actual: Digest },
    /// A tree that has other bytes in the place of these.
    #[error("what a source has as {expected} has digest {actual}")]
    Forged { expected: Digest, actual: Digest },
    #[error("what a source has as manifest {digest} is none")]
    NoManifest {
        digest: Digest,
        #[source]
        source: ManifestError,
    },
    #[error("the request body broke off")]
    Body(#[source] BodyError),
    #[error("manifest is not valid: {0}")]
    ManifestInvalid(String),
    #[error("manifest has more than {0} bytes")]
    ManifestTooLarge(usize),
    #[error("manifest names what is not in {repo}: {}", list(.digests))]
    Missing { repo: RepoName, digests: Vec<Digest> },
    /// Nobody could be asked, or who has it did not deliver: unlike absence.
    #[error("{what} could not be fetched")]
    Fetch {
        what: String,
        #[source]
        source: DagError,
    },
    /// A followed name that nobody has told the root of yet: what lies below is unknown, not absent.
    #[error("ipns name {0} is not resolved yet: is one of its readers, or its author, among the peers?")]
    Unresolved(IpnsName),
    /// A tree that is not what distribution would have written.
    #[error("{path} {what}")]
    Tree { path: String, what: &'static str },
    #[error("the push could not be committed")]
    Commit(#[source] Arc<DagError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Dag(#[from] DagError),
    #[error("the daemon is shutting down")]
    Closed,
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(", ")
}

/// An error with its causes, on one line, for logs and status.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What a request body broke off with.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
