//! What daemons that trust each other do together: each byte comes from upstream once, whoever asks, and whoever dies.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::upstream::{Access, Fault, Rule, Upstream};
use common::{Daemon, Image, PATIENCE, daemon};
use futures::future::{join_all, select};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::pnet::{PnetConfig, PreSharedKey};
use rustix::process::Signal;
use shoal::oci::Digest;
use shoal::tasks::Tasks;
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

const REPO: &str = "library/app";
const PREFIXED: &str = "registry.example/library/app";

/// Waits until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Mirrors of `upstream` that trust each other; `more` gives each further keys, such as `share: no`.
async fn cluster(upstream: &Upstream, more: &[&str]) -> Vec<Daemon> {
    let start = |more: &&str| {
        let url = upstream.url();
        daemon()
            .mirror(&format!(
                "{{registries: {{registry.example: {{upstream: \"{url}\", {more}}}, another.example: {{}}}}}}"
            ))
            .start()
    };
    // Trust is by the peer id, which is made at the first start; addresses change with the second.
    let known: Vec<Daemon> = more.iter().map(start).collect();
    let nowhere =
        |daemon: &Daemon| format!("/ip4/127.0.0.1/tcp/9/p2p/{}", daemon.address.rsplit_once('/').unwrap().1);
    let mut addresses: Vec<String> = known.iter().map(nowhere).collect();
    let mut daemons = Vec::<Daemon>::new();
    for (n, daemon) in known.into_iter().enumerate() {
        let others = addresses.iter().enumerate().filter(|(m, _)| *m != n);
        let others: Vec<&str> = others.map(|(_, address)| address.as_str()).collect();
        let daemon = daemon.kill_and_restart_with("REGISTRY_P2P_PEERS", &format!("[{}]", others.join(", ")));
        addresses[n].clone_from(&daemon.address);
        daemons.push(daemon);
    }
    for daemon in &daemons {
        until("all hear each other", || hears(daemon, 0) == daemons.len() - 1).await;
    }
    daemons
}

/// How many others a daemon has heard of what they hold, behind so many bytes of its log.
fn hears(daemon: &Daemon, logged_bytes: usize) -> usize {
    let log = daemon.log();
    let lines = log[logged_bytes..].lines().filter(|line| line.contains("peer said what it holds"));
    lines.filter_map(|line| line.split("peer=").nth(1)).collect::<HashSet<_>>().len()
}

/// How long one looks for a blob before others, who wait for it, go upstream too.
const LOOKED_FOR: Duration = Duration::from_secs(5);

fn log_bytes(daemons: &[Daemon]) -> Vec<usize> {
    daemons.iter().map(|daemon| daemon.log().len()).collect()
}

/// Whether one of them was not answered by another in time, as far as their logs go on behind so many bytes.
fn is_anybody_late(daemons: &[Daemon], logged_bytes: &[usize]) -> bool {
    let signs = ["peer left out", "another takes over", "did not say what it holds", "do not give the blob"];
    let mut logs = daemons.iter().zip(logged_bytes).map(|(daemon, bytes)| daemon.log()[*bytes..].to_owned());
    logs.any(|log| signs.iter().any(|sign| log.contains(sign)))
}

async fn all_pull(daemons: &[Daemon], tag: &str, image: &Image) {
    for (pulled, daemon) in
        join_all(daemons.iter().map(|daemon| daemon.pull(PREFIXED, tag))).await.iter().zip(daemons)
    {
        assert_eq!(pulled.as_ref(), Ok(image), "{}", daemon.log());
    }
}

/// How often each blob of an image was fetched from upstream.
fn fetched(upstream: &Upstream, image: &Image) -> Vec<usize> {
    let blobs = image.blobs.iter();
    blobs.map(|blob| upstream.count("GET", &format!("/blobs/{}", Digest::sha256(blob)))).collect()
}

#[tokio::test]
async fn eight_that_pull_an_image_at_once_fetch_it_once() {
    let image = Image::new(600, &[12 << 20, 3000]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let daemons = cluster(&upstream, &[""; 8]).await;
    let (logged_bytes, begun) = (log_bytes(&daemons), Instant::now());
    all_pull(&daemons, "1", &image).await;
    let times = fetched(&upstream, &image);
    let asked = upstream.count("HEAD", "/manifests/");
    assert!((1..=asked).contains(&upstream.count("GET", "/manifests/")));
    // Eight daemons on few cores: one that is not answered within the budget goes by itself.
    if begun.elapsed() < LOOKED_FOR && !is_anybody_late(&daemons, &logged_bytes) {
        assert_eq!(times, [1, 1, 1]);
        assert!((1..=2).contains(&asked), "{asked}");
    } else {
        assert!(times.iter().chain([&asked]).all(|times| (1..8).contains(times)), "{times:?}, {asked}");
    }
}

#[tokio::test]
async fn a_tag_is_confirmed_once_for_all_within_its_time_to_live() {
    let image = Image::new(610, &[1000]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let daemons = cluster(&upstream, &["tagttl: 1h"; 4]).await;
    for _ in 0..2 {
        for daemon in &daemons {
            assert_eq!(daemon.pull(PREFIXED, "1").await.unwrap(), image);
        }
    }
    assert_eq!(upstream.count("HEAD", "/manifests/"), 1);
}

#[tokio::test]
async fn another_takes_over_from_the_byte_that_the_dead_fetcher_reached() {
    another_takes_over_when_the_fetcher_gets(Signal::KILL).await;
}

#[tokio::test]
async fn another_takes_over_from_a_fetcher_that_hangs() {
    another_takes_over_when_the_fetcher_gets(Signal::STOP).await;
}

async fn another_takes_over_when_the_fetcher_gets(signal: Signal) {
    let image = Image::new(620, &[20 << 20]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let layer = format!("/blobs/{}", Digest::sha256(&image.blobs[1]));
    upstream.fails(Rule::on(&layer, Fault::HoldAfter(6 << 20)).times(1));
    let daemons = cluster(&upstream, &["prefetch: false"; 4]).await;
    let fetches = |daemon: &Daemon| {
        let fills = daemon.status().fills;
        fills.iter().any(|fill| {
            fill.from.as_deref() == Some("upstream=registry.example") && fill.received_bytes > 5 << 20
        })
    };
    let tasks = Tasks::new();
    let pulls: Vec<_> = daemons
        .iter()
        .map(|daemon| {
            let asked = daemon.client.get(daemon.url(&format!("{PREFIXED}{layer}")));
            tasks.spawn("pull", |_| async move { asked.send().await?.bytes().await })
        })
        .collect();
    let mut dead = None;
    until("one of them fetches", || {
        dead = daemons.iter().position(fetches);
        dead.is_some()
    })
    .await;
    let pid = rustix::process::Pid::from_raw(daemons[dead.unwrap()].pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();

    for (n, pull) in pulls.into_iter().enumerate().filter(|(n, _)| Some(*n) != dead) {
        assert!(pull.await.unwrap().unwrap().unwrap() == image.blobs[1], "{}", daemons[n].log());
    }
    let ranges: Vec<Option<String>> = upstream
        .seen()
        .iter()
        .filter(|seen| seen.path.contains(&layer))
        .map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert_eq!(ranges[0], None);
    assert!(ranges[1].is_some() && ranges[1].as_deref() != Some("bytes=0-"), "{ranges:?}");
}

#[tokio::test]
async fn a_registry_that_takes_its_time_is_asked_by_one_all_the_same() {
    /// Longer than a peer may take to say that it is looking for the blob.
    const SLOW_BY: Duration = Duration::from_secs(2);
    let image = Image::new(625, &[3 << 20]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let layer = format!("/blobs/{}", Digest::sha256(&image.blobs[1]));
    upstream.fails(Rule::on(&layer, Fault::HoldHeader));
    let daemons = cluster(&upstream, &[""; 4]).await;
    let release = async {
        until("the layer is asked for", || upstream.count("GET", &layer) > 0).await;
        tokio::time::sleep(SLOW_BY).await;
        upstream.release();
    };
    tokio::join!(all_pull(&daemons, "1", &image), release);
    assert_eq!(fetched(&upstream, &image), [1, 1]);
}

#[tokio::test]
async fn who_has_credentials_is_waited_for_while_the_registry_takes_its_time() {
    /// Longer than a peer may be silent.
    const SLOW_BY: Duration = Duration::from_secs(3);
    let upstream = Upstream::start().await;
    upstream.admits(Access::Basic("user", "secret"));
    let daemons = cluster(&upstream, &["", "username: user, password: secret"]).await;
    // Of some it is the first in the succession, of others the one without credentials.
    let images: Vec<_> = (0..6).map(|n| (n.to_string(), Image::new(640 + n, &[2000]))).collect();
    images.iter().for_each(|(tag, image)| upstream.push(REPO, tag, image));
    upstream.fails(Rule::on("/manifests/", Fault::HoldHeader));
    let release = async {
        until("all tags are asked for", || upstream.count("HEAD", "/manifests/") >= images.len()).await;
        tokio::time::sleep(SLOW_BY).await;
        upstream.release();
    };
    let pulled = join_all(images.iter().map(|(tag, image)| all_pull(&daemons[..1], tag, image)));
    tokio::join!(pulled, release);
}

#[tokio::test]
async fn who_has_credentials_fetches_for_those_who_have_none() {
    let upstream = Upstream::start().await;
    upstream.admits(Access::Basic("user", "secret"));
    let with = "username: user, password: secret";
    let daemons = cluster(&upstream, &["", with, ""]).await;
    // Of several images each daemon is the first in the succession for some. One has more layers than are begun at once.
    for (n, layers) in (0_u64..).zip([2, 2, 2, 9]) {
        let (tag, image) = (n.to_string(), Image::new(630 + n, &vec![2000; layers]));
        upstream.push(REPO, &tag, &image);
        all_pull(&daemons, &tag, &image).await;
    }
}

#[tokio::test]
async fn what_one_of_them_holds_is_had_though_upstream_is_down() {
    let image = Image::new(640, &[12 << 20, 2000]);
    let mut upstream = Upstream::with(REPO, "1", &image).await;
    // The third cannot be the one that fetches, and so holds nothing before.
    upstream.admits(Access::Basic("user", "secret"));
    let with = "tagttl: 0s, username: user, password: secret";
    let mut daemons = cluster(&upstream, &[with, with, "tagttl: 0s"]).await;
    all_pull(&daemons[..2], "1", &image).await;
    until("the fills have ended", || daemons[..2].iter().all(|daemon| daemon.status().fills.is_empty()))
        .await;
    upstream.stop().await;
    // Who starts now is told at first all that they hold.
    let third = daemons.pop().unwrap();
    let logged_bytes = third.log().len();
    daemons.push(third.kill_and_restart());
    until("the third hears the others", || hears(&daemons[2], logged_bytes) == 2).await;
    all_pull(&daemons, "1", &image).await;
    daemons[2].logs("peers give the blob together").await;
}

#[tokio::test]
async fn a_registry_that_is_not_shared_is_asked_by_each() {
    let image = Image::new(650, &[2000]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let daemons = cluster(&upstream, &["share: no"; 3]).await;
    all_pull(&daemons, "1", &image).await;
    assert_eq!(fetched(&upstream, &image), [3, 3]);
}

#[tokio::test]
async fn who_was_refused_what_another_got_is_not_asked_again_for_a_while() {
    let upstream = Upstream::start().await;
    upstream.admits(Access::Basic("user", "secret"));
    let daemons = cluster(&upstream, &["prefetch: false, username: user, password: secret", "", ""]).await;
    // Of each of many things those without credentials come first in the succession for some.
    for n in 0..8_u64 {
        let (tag, image) = (n.to_string(), Image::new(670 + n, &[2000, 3000]));
        upstream.push(REPO, &tag, &image);
        assert_eq!(daemons[0].pull(PREFIXED, &tag).await.unwrap(), image);
    }
    let seen = upstream.seen();
    let refused = seen.iter().filter(|seen| seen.header("authorization").is_none()).count();
    // Each of the two once, and once more to be told why, and ours before it knew what is asked of it.
    assert!(refused <= 5, "{refused} requests without credentials: {seen:?}");
    assert!(daemons[0].log().contains("peer cannot go to the registry"), "{}", daemons[0].log());
}

#[tokio::test]
async fn a_refusal_of_all_reaches_the_client_at_once() {
    let upstream = Upstream::start().await;
    upstream.admits(Access::Basic("user", "secret"));
    let daemons = cluster(&upstream, &["negativettl: 0s"; 3]).await;
    let digest = Digest::sha256(b"for others");
    for _ in 0..3 {
        // All at once, so that each finds the others looking for it.
        let asked = daemons.iter().map(async |daemon| {
            let answer = daemon.get(&format!("{PREFIXED}/blobs/{digest}")).await;
            (answer.status(), answer.text().await.unwrap())
        });
        for (status, body) in join_all(asked).await {
            assert_eq!(status, 404, "{body}");
            assert!(body.contains("wants other credentials"), "{body}");
        }
        // Eight tries of each would be 24 requests at least.
        let asked = upstream.count("GET", &digest.to_string());
        assert!(asked < 24, "{asked} requests");
        upstream.forget();
    }
}

/// The only way between two groups, whose private networks have different keys: a proxy that speaks to each with its own.
struct Bridge {
    address: SocketAddr,
    target: SocketAddr,
    tasks: Tasks,
    open: CancellationToken,
}

const HERE: [u8; 32] = [0xab; 32];
const THERE: [u8; 32] = [0xcd; 32];

impl Bridge {
    /// To a daemon of the group THERE.
    async fn to(daemon: &Daemon) -> Self {
        let port = place(daemon).rsplit_once('/').unwrap().1.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, target) = (listener.local_addr().unwrap(), SocketAddr::from(([127, 0, 0, 1], port)));
        let mut bridge = Self { address, target, tasks: Tasks::new(), open: CancellationToken::new() };
        bridge.carry(listener);
        bridge
    }

    /// The address of the daemon behind it.
    fn before(&self, daemon: &Daemon) -> String {
        let peer = daemon.address.rsplit_once('/').unwrap().1;
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{peer}", self.address.port())
    }

    fn carry(&mut self, listener: TcpListener) {
        self.open = CancellationToken::new();
        let (open, tasks, target) = (self.open.clone(), self.tasks.clone(), self.target);
        self.tasks.spawn_short("bridge", |_| async move {
            while let Some(Ok((stream, _))) = open.run_until_cancelled(listener.accept()).await {
                let open = open.clone();
                tasks.spawn_short("carried", |_| async move {
                    // Either side may leave at any time.
                    let _ = open.run_until_cancelled(translate(stream, target)).await;
                });
            }
        });
    }

    /// Ends all connections, and lets no new one through.
    fn cut(&self) {
        self.open.cancel();
    }

    async fn heal(&mut self) {
        let begun = Instant::now();
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.carry(listener);
    }
}

async fn translate(stream: TcpStream, target: SocketAddr) -> Option<()> {
    let other = TcpStream::connect(target).await.ok()?;
    let here = PnetConfig::new(PreSharedKey::new(HERE)).handshake(stream.compat());
    let there = PnetConfig::new(PreSharedKey::new(THERE)).handshake(other.compat());
    let (here, there) = futures::try_join!(here, there).ok()?;
    let ((from_here, to_here), (from_there, to_there)) = (here.split(), there.split());
    select(Box::pin(carry(from_here, to_there)), Box::pin(carry(from_there, to_here))).await;
    Some(())
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.close().await,
            read => to.write_all(&buffer[..read]).await?,
        }
        to.flush().await?;
    }
}

fn place(daemon: &Daemon) -> String {
    daemon.address.split("/p2p/").next().unwrap().to_owned()
}

fn swarm_key(key: [u8; 32]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    write!(file, "/key/swarm/psk/1.0.0/\n/base16/\n{hex}\n").unwrap();
    file
}

#[tokio::test]
async fn the_halves_of_a_mesh_go_on_without_each_other_and_find_each_other_again() {
    let image = Image::new(690, &[2 << 20]);
    let mut upstream = Upstream::with(REPO, "1", &image).await;
    let (key_here, key_there) = (swarm_key(HERE), swarm_key(THERE));
    let config = format!("{{registries: {{registry.example: {{upstream: \"{}\"}}}}}}", upstream.url());
    let with = |key: &NamedTempFile| {
        let key = key.path().to_str().unwrap();
        daemon().read_only().mirror(&config).env("REGISTRY_P2P_SWARMKEY", key)
    };
    let first = with(&key_there).start();
    let second = with(&key_there).knows(&first).start();
    let mut bridges = [Bridge::to(&first).await, Bridge::to(&second).await];
    let ways = [bridges[0].before(&first), bridges[1].before(&second)];
    let across = |setup: common::Setup| ways.iter().fold(setup, |setup, way| setup.dials(way));
    let third = across(with(&key_here)).start();
    let fourth = across(with(&key_here)).knows(&third).start();
    let daemons = [first, second, third, fourth];
    let all_have = |peers: usize| daemons.iter().all(|daemon| daemon.status().node.mesh_peers == peers);
    until("all are one mesh", || all_have(3)).await;
    for daemon in &daemons {
        until("all hear each other", || hears(daemon, 0) == 3).await;
    }
    all_pull(&daemons, "1", &image).await;

    bridges.iter().for_each(Bridge::cut);
    until("the halves have lost each other", || all_have(1)).await;
    let during = Image::new(691, &[2 << 20]);
    upstream.push(REPO, "2", &during);
    all_pull(&daemons, "2", &during).await;
    let times = fetched(&upstream, &during);
    assert!(times.iter().all(|times| *times >= 2), "{times:?}: nothing came over the bridge");
    let of_one_half = Image::new(692, &[2 << 20]);
    upstream.push(REPO, "3", &of_one_half);
    all_pull(&daemons[2..], "3", &of_one_half).await;
    until("the fills have ended", || daemons.iter().all(|daemon| daemon.status().fills.is_empty())).await;

    for bridge in &mut bridges {
        bridge.heal().await;
    }
    // A lost peer is dialled with pauses that grow up to half a minute.
    let begun = Instant::now();
    while !all_have(3) {
        assert!(begun.elapsed() < 3 * PATIENCE, "the halves do not find each other");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    upstream.stop().await;
    // What the other half holds is known: there is no other way to have it.
    for daemon in &daemons[..2] {
        let begun = Instant::now();
        while daemon.pull(PREFIXED, "3").await.as_ref() != Ok(&of_one_half) {
            assert!(begun.elapsed() < PATIENCE, "{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
