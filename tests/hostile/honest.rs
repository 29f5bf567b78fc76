//! Those who mean no harm: a daemon that is attacked, and one that follows what is pushed to it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{Daemon, Image, daemon};

/// What a daemon may take in memory while it is under attack, in a debug build.
const MEMORY_BYTES_MAX: u64 = 320 << 20;
const TAGS: u64 = 3;

pub struct Honest {
    pub victim: Daemon,
    reader: Daemon,
    /// Of the next image.
    seed: AtomicU64,
}

impl Honest {
    /// `seed`: of the images, ten from it on.
    pub async fn start(seed: u64) -> Self {
        let victim = daemon().start();
        let reader = daemon().knows(&victim).reads(&victim.ipns).read_only().start();
        let honest = Self { victim, reader, seed: AtomicU64::new(seed) };
        honest.moves_on().await;
        honest
    }

    /// The next image is pushed to the victim, and the reader has it from there.
    async fn moves_on(&self) {
        let seed = self.seed.fetch_add(1, Ordering::SeqCst);
        let (image, tag) = (Image::small(seed), seed.to_string());
        self.victim.push("library/app", &tag, &image).await;
        self.reader.serves("library/app", &tag, &image).await;
    }

    /// Runs an attack, and has the reader served meanwhile and after it.
    pub async fn during<T>(&self, what: &str, attack: impl Future<Output = T>) -> T {
        let served = async {
            for _ in 0..TAGS {
                self.moves_on().await;
            }
        };
        let (outcome, ()) = tokio::join!(attack, served);
        self.moves_on().await;
        let memory = self.victim.memory_bytes();
        assert!(memory < MEMORY_BYTES_MAX, "{} MiB of memory after {what}", memory >> 20);
        outcome
    }
}
