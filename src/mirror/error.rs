//! What goes wrong with a pull or a push.

use std::sync::Arc;
use std::time::Duration;

use super::{Origin, PublishError};
use crate::dag::DagError;
use crate::ipfs::IpfsError;
use crate::ipld::TreeName;
use crate::naming::NamingError;
use crate::oci::image_layout::LayoutError;
use crate::oci::manifest::ManifestError;
use crate::oci::name::NameError;
use crate::oci::platform::PlatformError;
use crate::oci::{Digest, RepoName, Repository, Tag};
use crate::store::StoreError;
use crate::upstream::UpstreamError;

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
    Unresolved(TreeName),
    /// A tree that is not what distribution would have written.
    #[error("{path} {what}")]
    Tree { path: String, what: &'static str },
    #[error("the push could not be committed")]
    Commit(#[source] Arc<DagError>),
    #[error("{0} blobs are being pulled through: try again when some have come")]
    TooManyFills(usize),
    #[error("{0} images are pinned: unpin some first")]
    TooManyPins(usize),
    #[error("{image} is kept by a pin: run `shoal unpin {pin}` first, or evict it with --force")]
    Pinned { image: String, pin: String },
    #[error("space was not freed: {0}")]
    NotFreed(String),
    /// The registry did not deliver.
    #[error(transparent)]
    Upstream(Box<UpstreamError>),
    /// The registry did not deliver, and peers are just asking it themselves, perhaps with better credentials.
    #[error("blob {digest} was not given to us; peers are asking for it")]
    Awaited {
        digest: Digest,
        #[source]
        source: Box<MirrorError>,
    },
    /// A peer of the mesh did not deliver.
    #[error(transparent)]
    Peer(IpfsError),
    /// The failure of a fill or look-up that several waited for.
    #[error(transparent)]
    Fill(Arc<MirrorError>),
    #[error("blob {digest} broke off while it was pulled through: begin anew")]
    FillBroken {
        digest: Digest,
        #[source]
        source: Arc<MirrorError>,
    },
    /// A fill that was gone on with again and again.
    #[error("blob {digest} was given up at {received_bytes} of {size_bytes} bytes after {tries} tries")]
    GivenUp {
        digest: Digest,
        received_bytes: u64,
        size_bytes: u64,
        tries: u32,
        #[source]
        source: Box<MirrorError>,
    },
    /// A manifest names what its registry does not have.
    #[error("{repository} has no {digest}, though a manifest names it")]
    NotUpstream { repository: Repository, digest: Digest },
    #[error("blob {digest} has {known} bytes, but {stated} come")]
    WrongSize { digest: Digest, known: u64, stated: u64 },
    #[error("blob {digest} ended after {received} of {known} bytes")]
    Short { digest: Digest, known: u64, received: u64 },
    #[error("{repository} gave no answer within {} s", .waited.as_secs())]
    Late { repository: Repository, waited: Duration },
    #[error("{0} is of no registry that is mirrored: name it in mirror.registries")]
    NotMirrored(RepoName),
    #[error("{0} does not exist")]
    NoImage(String),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Who asks has no way around us, so that half an image would be worse than none.
    #[error("{digest} of the image does not come")]
    Unfinishable {
        digest: Digest,
        #[source]
        source: Box<MirrorError>,
    },
    /// A repository whose name says that it lies elsewhere on IPFS.
    #[error(
        "{0} lies elsewhere on ipfs, where nobody can push or delete: push to a repository of another name"
    )]
    Elsewhere(RepoName),
    #[error("{repo} is no place on ipfs: {reason}")]
    Misaddressed { repo: RepoName, reason: String },
    /// Who keeps the name says that it leads to nothing.
    #[error("{0} has no link to a place on ipfs")]
    Unlinked(String),
    /// Nobody said what the name leads to: unlike absence.
    #[error("{what} is not resolved")]
    Naming {
        what: String,
        #[source]
        source: NamingError,
    },
    #[error("nothing was learned of {what} within {} s: it may be that no peer has it", .waited.as_secs())]
    Slow { what: String, waited: Duration },
    #[error("the index of the image layout at {at} cannot be used")]
    Layout {
        at: String,
        #[source]
        source: LayoutError,
    },
    #[error(
        "{at} has several images with tag {tag}: name the repository of one behind it, as in …/library/app"
    )]
    SeveralImages { tag: Tag, at: String },
    #[error("the folder is no image layout that can be kept: {0}")]
    NoLayout(String),
    #[error("{0} image layouts are kept: remove some first")]
    TooManyLayouts(usize),
    #[error("no other writer is in the way: there is nothing to adopt")]
    NoOtherWriter,
    #[error(
        "the other writer's record points to {value}, not to a tree: run `shoal name overwrite`, or set \
         storage.ipfs.writeipnskey to another key"
    )]
    NotAdoptable { value: String },
    #[error("the key is not rotated")]
    Rotate(#[source] PublishError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Dag(#[from] DagError),
    #[error("the daemon is shutting down")]
    Closed,
}

impl From<UpstreamError> for MirrorError {
    fn from(error: UpstreamError) -> Self {
        Self::Upstream(Box::new(error))
    }
}

impl MirrorError {
    /// Whether a mirrored registry is the cause, or what it sent.
    pub fn is_of_upstream(&self) -> bool {
        match self {
            Self::Fill(error) => matches!(**error, Self::Forged { .. }) || error.is_of_upstream(),
            Self::Upstream(_)
            | Self::Peer(_)
            | Self::Awaited { .. }
            | Self::NotUpstream { .. }
            | Self::Late { .. }
            | Self::TooManyFills(_)
            | Self::WrongSize { .. }
            | Self::Short { .. }
            | Self::ManifestInvalid(_)
            | Self::Unfinishable { .. } => true,
            Self::GivenUp { source, .. } => source.is_of_upstream(),
            _ => false,
        }
    }

    /// Whether a registry refused us, or would: others may have better credentials.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Upstream(error) => error.is_refusal(),
            Self::Fill(error) => error.is_refusal(),
            Self::Awaited { source, .. } => source.is_refusal(),
            _ => false,
        }
    }

    /// Whether another try is not worth the wait: this one took all its time, or the next would not be made.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Self::Upstream(error) if error.is_timeout() || error.is_rest())
    }

    /// Whether another try may go better.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Upstream(error) => error.is_transient(),
            Self::Fill(error) => error.is_transient(),
            Self::Short { .. } | Self::Late { .. } | Self::Peer(_) => true,
            _ => false,
        }
    }
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
