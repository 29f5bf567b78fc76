//! Names and passwords against an htpasswd file, which is read again when it changed.
//!
//! A hash takes tens of milliseconds on purpose. So what was proven once is remembered, by a keyed digest of user, password
//! and the line of the file; and what is wrong costs its sender time, not us.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::htpasswd::Table;
use super::{AuthError, read_file};

/// A change of the file counts after this time at the latest.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const VERIFICATIONS_MAX: usize = 4;
const VERIFICATION_WAIT_MAX: Duration = Duration::from_secs(10);
const PROVEN_MAX: u64 = 4096;
const PROVEN_TTL: Duration = Duration::from_secs(600);

/// The users of one file.
pub(super) struct Passwords {
    path: PathBuf,
    loaded: Mutex<Loaded>,
    /// Of this process alone, so that the digests below say nothing to anybody else.
    key: [u8; 32],
    proven: Cache<[u8; 32], ()>,
    verifications: Arc<Semaphore>,
    failures: Failures,
}

struct Loaded {
    table: Arc<Table>,
    /// Of the file as it was last looked at, also if it could not be read then.
    stamp: Option<Stamp>,
    checked_at: Instant,
}

/// Tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    size_bytes: u64,
}

/// More passwords are waiting to be verified than can be.
#[derive(Debug)]
pub(super) struct Busy;

impl Passwords {
    /// Reads the file. Blocks.
    pub(super) fn open(path: &Path) -> Result<Self, AuthError> {
        let (table, stamp) = read(path)?;
        if table.len() == 0 {
            tracing::warn!(path = %path.display(), "the htpasswd file has no users: nobody can log in");
        }
        let mut key = [0; 32];
        for half in key.chunks_mut(16) {
            half.copy_from_slice(Uuid::new_v4().as_bytes());
        }
        Ok(Self {
            path: path.to_owned(),
            loaded: Mutex::new(Loaded {
                table: Arc::new(table),
                stamp: Some(stamp),
                checked_at: Instant::now(),
            }),
            key,
            proven: Cache::builder().max_capacity(PROVEN_MAX).time_to_live(PROVEN_TTL).build(),
            verifications: Arc::new(Semaphore::new(VERIFICATIONS_MAX)),
            failures: Failures::new(),
        })
    }

    /// Whether this is the password of this user. May be dropped at any time.
    pub(super) async fn verify(
        &self,
        user: &str,
        password: Zeroizing<String>,
        address: Option<IpAddr>,
    ) -> Result<bool, Busy> {
        let table = self.table().await;
        let proof = table.hash(user).map(|hash| self.proof(user, hash, &password));
        if proof.is_some_and(|proof| self.proven.contains_key(&proof)) {
            return Ok(true);
        }
        if !self.failures.pause(address).await {
            return Ok(false);
        }
        let slot = tokio::time::timeout(VERIFICATION_WAIT_MAX, self.verifications.clone().acquire_owned());
        let Ok(Ok(slot)) = slot.await else { return Err(Busy) };
        let hash = table.hash(user).unwrap_or_else(|| table.stand_in()).to_owned();
        let compared = tokio::task::spawn_blocking(move || {
            // The slot is held to the end, also if the client has left.
            let _slot = slot;
            bcrypt::verify(password.as_bytes(), &hash).unwrap_or(false)
        });
        let equal = compared.await.unwrap_or(false);
        match proof {
            Some(proof) if equal => {
                self.proven.insert(proof, ());
                Ok(true)
            }
            _ => {
                self.failures.count(address);
                Ok(false)
            }
        }
    }

    fn proof(&self, user: &str, hash: &str, password: &str) -> [u8; 32] {
        let mut hasher = Sha256::new_with_prefix(self.key);
        for part in [user, hash, password] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    /// The users as the file has them. A file that cannot be read any more changes nothing: that is logged once.
    async fn table(&self) -> Arc<Table> {
        let known = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if loaded.checked_at.elapsed() < CHECK_INTERVAL {
                return loaded.table.clone();
            }
            // The others go on with what is there.
            loaded.checked_at = Instant::now();
            loaded.stamp
        };
        let path = self.path.clone();
        let reread = move || {
            let now = std::fs::metadata(&path).ok().and_then(|found| Stamp::of(&found));
            (now != known).then(|| (now, read(&path)))
        };
        let changed = tokio::task::spawn_blocking(reread).await.unwrap_or_default();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        match changed {
            Some((_, Ok((table, stamp)))) => {
                tracing::info!(path = %self.path.display(), users = table.len(), "htpasswd file read again");
                loaded.table = Arc::new(table);
                loaded.stamp = Some(stamp);
            }
            Some((stamp, Err(error))) => {
                tracing::error!(%error, "the changed htpasswd file is not used: the users stay as they were");
                loaded.stamp = stamp;
            }
            None => (),
        }
        loaded.table.clone()
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Option<Self> {
        Some(Self { modified: metadata.modified().ok()?, size_bytes: metadata.len() })
    }
}

fn read(path: &Path) -> Result<(Table, Stamp), AuthError> {
    const KEY: &str = "auth.htpasswd.path";
    let wrong = |reason: String| AuthError::Content { key: KEY, path: path.to_owned(), reason };
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|source| AuthError::Read { key: KEY, path: path.to_owned(), source })?;
    // Taken before the content: what changes in between is read again.
    let stamp = Stamp::of(&metadata).ok_or_else(|| wrong("its time of change is unknown".to_owned()))?;
    let text = String::from_utf8(read_file(KEY, path)?).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
    let table =
        Table::parse(&text).map_err(|error| wrong(format!("line {}: {}", error.line, error.reason)))?;
    Ok((table, stamp))
}

/// Slows down who guesses. An address that has failed a few times waits before each further try; when too many wait
/// already, the try fails without being looked at. What was proven before is not concerned.
struct Failures {
    counts: Cache<IpAddr, Arc<AtomicU32>>,
    waiting: Semaphore,
}

impl Failures {
    const FREE_MAX: u32 = 5;
    const PAUSE: Duration = Duration::from_secs(2);
    const WAITING_MAX: usize = 16;
    const ADDRESSES_MAX: u64 = 16_384;
    /// From the first failure of an address.
    const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

    fn new() -> Self {
        let counts = Cache::builder().max_capacity(Self::ADDRESSES_MAX).time_to_live(Self::FORGOTTEN_AFTER);
        Self { counts: counts.build(), waiting: Semaphore::new(Self::WAITING_MAX) }
    }

    fn count(&self, address: Option<IpAddr>) {
        let count = self.counts.get_with(network(address), Arc::default);
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits if this address has to. `false`: it may not even wait.
    async fn pause(&self, address: Option<IpAddr>) -> bool {
        let failed = self.counts.get(&network(address)).map_or(0, |count| count.load(Ordering::Relaxed));
        if failed < Self::FREE_MAX {
            return true;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return false };
        tokio::time::sleep(Self::PAUSE).await;
        true
    }
}

/// Whom an address stands for: in IPv6 everybody has 2^64 of them.
fn network(address: Option<IpAddr>) -> IpAddr {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V6(address)) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        Some(address) => address,
        None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(user: &str, password: &str) -> String {
        format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    async fn verify(passwords: &Passwords, user: &str, password: &str) -> bool {
        passwords.verify(user, Zeroizing::new(password.to_owned()), None).await.unwrap()
    }

    #[tokio::test]
    async fn only_the_right_password_of_a_known_user_is_right() {
        let file = file(&line("alice", "secret"));
        let passwords = Passwords::open(file.path()).unwrap();
        for _ in 0..2 {
            assert!(verify(&passwords, "alice", "secret").await);
            assert!(!verify(&passwords, "alice", "Secret").await);
            assert!(!verify(&passwords, "bob", "secret").await);
        }
    }

    #[tokio::test]
    async fn a_changed_file_counts_and_a_broken_one_changes_nothing() {
        let file = file(&line("alice", "secret"));
        let passwords = Passwords::open(file.path()).unwrap();
        assert!(verify(&passwords, "alice", "secret").await);

        std::fs::write(file.path(), format!("{}{}", line("alice", "changed"), line("bob", "new"))).unwrap();
        passwords.loaded.lock().unwrap().checked_at -= CHECK_INTERVAL;
        assert!(verify(&passwords, "bob", "new").await);
        assert!(!verify(&passwords, "alice", "secret").await, "an old proof must not outlive its line");
        assert!(verify(&passwords, "alice", "changed").await);

        std::fs::write(file.path(), "broken").unwrap();
        passwords.loaded.lock().unwrap().checked_at -= CHECK_INTERVAL;
        assert!(verify(&passwords, "bob", "new").await);
        assert!(!verify(&passwords, "carol", "x").await);
    }

    #[test]
    fn a_bad_file_is_named_with_what_is_wrong() {
        let missing = Passwords::open(Path::new("/does/not/exist")).err().unwrap().to_string();
        assert_eq!(missing, "config key auth.htpasswd.path: cannot read /does/not/exist");
        let broken = file(&format!("{}alice:plain\n", line("bob", "x")));
        let error = Passwords::open(broken.path()).err().unwrap().to_string();
        assert!(error.contains("line 2: a bcrypt hash is expected"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_often_waits_and_nobody_else() {
        let failures = Failures::new();
        let (guesser, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
        for _ in 0..Failures::FREE_MAX {
            assert!(failures.pause(guesser).await);
            failures.count(guesser);
        }
        let begun = tokio::time::Instant::now();
        assert!(failures.pause(other).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(failures.pause(guesser).await);
        assert_eq!(begun.elapsed(), Failures::PAUSE);

        let tries = (0..=Failures::WAITING_MAX).map(|_| failures.pause(guesser));
        let allowed = futures::future::join_all(tries).await.into_iter().filter(|allowed| *allowed).count();
        assert_eq!(allowed, Failures::WAITING_MAX, "one more than may wait is turned away");
    }

    #[test]
    fn an_ipv6_network_is_one_guesser() {
        let network = |address: &str| network(Some(address.parse().unwrap()));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
