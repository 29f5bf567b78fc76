//! Reads arguments and config, runs the command, turns its result into an exit code: 0 done, 1 failed, 2 bad config.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser;
use shoal::cli::{self, Arguments};
use shoal::config::{Config, LogConfig};
use shoal::daemon;
use tracing_subscriber::EnvFilter;

/// Blocks of a mebibyte come and go: glibc gives their pages back and takes them again each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(Arguments::parse(), serve)
}

/// Runs the daemon to its end.
fn serve(config: Config) -> Result<(), (u8, String)> {
    log(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| (1, format!("cannot start the runtime: {error}")))?;
    let ready = |line: &str| {
        let mut out = std::io::stdout();
        // Nobody needs to read the line.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    runtime.block_on(daemon::run(config, ready)).map_err(|error| {
        let code = if error.is_config() { 2 } else { 1 };
        (code, format!("{:#}", anyhow::Error::from(error)))
    })
}

/// Logs go to standard error. Ours at the level of the config, those of libraries from `warn` on.
fn log(config: &LogConfig) {
    // A node without peers is nothing that Kademlia needs to warn of each time it looks for some.
    let filter = EnvFilter::new(format!("warn,libp2p_kad=error,shoal={}", config.level.as_str()));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if config.json { builder.json().init() } else { builder.init() }
}
