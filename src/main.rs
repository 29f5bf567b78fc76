//! Reads arguments and config, runs the command, turns its result into an exit code: 0 done, 1 failed, 2 bad config.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use shoal::cli::{self, Arguments};
use shoal::config::Config;
use shoal::{daemon, logging};

/// Blocks of a mebibyte come and go: glibc gives their pages back and takes them again each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(Arguments::parse(), serve)
}

/// Runs the daemon to its end.
fn serve(config: Config) -> Result<(), (u8, String)> {
    logging::start(&config.log);
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
