//! Where a domain leads that is followed: to a name, or to a tree.

use super::trail::Start;
use crate::ipld::{Domain, IpfsPath, Pointer};
use crate::naming::{Naming, NamingError};

/// Why a domain leads to no tree.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Naming(#[from] NamingError),
    #[error(
        "{domain} has no dnslink: its owner has to set the TXT record `dnslink=/ipns/<name>` of _dnslink.{domain}"
    )]
    Absent { domain: Domain },
    #[error(
        "the dnslink of {domain} leads to {path}: the root of a published tree is expected, not what lies below one"
    )]
    Below { domain: Domain, path: IpfsPath },
}

/// Asks the name servers. May be dropped midway.
pub(super) async fn start_of(naming: &Naming, domain: &Domain) -> Result<Start, LinkError> {
    let path = naming.dnslink_to_the_end(domain).await?;
    let path = path.ok_or_else(|| LinkError::Absent { domain: domain.clone() })?;
    match path.pointer {
        Pointer::Key(name) if path.below.is_empty() => Ok(Start::Name(name)),
        Pointer::Content(root) if path.below.is_empty() => Ok(Start::Root(root)),
        _ => Err(LinkError::Below { domain: domain.clone(), path }),
    }
}
