//! Images anywhere on IPFS, for repositories that say so themselves: `ipfs/<cid>/<path>`, `ipns/<name>/<path>`,
//! `<name>.eth/<path>`. What lies there is an OCI image layout, or the tree of a registry. Read only.
//!
//! Nothing is published for it and no key is needed. What is fetched goes into the common store, where it stays until
//! space is freed, unless it lies below a layout that is kept ([`kept`]). A look-up has a budget: what nobody delivers
//! within it is a failure, never "not there".

mod add;
pub(super) mod held;
pub(super) mod kept;
mod layouts;
mod names;

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use moka::sync::Cache;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::{Asked, Blob, Inner, Manifest, MirrorError, Origin, Page, Referrers, Served};
use crate::ipfs::Ipfs;
use crate::ipld::ipns::{IpnsError, IpnsName};
use crate::ipld::path::join;
use crate::ipld::{Pointer, TreeName, parse_cid};
use crate::naming::Naming;
use crate::oci::anywhere::{Anywhere, Namespace, is_ens};
use crate::oci::layout_names::LayoutNames;
use crate::oci::{Digest, Host, Reference, RepoName, image_layout, storage};
use crate::store::{State, StoreError};

pub use add::LayoutWriter;
use kept::Kept;
pub use kept::KeptLayout;
use names::{Names, Start};

/// What one look-up may take: resolving the name, walking the directories, reading the manifest.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a first peer is waited for: right after a start the connections are being made. And between two looks.
pub(super) const FIRST_PEER_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PEER_INTERVAL: Duration = Duration::from_millis(200);
/// Look-ups at once; further ones wait, within their budget. Few enough that CIDs which nobody has leave room for other
/// fetches of blocks.
const LOOKUPS_MAX: usize = 256;
/// Memory for what layouts name, in bytes.
const NAMES_BYTES_MAX: u64 = 16 << 20;
/// Text that is as long as this, and of letters and digits alone, is meant to be a CID or the name of a key.
const ID_CHARS_MIN: usize = 46;

/// What is known of images elsewhere.
pub(super) struct Elsewhere {
    names: Names,
    has_ens: bool,
    /// What the layout in a directory names, by the CID of its `index.json` and where it lies: nested indexes lie beside.
    layouts: Cache<(Cid, Cid, String), Arc<LayoutNames>>,
    slots: Semaphore,
    pub(super) kept: Kept,
    /// A layout came or went.
    pub(super) changed: Arc<Notify>,
}

/// What a repository name points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    start: Start,
    below: String,
}

/// What was found at an address.
enum Place {
    /// An image layout: the root of its DAG, the path of its directory there, the entry of its index, and the part of the
    /// address that says which of its repositories is meant.
    Layout { root: Cid, directory: String, index: Cid, repository: String },
    /// The tree of a registry, with a repository in it.
    Registry { root: Cid, repo: RepoName },
}

impl Elsewhere {
    pub(super) async fn open(ipfs: Arc<dyn Ipfs>, naming: Naming, state: State) -> Result<Self, StoreError> {
        let weigh = |_: &(Cid, Cid, String), names: &Arc<LayoutNames>| {
            u32::try_from(names.memory_bytes() + 256).unwrap_or(u32::MAX)
        };
        Ok(Self {
            has_ens: naming.has_ens(),
            names: Names::new(ipfs, naming),
            layouts: Cache::builder().max_capacity(NAMES_BYTES_MAX).weigher(weigh).build(),
            slots: Semaphore::new(LOOKUPS_MAX),
            kept: Kept::open(state).await?,
            changed: Arc::default(),
        })
    }

    /// `None`: the repository is one like any other. A registry that is named decides, unless it cannot have such a
    /// repository: `.eth` is no domain of a registry, and a bare image name stands for one of Docker Hub, where nothing is
    /// called like a CID.
    fn address(&self, repo: &RepoName, registry: Option<&Host>) -> Result<Option<Address>, MirrorError> {
        if let Some(host) = registry.filter(|host| self.has_ens && is_ens(host.as_str())) {
            let start = Start::Ens(host.as_str().to_owned());
            return Ok(Some(Address { start, below: repo.as_str().to_owned() }));
        }
        let is_hub = registry.is_some_and(|host| host.as_str() == "docker.io");
        let Some(Anywhere { namespace, name, below }) = Anywhere::of(repo) else { return Ok(None) };
        if registry.is_some() && !is_hub {
            return Ok(None);
        }
        let start = match namespace {
            Namespace::Ipfs => content(repo, name)?.map(Start::Pointer),
            Namespace::Ipns => named(repo, name)?.map(Start::Pointer),
            Namespace::Ens => self.has_ens.then(|| Start::Ens(name.to_owned())),
        };
        let is_id = matches!(start, Some(Start::Pointer(Pointer::Content(_) | Pointer::Key(_))));
        let start = start.filter(|_| is_id || !is_hub);
        Ok(start.map(|start| Address { start, below: below.to_owned() }))
    }
}

fn content(repo: &RepoName, name: &str) -> Result<Option<Pointer>, MirrorError> {
    match parse_cid(name) {
        Some(cid) if name.parse::<IpnsName>().is_ok() => {
            Err(misaddressed(repo, format!("{cid} names a key, not content: ask for ipns/{name}")))
        }
        Some(cid) => Ok(Some(Pointer::Content(cid))),
        None if is_id(name) => Err(misaddressed(repo, format!("{name} is no CID"))),
        None => Ok(None),
    }
}

fn named(repo: &RepoName, name: &str) -> Result<Option<Pointer>, MirrorError> {
    match Pointer::named(name) {
        Ok(pointer) => Ok(Some(pointer)),
        Err(_) if matches!(name.parse::<IpnsName>(), Err(IpnsError::NameOfContent { .. })) => {
            Err(misaddressed(repo, format!("{name} names content, not a key: ask for ipfs/{name}")))
        }
        Err(error) if is_id(name) => Err(misaddressed(repo, error.to_string())),
        Err(_) => Ok(None),
    }
}

fn is_id(name: &str) -> bool {
    name.len() >= ID_CHARS_MIN && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn misaddressed(repo: &RepoName, reason: String) -> MirrorError {
    MirrorError::Misaddressed { repo: repo.clone(), reason }
}

impl Inner {
    /// The address that a client means, if it means one.
    pub(super) fn address(&self, asked: &Asked<'_>) -> Result<Option<Address>, MirrorError> {
        let registry = asked.registry.filter(|_| !asked.is_ours);
        self.elsewhere.as_ref().map_or(Ok(None), |elsewhere| elsewhere.address(asked.repo, registry))
    }

    /// The same where no registry can be named.
    pub(super) fn address_of(&self, repo: &RepoName) -> Result<Option<Address>, MirrorError> {
        self.elsewhere.as_ref().map_or(Ok(None), |elsewhere| elsewhere.address(repo, None))
    }

    /// Nobody can push to an address.
    pub(super) fn refuse_elsewhere(&self, repo: &RepoName) -> Result<(), MirrorError> {
        match self.address_of(repo)? {
            Some(_) => Err(MirrorError::Elsewhere(repo.clone())),
            None => Ok(()),
        }
    }

    pub(super) async fn manifest_elsewhere(
        &self,
        address: &Address,
        reference: &Reference,
    ) -> Result<Option<Served>, MirrorError> {
        let found = self.in_budget(address, async {
            let Some(place) = self.place_of(address).await? else { return Ok(None) };
            Ok(self.manifest_in(&place, reference).await?.map(|manifest| (manifest, place.origin())))
        });
        Ok(found.await?.map(|(manifest, origin)| Served { manifest, origin, age: None }))
    }

    async fn manifest_in(
        &self,
        place: &Place,
        reference: &Reference,
    ) -> Result<Option<Manifest>, MirrorError> {
        let (root, repo) = match place {
            Place::Layout { .. } => return self.manifest_in_layout(place, reference).await,
            Place::Registry { root, repo } => (root, repo),
        };
        match self.manifest_link(root, repo, reference).await? {
            Some(digest) => self.manifest_at(root, &digest).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn blob_elsewhere(
        &self,
        address: &Address,
        digest: &Digest,
    ) -> Result<Option<(Blob, Origin)>, MirrorError> {
        let found = self.in_budget(address, async {
            let Some(place) = self.place_of(address).await? else { return Ok(None) };
            let (root, path) = match &place {
                Place::Layout { root, directory, .. } => (root, join(directory, &image_layout::blob(digest))),
                Place::Registry { root, repo } => match self.has_blob(root, repo, digest).await? {
                    true => (root, storage::blob_data(digest)),
                    false => return Ok(None),
                },
            };
            let Some(entry) = self.tree.lookup(root, &path).await? else { return Ok(None) };
            let stored = self.blob_at(*digest, entry, *root).await?;
            Ok(Some((stored.of_root(*root).into(), place.origin())))
        });
        found.await
    }

    pub(super) async fn tags_elsewhere(
        &self,
        address: &Address,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Page>, MirrorError> {
        self.in_budget(address, async {
            match self.place_of(address).await? {
                None => Ok(None),
                Some(Place::Registry { root, repo }) => Ok(self.tags_at(&root, &repo, last, limit).await?),
                Some(place @ Place::Layout { .. }) => self.tags_in_layout(&place, last, limit).await,
            }
        })
        .await
    }

    /// A layout has no place for referrers: those among the manifests that its index names count.
    pub(super) async fn referrers_elsewhere(
        &self,
        address: &Address,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Referrers, MirrorError> {
        let found = self.in_budget(address, async {
            match self.place_of(address).await? {
                None => Ok(None),
                Some(Place::Registry { root, repo }) => {
                    self.referrers_at(&root, &repo, subject, artifact_type, last, limit).await.map(Some)
                }
                Some(place @ Place::Layout { .. }) => {
                    let all = self.referrers_in_layout(&place, subject).await?;
                    Ok(Some(Referrers::of(all, artifact_type, last, limit)))
                }
            }
        });
        Ok(found.await?.unwrap_or_default())
    }

    /// Boxed, since it is larger than a request's future should be.
    async fn in_budget<T>(
        &self,
        address: &Address,
        look_up: impl Future<Output = Result<Option<T>, MirrorError>>,
    ) -> Result<Option<T>, MirrorError> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(None) };
        let in_turn = async {
            let _slot = elsewhere.slots.acquire().await.map_err(|_| MirrorError::Closed)?;
            look_up.await
        };
        match timeout(LOOKUP_TIMEOUT, Box::pin(in_turn)).await {
            Ok(found) => found,
            Err(_) => Err(MirrorError::Slow { what: address.to_string(), waited: LOOKUP_TIMEOUT }),
        }
    }

    /// Walks from the start of an address as far as there are directories. The deepest image layout or registry on the way
    /// is meant; what of the address is behind it names a repository there.
    async fn place_of(&self, address: &Address) -> Result<Option<Place>, MirrorError> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(None) };
        let at_hand = |name: &IpnsName| self.root_at_hand(name);
        let (root, base) = elsewhere.names.resolve(&address.start, &at_hand).await?;
        self.await_root(&root).await?;
        let path = join(&base, &address.below);
        let ends = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at)).chain([path.len()]);
        let ends = ends.skip(usize::from(path.is_empty())).filter(|end| *end >= base.len());
        let mut found = None;
        for end in ends {
            let (directory, rest) = path.split_at(end);
            let rest = rest.trim_start_matches('/');
            let Some(here) = self.tree.lookup(&root, directory).await? else { break };
            if let Ok(repo) = rest.parse::<RepoName>()
                && self.tree.lookup(&root, &join(directory, storage::REPOSITORIES)).await?.is_some()
            {
                found = Some(Place::Registry { root: here.cid, repo });
                continue;
            }
            if let Some(index) = self.tree.lookup(&root, &join(directory, image_layout::INDEX)).await? {
                let (directory, repository) = (directory.to_owned(), rest.to_owned());
                found = Some(Place::Layout { root, directory, index: index.cid, repository });
            }
        }
        Ok(found)
    }

    /// Fetches the first block.
    async fn await_root(&self, root: &Cid) -> Result<(), MirrorError> {
        let deadline = Instant::now() + FIRST_PEER_TIMEOUT;
        loop {
            match self.tree.lookup(root, "").await {
                Err(error) if error.is_no_peers() && Instant::now() < deadline => {
                    sleep(FIRST_PEER_INTERVAL).await;
                }
                fetched => return Ok(fetched.map(drop)?),
            }
        }
    }

    /// The root of a name that is kept fresh here anyhow.
    fn root_at_hand(&self, name: &IpnsName) -> Option<Cid> {
        let own = self
            .own
            .as_ref()
            .filter(|own| own.publisher.as_ref().is_some_and(|publisher| publisher.status().name == *name));
        if let Some(own) = own {
            return Some(own.commits.root());
        }
        let followed = self.follows.iter().find(|follow| follow.name == TreeName::Key(*name))?;
        followed.roots_at_hand().first().copied()
    }
}

impl Place {
    fn origin(&self) -> Origin {
        match self {
            Self::Layout { root, .. } | Self::Registry { root, .. } => Origin::Ipfs(*root),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.below.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.start, self.below)
    }
}
