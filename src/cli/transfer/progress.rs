//! What a transfer tells while it runs: a bar for each blob on a terminal, plain lines elsewhere, events in JSON on request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::{complain, print};
use crate::oci::{Digest, RepoName};

/// Between two events of one blob.
const EVENT_INTERVAL: Duration = Duration::from_millis(500);
/// Digits of a digest that a person is shown.
const SHORT_DIGITS: usize = 12;

/// How to tell it.
#[derive(Args, Debug)]
pub(in crate::cli) struct Output {
    /// Print each step as a line of JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

impl Output {
    #[cfg(test)]
    pub(in crate::cli) fn quiet() -> Self {
        Self { json: false, quiet: true }
    }

    /// Whether standard output carries events.
    pub(in crate::cli) fn is_json(&self) -> bool {
        self.json
    }
}

/// One line of `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    /// A blob on its way: so many of its bytes have been moved.
    Blob {
        digest: String,
        size: u64,
        done: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<&'a str>,
    },
    /// A blob that is there already.
    Present {
        digest: String,
    },
    /// A blob that another repository has.
    Mounted {
        digest: String,
    },
    Manifest {
        repository: &'a str,
        digest: String,
        reference: String,
    },
    Error {
        what: &'a str,
        error: &'a str,
    },
    Done(Tally),
}

/// What was moved in all.
#[derive(Clone, Default, Serialize)]
struct Tally {
    blobs_moved: u64,
    bytes_moved: u64,
    /// Where the daemon had them from, of those that it sent.
    bytes_by_source: BTreeMap<String, u64>,
    blobs_present: u64,
    blobs_mounted: u64,
    manifests: u64,
    errors: u64,
    seconds: f64,
}

enum Shape {
    Bars(MultiProgress),
    Lines,
    Json,
    Quiet,
}

/// The one teller of a command. Cheap to clone.
#[derive(Clone)]
pub(in crate::cli) struct Progress(Arc<Inner>);

struct Inner {
    shape: Shape,
    tally: Mutex<Tally>,
    begun: Instant,
}

/// A blob on its way.
pub(in crate::cli) struct Transfer {
    progress: Progress,
    digest: Digest,
    size_bytes: u64,
    source: Option<String>,
    done_bytes: AtomicU64,
    told_at: Mutex<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(in crate::cli) fn new(output: &Output) -> Self {
        let shape = match output {
            Output { json: true, .. } => Shape::Json,
            Output { quiet: true, .. } => Shape::Quiet,
            _ if std::io::stderr().is_terminal() => Shape::Bars(MultiProgress::new()),
            _ => Shape::Lines,
        };
        Self(Arc::new(Inner { shape, tally: Mutex::default(), begun: Instant::now() }))
    }

    /// Begins a blob of `size_bytes`. `source`: where the daemon has it from, if it sends it.
    pub(in crate::cli) fn blob(
        &self,
        digest: &Digest,
        size_bytes: u64,
        source: Option<String>,
    ) -> Arc<Transfer> {
        let bar = match &self.0.shape {
            Shape::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(size_bytes).with_prefix(short(digest)));
                let template = "{prefix} {bar:30} {bytes:>11} of {total_bytes:<11} {bytes_per_sec} {msg}";
                // The template is well-formed; the plain bar would do as well.
                bar.set_style(
                    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
                if let Some(source) = &source {
                    bar.set_message(format!("from {source}"));
                }
                Some(bar)
            }
            Shape::Lines | Shape::Json | Shape::Quiet => None,
        };
        let transfer = Transfer {
            progress: self.clone(),
            digest: *digest,
            size_bytes,
            source,
            done_bytes: AtomicU64::new(0),
            told_at: Mutex::new(Instant::now()),
            bar,
        };
        transfer.tell(0);
        Arc::new(transfer)
    }

    pub(in crate::cli) fn present(&self, digest: &Digest) {
        self.tally().blobs_present += 1;
        self.event(|| Event::Present { digest: digest.to_string() });
        self.line(|| format!("{} is there already", short(digest)));
    }

    pub(in crate::cli) fn mounted(&self, digest: &Digest) {
        self.tally().blobs_mounted += 1;
        self.event(|| Event::Mounted { digest: digest.to_string() });
        self.line(|| format!("{} is there in another repository", short(digest)));
    }

    /// `reference`: the tag or digest that it was put under.
    pub(in crate::cli) fn manifest(&self, repo: &RepoName, digest: &Digest, reference: &str) {
        self.tally().manifests += 1;
        self.event(|| Event::Manifest {
            repository: repo.as_str(),
            digest: digest.to_string(),
            reference: reference.to_owned(),
        });
    }

    /// An image that was not moved; the rest goes on.
    pub(in crate::cli) fn failed(&self, what: &str, error: &str) {
        self.tally().errors += 1;
        self.event(|| Event::Error { what, error });
        match &self.0.shape {
            Shape::Bars(bars) => bars.suspend(|| complain(&format!("{what}: {error}"))),
            Shape::Lines | Shape::Quiet => complain(&format!("{what}: {error}")),
            Shape::Json => (),
        }
    }

    /// What came of an image, for a person: on standard error, where the bars are.
    pub(in crate::cli) fn line(&self, text: impl FnOnce() -> String) {
        match &self.0.shape {
            Shape::Bars(bars) => {
                // Whoever closed standard error does not want to read it.
                let _ = bars.println(text());
            }
            Shape::Lines => eprint_line(&text()),
            Shape::Json | Shape::Quiet => (),
        }
    }

    /// Ends it with the sum.
    pub(in crate::cli) fn finish(&self) {
        let mut tally = self.tally().clone();
        tally.seconds = self.0.begun.elapsed().as_secs_f64();
        self.line(|| tally.readable());
        self.event(|| Event::Done(tally));
    }

    /// Images that were not moved.
    pub(in crate::cli) fn errors(&self) -> u64 {
        self.tally().errors
    }

    fn event<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if matches!(self.0.shape, Shape::Json) {
            // Plain values always serialise.
            print(&serde_json::to_string(&event()).unwrap_or_default());
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.0.tally)
    }
}

impl Tally {
    fn readable(&self) -> String {
        let mut text = format!("{} blobs moved ({})", self.blobs_moved, HumanBytes(self.bytes_moved));
        let others = [
            (self.blobs_present, "there already"),
            (self.blobs_mounted, "from other repositories"),
            (self.manifests, "manifests"),
        ];
        for (count, what) in others.iter().filter(|(count, _)| *count > 0) {
            // Writing to a string cannot fail.
            let _ = write!(text, ", {count} {what}");
        }
        let _ = write!(text, " in {:.1} s", self.seconds);
        let sources = self.bytes_by_source.iter();
        let sources: Vec<_> =
            sources.map(|(source, bytes)| format!("{} from {source}", HumanBytes(*bytes))).collect();
        if !sources.is_empty() {
            let _ = write!(text, ": {}", sources.join(", "));
        }
        text
    }
}

impl Transfer {
    /// So many bytes more.
    pub(in crate::cli) fn advance(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        let mut told_at = lock(&self.told_at);
        if told_at.elapsed() >= EVENT_INTERVAL && done < self.size_bytes {
            *told_at = Instant::now();
            self.tell(done);
        }
    }

    /// All of it has been moved.
    pub(in crate::cli) fn finish(&self) {
        let mut tally = self.progress.tally();
        tally.blobs_moved += 1;
        tally.bytes_moved += self.size_bytes;
        if let Some(source) = &self.source {
            *tally.bytes_by_source.entry(source.clone()).or_default() += self.size_bytes;
        }
        drop(tally);
        self.tell(self.size_bytes);
        self.progress.line(|| {
            let source = self.source.as_ref().map(|source| format!(" from {source}")).unwrap_or_default();
            format!("{} {}{source}", short(&self.digest), HumanBytes(self.size_bytes))
        });
    }

    fn tell(&self, done: u64) {
        self.progress.event(|| Event::Blob {
            digest: self.digest.to_string(),
            size: self.size_bytes,
            done,
            source: self.source.as_deref(),
        });
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let (Shape::Bars(bars), Some(bar)) = (&self.progress.0.shape, &self.bar) {
            bar.finish_and_clear();
            bars.remove(bar);
        }
    }
}

/// What a person is shown of a digest.
pub(in crate::cli) fn short(digest: &Digest) -> String {
    digest.hex()[..SHORT_DIGITS].to_owned()
}

fn eprint_line(text: &str) {
    use std::io::Write as _;
    // Nothing is left to be done if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A panic while the lock was held leaves nothing half-done: numbers are added one by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
