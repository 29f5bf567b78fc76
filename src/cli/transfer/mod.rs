//! Moving images between files and the running daemon. The store has one owner, so that all of it goes through the
//! registry API, on the daemon's socket.

pub(super) mod archive;
pub(super) mod graph;
pub(super) mod progress;
pub(super) mod pull;
pub(super) mod push;
pub(super) mod refusal;
mod registry;
pub(super) mod selection;
pub(super) mod tar_writer;

use std::io;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{CommandError, Which};
use crate::api;
use crate::tasks::Tasks;
use progress::{Output, Progress};
use registry::{Registry, RegistryError};

/// Blobs on their way at once.
pub(super) const TRANSFERS_MAX: usize = 3;
/// What connections to the daemon may take to end, once the work is done.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// What a command works with.
pub(super) struct Session {
    pub(super) registry: Registry,
    pub(super) progress: Progress,
}

/// Runs `work` against the running daemon; images of which it told that they failed make it fail in the end. SIGINT drops
/// it: what was begun is not left behind half-done.
pub(super) fn run(
    which: &Which,
    output: &Output,
    work: impl AsyncFnOnce(&Session) -> anyhow::Result<()>,
) -> Result<(), CommandError> {
    let socket = super::load(which.config.clone())?.store.root_directory.join(api::SOCKET);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        let tasks = Tasks::new();
        let session =
            Session { registry: Registry::new(socket, tasks.clone()), progress: Progress::new(output) };
        let outcome = tokio::select! {
            outcome = work(&session) => outcome,
            signal = tokio::signal::ctrl_c() => match signal {
                Ok(()) => bail!("interrupted: run it again, and it goes on where it was"),
                Err(error) => Err(error).context("cannot wait for signals"),
            },
        };
        tasks.shutdown(END_TIMEOUT).await;
        outcome?;
        session.progress.finish();
        match session.progress.errors() {
            0 => Ok(()),
            errors => bail!("{errors} images were not moved, the rest is there: mend them, and run it again"),
        }
    });
    // Standard input may be waited for still.
    runtime.shutdown_background();
    Ok(outcome?)
}

/// Whether the next image would meet the same: no daemon, one that takes no pushes, or no room on the disk.
pub(super) fn concerns_all(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let registry = cause.downcast_ref().is_some_and(RegistryError::concerns_all);
        let disk =
            cause.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::StorageFull);
        registry || disk
    })
}

/// Runs what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the work broke off")?
}
