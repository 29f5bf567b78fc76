//! A registry as an upstream of the mirror: it counts what it is asked, and fails as it is told to.

mod fault;
mod lists;
mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use multibase::Base;
use shoal::oci::Digest;
use shoal::tasks::Tasks;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::{IMAGE_MANIFEST, Image, PATIENCE};
pub use fault::{Fault, Rule};
use lists::Lists;
use wire::Answer;
pub use wire::Seen;

const CONNECTIONS_WAITING_MAX: u32 = 1024;
/// The path of its token server.
pub const TOKENS: &str = "/token";

/// A registry on a port of its own. It is gone when it goes out of scope.
pub struct Upstream {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Tasks,
    listening: Option<(CancellationToken, AbortHandle)>,
    /// Keeps the port from others while nobody listens there.
    _port: TcpSocket,
}

/// Who may pull.
#[derive(Clone, Default)]
pub enum Access {
    #[default]
    Everybody,
    Basic(&'static str, &'static str),
    /// By a token, which its token server gives for this name and password.
    Bearer(&'static str, &'static str),
}

#[derive(Default)]
struct Shared {
    content: Mutex<Content>,
    seen: Mutex<Vec<Seen>>,
    rules: Mutex<Vec<Rule>>,
    lists: Mutex<Lists>,
    access: Mutex<Access>,
    /// Tokens of an older generation have expired.
    token_generation: Mutex<u32>,
    released: watch::Sender<bool>,
}

#[derive(Default)]
struct Content {
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), Digest>,
    blobs: HashMap<Digest, Bytes>,
    /// Descriptors by repository and subject.
    referrers: HashMap<(String, Digest), Vec<serde_json::Value>>,
}

impl Upstream {
    #[allow(clippy::unused_async, reason = "who listens has to be within a runtime")]
    pub async fn start() -> Self {
        let port = super::bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let (address, tasks) = (port.local_addr().unwrap(), Tasks::new());
        let mut upstream = Self { address, shared: Arc::default(), tasks, listening: None, _port: port };
        upstream.restart();
        upstream
    }

    /// One that has this image already.
    pub async fn with(repo: &str, tag: &str, image: &Image) -> Self {
        let upstream = Self::start().await;
        upstream.push(repo, tag, image);
        upstream
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Has an image from now on; the tag is moved if it is there.
    pub fn push(&self, repo: &str, tag: &str, image: &Image) {
        let mut content = lock(&self.shared.content);
        for blob in image.blobs.iter().chain([&image.manifest]) {
            content.blobs.insert(Digest::sha256(blob), Bytes::from(blob.clone()));
        }
        let digest = Digest::sha256(&image.manifest);
        for reference in [tag.to_owned(), digest.to_string()] {
            content.manifests.insert((repo.to_owned(), reference), digest);
        }
    }

    /// Has one more blob.
    pub fn push_blob(&self, blob: &[u8]) -> Digest {
        let digest = Digest::sha256(blob);
        lock(&self.shared.content).blobs.insert(digest, Bytes::copy_from_slice(blob));
        digest
    }

    pub fn delete_tag(&self, repo: &str, tag: &str) {
        lock(&self.shared.content).manifests.remove(&(repo.to_owned(), tag.to_owned()));
    }

    /// Does something wrong from now on. Of several rules the first that is about a request counts.
    pub fn fails(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Does nothing wrong any more.
    pub fn heals(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Lets go of what is held, and holds nothing any more.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    pub fn admits(&self, access: Access) {
        *lock(&self.shared.access) = access;
    }

    /// No token that was given is good any more.
    pub fn expire_tokens(&self) {
        *lock(&self.shared.token_generation) += 1;
    }

    /// What it was asked, in order.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// How often it was asked by this method for paths with `below` in them.
    pub fn count(&self, method: &str, below: &str) -> usize {
        let seen = lock(&self.shared.seen);
        seen.iter().filter(|seen| seen.method == method && seen.path.contains(below)).count()
    }

    /// Forgets what it was asked.
    pub fn forget(&self) {
        lock(&self.shared.seen).clear();
    }

    /// Waits until it was asked so often.
    pub async fn is_asked(&self, method: &str, below: &str, times: usize) {
        let begun = Instant::now();
        while self.count(method, below) < times {
            assert!(begun.elapsed() < PATIENCE, "not asked {times} times for {below}: {:?}", self.seen());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Closes its port and its connections.
    pub async fn stop(&mut self) {
        let Some((stop, listener)) = self.listening.take() else { return };
        stop.cancel();
        listener.abort();
        let begun = Instant::now();
        while !self.tasks.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "the upstream does not stop");
            tokio::task::yield_now().await;
        }
    }

    /// Listens again, on the same port.
    pub fn restart(&mut self) {
        let listener = super::bound(self.address).listen(CONNECTIONS_WAITING_MAX).unwrap();
        self.listen(listener);
    }

    fn listen(&mut self, listener: TcpListener) {
        let (stop, shared, tasks) = (CancellationToken::new(), self.shared.clone(), self.tasks.clone());
        let stopping = stop.clone();
        let accepting = self.tasks.spawn_short("upstream", |_| async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, stopping) = (shared.clone(), stopping.clone());
                tasks.spawn_short("upstream connection", |_| async move {
                    stopping.run_until_cancelled(shared.serve(stream)).await;
                });
            }
        });
        self.listening = Some((stop, accepting));
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some((stop, listener)) = self.listening.take() {
            stop.cancel();
            listener.abort();
        }
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        // Small writes are to leave at once: tests wait for them.
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(stream);
        let mut released = self.released.subscribe();
        while let Some(seen) = Seen::read(&mut stream).await {
            let fault = lock(&self.rules).iter_mut().find_map(|rule| rule.strikes(&seen.method, &seen.path));
            let answer = self.answer(&seen, fault.as_ref());
            let head_only = seen.method == "HEAD";
            lock(&self.seen).push(seen);
            if !answer.send(stream.get_mut(), head_only, fault.as_ref(), &mut released).await {
                return;
            }
        }
    }

    fn answer(&self, seen: &Seen, fault: Option<&Fault>) -> Answer {
        match fault {
            Some(Fault::Status(status, lines)) => {
                let lines = lines.lines().filter_map(|line| line.split_once(": "));
                let headers = lines.map(|(name, value)| (name, value.to_owned())).collect();
                return Answer { status: *status, headers, body: Bytes::new() };
            }
            Some(Fault::RedirectToItself) => {
                return Answer { headers: vec![("location", seen.path.clone())], ..Answer::of(307) };
            }
            _ => (),
        }
        if seen.path == TOKENS {
            return self.token(seen);
        }
        if let Some(challenge) = self.challenge(seen) {
            return Answer { headers: vec![("www-authenticate", challenge)], ..Answer::of(401) };
        }
        if let Some(list) = lock(&self.content).list(seen, &lock(&self.lists)) {
            return list;
        }
        let range = seen.header("range").filter(|_| !matches!(fault, Some(Fault::IgnoresRanges)));
        let wrong_at = match fault {
            Some(Fault::WrongByteAt(at)) => Some(*at),
            _ => None,
        };
        self.content(&seen.path, range, wrong_at).unwrap_or(Answer::of(404))
    }

    /// `None`: there is no such thing here.
    fn content(&self, path: &str, range: Option<&str>, wrong_at: Option<usize>) -> Option<Answer> {
        let path = path.strip_prefix("/v2/")?;
        if path.is_empty() {
            return Some(Answer::of(200));
        }
        let content = lock(&self.content);
        let (rest, last) = path.rsplit_once('/')?;
        let (repo, kind) = rest.rsplit_once('/')?;
        let (digest, range, media_type) = match kind {
            "manifests" => {
                let digest = *content.manifests.get(&(repo.to_owned(), last.to_owned()))?;
                (digest, None, IMAGE_MANIFEST)
            }
            "blobs" => (last.parse().ok()?, range, "application/octet-stream"),
            _ => return None,
        };
        let mut whole = content.blobs.get(&digest)?.clone();
        if let Some(at) = wrong_at {
            let mut changed = whole.to_vec();
            changed[at] ^= 1;
            whole = changed.into();
        }
        let mut answer = Answer::part(whole, range);
        answer.headers.push(("content-type", media_type.to_owned()));
        answer.headers.push(("docker-content-digest", digest.to_string()));
        Some(answer)
    }

    /// What is asked of who does not show what he must; `None`: he may pull.
    fn challenge(&self, seen: &Seen) -> Option<String> {
        let (expected, challenge) = match *lock(&self.access) {
            Access::Everybody => return None,
            Access::Basic(user, password) => (basic(user, password), "Basic realm=\"test\"".to_owned()),
            Access::Bearer(..) => {
                let realm = format!("http://{}{TOKENS}", seen.header("host").unwrap_or_default());
                let repo = seen.path.trim_start_matches("/v2/").rsplitn(3, '/').nth(2).unwrap_or_default();
                (
                    format!("Bearer {}", self.current_token()),
                    format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:{repo}:pull\""),
                )
            }
        };
        (seen.header("authorization") != Some(&expected)).then_some(challenge)
    }

    fn current_token(&self) -> String {
        format!("token-{}", lock(&self.token_generation))
    }

    fn token(&self, seen: &Seen) -> Answer {
        let Access::Bearer(user, password) = *lock(&self.access) else { return Answer::of(404) };
        if seen.header("authorization") != Some(&basic(user, password)) {
            return Answer::of(401);
        }
        let body = serde_json::json!({"token": self.current_token(), "expires_in": 300}).to_string();
        let headers = vec![("content-type", "application/json".to_owned())];
        Answer { status: 200, headers, body: body.into() }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", Base::Base64Pad.encode(format!("{user}:{password}")))
}

/// A test that failed elsewhere leaves what was written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
