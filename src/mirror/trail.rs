//! From a followed name to its tree: a name that was given up leads on to another one (specification of the IPNS record,
//! "Value"), within a bound and never in a circle. Pure.

use cid::Cid;

use crate::ipld::TreeName;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::store::{Followed, MovedRecord};

/// Names from the one that is followed to its tree, that one included.
const NAMES_MAX: usize = 8;

/// Where a trail begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// At a domain of which it is not known where it leads.
    Unlinked,
    Name(IpnsName),
    /// At a tree to which a domain leads by itself.
    Root(Cid),
}

impl From<&TreeName> for Start {
    fn from(name: &TreeName) -> Self {
        match name {
            TreeName::Key(name) => Self::Name(*name),
            TreeName::Domain(_) => Self::Unlinked,
        }
    }
}

/// The newest record of a name, and of each name that it leads on to.
#[derive(Clone, Debug)]
pub(super) struct Trail {
    start: Start,
    records: Vec<IpnsRecord>,
}

/// Why a trail has no tree at its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TrailError {
    #[error("it is not known yet where the domain leads")]
    Unlinked,
    #[error("no record of {0} is known yet")]
    Unknown(IpnsName),
    #[error("the record points to {0}, not to /ipfs/<cid>")]
    NoTree(String),
    #[error("the name leads in a circle, back to {0}")]
    Circle(IpnsName),
    #[error("the name leads on over more than {NAMES_MAX} names")]
    TooLong,
}

impl Trail {
    pub(super) fn new(start: Start) -> Self {
        Self { start, records: Vec::new() }
    }

    /// The same from what is on disk, as far as it is usable.
    pub(super) fn load(of: &TreeName, row: &Followed) -> Self {
        let moved = row.moved.iter().map(|row| (row.name, row.record.as_slice()));
        let (start, first) = match of {
            TreeName::Key(name) => (Start::Name(*name), Some((*name, row.record.as_slice()))),
            TreeName::Domain(_) => {
                let of_name = row.moved.first().map(|row| Start::Name(row.name));
                (of_name.or(row.root.map(Start::Root)).unwrap_or(Start::Unlinked), None)
            }
        };
        let mut trail = Self::new(start);
        for (name, bytes) in first.into_iter().chain(moved) {
            match IpnsRecord::decode(&name, bytes) {
                Ok(record) => drop(trail.take(record)),
                Err(error) => {
                    tracing::warn!(ipns = %name, %error, "the record on disk is not usable");
                    break;
                }
            }
        }
        trail
    }

    /// The newest record of the followed name itself.
    pub(super) fn first(&self) -> Option<&IpnsRecord> {
        self.records.first()
    }

    /// The newest record of the last name that has one.
    pub(super) fn last(&self) -> Option<&IpnsRecord> {
        self.records.last()
    }

    /// All of them, in order.
    pub(super) fn records(&self) -> &[IpnsRecord] {
        &self.records
    }

    /// For the disk, with what is served. `None`: there is nothing to be kept.
    pub(super) fn row(&self, of: &TreeName, root: Option<Cid>) -> Option<Followed> {
        let row = |record: &IpnsRecord| MovedRecord { name: *record.name(), record: record.bytes().to_vec() };
        let (record, skipped) = match of {
            TreeName::Key(_) => (self.first()?.bytes().to_vec(), 1),
            TreeName::Domain(_) => (Vec::new(), 0),
        };
        let moved: Vec<MovedRecord> = self.records.iter().skip(skipped).map(row).collect();
        let is_something = !record.is_empty() || !moved.is_empty() || matches!(self.start, Start::Root(_));
        is_something.then_some(Followed { record, moved, root })
    }

    /// Begins elsewhere; what is known of the names on the way is forgotten. Whether that is news.
    pub(super) fn begin(&mut self, start: Start) -> bool {
        let is_news = self.start != start;
        if is_news {
            *self = Self::new(start);
        }
        is_news
    }

    /// The name at a place, if it is known which that is and may be asked for.
    pub(super) fn name_at(&self, at: usize) -> Option<IpnsName> {
        let Some(before) = at.checked_sub(1) else {
            return match self.start {
                Start::Name(name) => Some(name),
                Start::Unlinked | Start::Root(_) => None,
            };
        };
        let to = self.records.get(before)?.leads_to()?;
        (at < NAMES_MAX && !self.names().take(at).any(|name| name == to)).then_some(to)
    }

    /// The name that the followed one leads to, as far as that is known.
    pub(super) fn moved_to(&self) -> Option<IpnsName> {
        (1..=self.records.len()).rev().find_map(|at| self.name_at(at))
    }

    /// The name that has no record yet, and without which nothing is known.
    pub(super) fn missing(&self) -> Option<IpnsName> {
        self.name_at(self.records.len())
    }

    pub(super) fn has(&self, name: &IpnsName) -> bool {
        self.names().chain(self.missing()).any(|known| known == *name)
    }

    fn names(&self) -> impl Iterator<Item = IpnsName> {
        self.records.iter().map(|record| *record.name())
    }

    /// Takes a record of one of the names in, if it is better than what is known of it. What a name led to before does not
    /// count any more.
    pub(super) fn take(&mut self, record: IpnsRecord) -> bool {
        let at = self.names().position(|name| name == *record.name());
        match at {
            None if self.missing() == Some(*record.name()) => self.records.push(record),
            None => return false,
            Some(at) if !record.is_better_than(&self.records[at]) => return false,
            Some(at) => {
                if self.records[at].value() != record.value() {
                    self.records.truncate(at + 1);
                }
                self.records[at] = record;
            }
        }
        true
    }

    /// The root of the tree at the end.
    pub(super) fn root(&self) -> Result<Cid, TrailError> {
        let last = match (self.start, self.last()) {
            (Start::Root(root), _) => return Ok(root),
            (Start::Unlinked, _) => return Err(TrailError::Unlinked),
            (Start::Name(name), last) => last.ok_or(TrailError::Unknown(name))?,
        };
        if let Some(root) = last.root() {
            return Ok(root);
        }
        let to = last.leads_to().ok_or_else(|| TrailError::NoTree(last.value().to_owned()))?;
        Err(match self.missing() {
            Some(missing) => TrailError::Unknown(missing),
            None if self.names().any(|name| name == to) => TrailError::Circle(to),
            None => TrailError::TooLong,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::{SignedDuration, Timestamp};
    use libp2p::identity::Keypair;

    use super::*;

    fn keys(count: usize) -> Vec<Keypair> {
        (0..count).map(|_| Keypair::generate_ed25519()).collect()
    }

    fn name(key: &Keypair) -> IpnsName {
        IpnsName::from_peer_id(key.public().to_peer_id())
    }

    fn root() -> Cid {
        "bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra".parse().unwrap()
    }

    fn until() -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(24)
    }

    fn tree(key: &Keypair, sequence: u64) -> IpnsRecord {
        IpnsRecord::sign(key, &root(), sequence, until(), Duration::from_secs(60)).unwrap()
    }

    fn pointer(key: &Keypair, to: &Keypair, sequence: u64) -> IpnsRecord {
        IpnsRecord::sign_pointer(key, &name(to), sequence, until(), Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn a_name_that_was_given_up_leads_to_the_tree_of_the_next() {
        let keys = keys(3);
        let mut trail = Trail::new(Start::Name(name(&keys[0])));
        assert_eq!(trail.root(), Err(TrailError::Unknown(name(&keys[0]))));
        assert!(!trail.take(tree(&keys[1], 1)), "a name that is not on the trail");
        assert!(trail.take(tree(&keys[0], 1)));
        assert_eq!((trail.root(), trail.moved_to()), (Ok(root()), None));

        assert!(trail.take(pointer(&keys[0], &keys[1], 2)));
        assert_eq!(trail.root(), Err(TrailError::Unknown(name(&keys[1]))));
        assert!(trail.has(&name(&keys[1])) && !trail.has(&name(&keys[2])));
        assert!(trail.take(pointer(&keys[1], &keys[2], 7)) && trail.take(tree(&keys[2], 1)));
        assert_eq!((trail.root(), trail.moved_to()), (Ok(root()), Some(name(&keys[2]))));
        assert!(!trail.take(pointer(&keys[1], &keys[2], 6)), "an older one takes nobody back");

        let of = name(&keys[0]).into();
        let loaded = Trail::load(&of, &trail.row(&of, None).unwrap());
        assert_eq!((loaded.root(), loaded.moved_to()), (Ok(root()), Some(name(&keys[2]))));
        assert!(trail.take(tree(&keys[0], 3)), "its author came back");
        assert_eq!((trail.records().len(), trail.moved_to()), (1, None));
    }

    #[test]
    fn a_domain_leads_to_a_name_or_to_a_tree() {
        let (keys, of) = (keys(3), TreeName::Domain("registry.example".parse().unwrap()));
        let mut trail = Trail::new(Start::from(&of));
        assert_eq!((trail.root(), trail.missing()), (Err(TrailError::Unlinked), None));
        assert!(!trail.take(tree(&keys[0], 1)) && trail.row(&of, None).is_none());

        assert!(trail.begin(Start::Name(name(&keys[0]))));
        assert_eq!(trail.missing(), Some(name(&keys[0])));
        assert!(trail.take(pointer(&keys[0], &keys[1], 1)) && trail.take(tree(&keys[1], 1)));
        assert!(!trail.begin(Start::Name(name(&keys[0]))), "nothing is forgotten for what was known");
        let loaded = Trail::load(&of, &trail.row(&of, Some(root())).unwrap());
        assert_eq!((loaded.root(), loaded.name_at(0)), (Ok(root()), Some(name(&keys[0]))));

        assert!(trail.begin(Start::Name(name(&keys[2]))));
        assert_eq!(trail.root(), Err(TrailError::Unknown(name(&keys[2]))));
        assert!(trail.begin(Start::Root(root())));
        assert_eq!((trail.root(), trail.missing()), (Ok(root()), None));
        let loaded = Trail::load(&of, &trail.row(&of, Some(root())).unwrap());
        assert_eq!(loaded.root(), Ok(root()));
    }

    #[test]
    fn a_circle_and_a_trail_without_end_lead_nowhere() {
        let keys = keys(NAMES_MAX + 2);
        let mut trail = Trail::new(Start::Name(name(&keys[0])));
        assert!(trail.take(pointer(&keys[0], &keys[0], 1)));
        assert_eq!(trail.root(), Err(TrailError::Circle(name(&keys[0]))));
        assert!(trail.take(pointer(&keys[0], &keys[1], 2)) && trail.take(pointer(&keys[1], &keys[0], 1)));
        assert_eq!((trail.root(), trail.missing()), (Err(TrailError::Circle(name(&keys[0]))), None));

        let mut trail = Trail::new(Start::Name(name(&keys[0])));
        for pair in keys.windows(2) {
            trail.take(pointer(&pair[0], &pair[1], 1));
        }
        assert_eq!((trail.root(), trail.records().len()), (Err(TrailError::TooLong), NAMES_MAX));
        assert_eq!(trail.missing(), None, "nobody is asked for more");
    }
}
