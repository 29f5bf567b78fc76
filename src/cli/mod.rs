//! The command line: arguments, one file per command. `key` (but for `rotate`), `config` and `setup` work on files; all else but `serve` asks
//! the running daemon over its socket.

mod cache;
mod client;
mod doctor;
mod engine;
mod export;
mod import;
mod key;
mod layout;
mod load;
mod name;
mod pull;
mod save;
mod setup;
mod status;
mod transfer;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError};

/// A peer-to-peer mirror and registry for container images.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Start with:  shoal serve\nThen:        skopeo copy --dest-tls-verify=false oci:IMAGE docker://127.0.0.1:5000/library/app:1"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: registry, mirror and node
    #[command(
        after_help = "Example: shoal serve config.yaml\nWithout a file it runs on built-in defaults; a key `self` is made on the first start.\nPrints one line when it serves: ready registry=… p2p=… ipns=…"
    )]
    Serve {
        /// The config file (YAML); see config/default.yaml for every key
        config: Option<PathBuf>,
    },
    /// Make, list, import, export and rotate keys
    #[command(subcommand, after_help = "Example: shoal key gen team")]
    Key(key::KeyCommand),
    /// Show who the daemon is: peer id, addresses, IPNS name
    #[command(after_help = "Example: shoal id")]
    Id {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Resolve and publish IPNS names, and settle what two writers of one did
    #[command(subcommand, after_help = "Example: shoal name resolve k51qzi5uqu5d…")]
    Name(NameCommand),
    /// Show roots, peers, store and transfers of the daemon
    #[command(after_help = "Example: shoal status --json | jq .own.sequence")]
    Status {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Free what no image needs any more
    ///
    /// The daemon does so by itself as its store grows. What was deleted goes at once; what was pushed and never named
    /// by a manifest goes after an hour.
    #[command(after_help = "Example: shoal gc")]
    Gc {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Load images from an OCI layout or a docker-archive
    #[command(
        after_help = "Examples: shoal load app.tar library/app:1\n          docker save app:1 | gzip | shoal load -\n          shoal load --all LAYOUT library/app"
    )]
    Load(load::LoadArguments),
    /// Save an image as an OCI layout or a docker-archive
    #[command(
        after_help = "Examples: shoal save library/app:1 LAYOUT\n          shoal save --format docker-archive library/app:1 - | docker load"
    )]
    Save(save::SaveArguments),
    /// Have the daemon fetch an image whole, and show where each layer comes from
    ///
    /// From its own tree, a name that it follows, or a registry that it mirrors: what comes from there is in its cache then.
    /// Or from anywhere on IPFS: ipfs/<cid>/<path>, ipns/<name>/<path>.
    #[command(
        after_help = "Examples: shoal pull docker.io/library/alpine:3.20\n          shoal pull --platform all localhost:5000/app:1\n          shoal pull ipns/k51qzi5uqu5d…/library/app:1"
    )]
    Pull(pull::PullArguments),
    /// Fetch images of other registries into the cache before somebody asks for them
    #[command(after_help = "Example: shoal prefetch docker.io/library/alpine:3.20 ghcr.io/team/app:1")]
    Prefetch(cache::PrefetchArguments),
    /// Keep an image of another registry in the cache
    ///
    /// It is not evicted when there is no room. A tag keeps what it points to, whatever that is by then.
    #[command(after_help = "Example: shoal pin docker.io/library/alpine:3.20")]
    Pin(cache::ImageArguments),
    /// Let an image go again when there is no room
    #[command(after_help = "Example: shoal unpin docker.io/library/alpine:3.20")]
    Unpin(cache::ImageArguments),
    /// Take an image of another registry out of the cache, and free what only it needed
    ///
    /// What `shoal pin` keeps is not taken, unless with --force.
    #[command(after_help = "Example: shoal evict docker.io/library/alpine:3.20")]
    Evict(cache::EvictArguments),
    /// List the images of other registries that are in the cache
    #[command(after_help = "Example: shoal cache --json | jq '.[] | select(.pinned)'")]
    Cache {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep OCI layouts that others pull by their CID
    #[command(subcommand, after_help = "Example: shoal layout add LAYOUT")]
    Layout(layout::LayoutCommand),
    /// Take over the folder of a stock docker-registry
    #[command(
        after_help = "Example: shoal import /var/lib/registry --repository 'library/*'\nRun it again after an interruption, or to take over what came since: what is there is not copied again."
    )]
    Import(import::ImportArguments),
    /// Write a folder that a stock docker-registry serves
    #[command(
        after_help = "Example: shoal export /var/lib/registry library/app\nRun it again after an interruption, or to bring the folder up to date. Manifests that neither have a tag nor belong to an image stay behind."
    )]
    Export(export::ExportArguments),
    /// Point containerd, podman or Docker at the mirror
    ///
    /// Shows a diff and asks; what was there is kept, and comes back with --undo.
    #[command(subcommand, after_help = "Example: shoal setup containerd --dry-run")]
    Setup(setup::SetupCommand),
    /// Find out whether pulls come by the mirror, and what mends it if not
    ///
    /// Reads the files of containerd, podman and Docker as they do, reaches the mirror, and pulls a small image through it.
    #[command(
        after_help = "Examples: shoal doctor\n          shoal doctor containerd --registry ghcr.io --probe ghcr.io/team/app:1"
    )]
    Doctor(doctor::DoctorArguments),
    /// Check a config file
    #[command(subcommand, after_help = "Example: shoal config check /etc/shoal/config.yaml")]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum NameCommand {
    /// Ask the network for the newest record of a name
    #[command(
        after_help = "Example: shoal name resolve k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e"
    )]
    Resolve {
        /// k51…, 12D3… or Qm…
        name: String,
        #[command(flatten)]
        which: Which,
    },
    /// Publish the own root now
    #[command(after_help = "Example: shoal name publish")]
    Publish {
        #[command(flatten)]
        which: Which,
    },
    /// Merge what another daemon has published with the same key into the own tree, and publish that
    ///
    /// Nothing of either is dropped. A tag that points elsewhere in both keeps its value here, and is listed; the image that
    /// it had there stays, by its digest. What lies there is fetched first, so let the other daemon run.
    #[command(after_help = "Example: shoal name adopt")]
    Adopt {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Publish the own root also over what another daemon has published with the same key
    ///
    /// Readers do not see that any more. The other daemon keeps it, and stops publishing in its turn.
    #[command(after_help = "Example: shoal name overwrite")]
    Overwrite {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a config file and the environment as `serve` would, and say what is wrong
    ///
    /// With storage.ipfs.ipfsapiaddress the Kubo there is asked for its version.
    #[command(after_help = "Example: shoal config check config.yaml")]
    Check {
        /// The config file (YAML)
        config: Option<PathBuf>,
    },
}

/// Which daemon is meant.
#[derive(Args, Debug)]
struct Which {
    /// The config file that the daemon runs with, to find its root directory
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Runs a command; errors are one line on standard error. `serve` runs the daemon to its end, and gives the exit code and
/// the line if that is bad.
pub fn run(arguments: Arguments, serve: impl FnOnce(Config) -> Result<(), (u8, String)>) -> ExitCode {
    let outcome = match arguments.command {
        Command::Serve { config } => match load(config).map(serve) {
            Ok(Ok(())) => Ok(()),
            Ok(Err((code, line))) => return fail(code, &line),
            Err(error) => Err(error.into()),
        },
        Command::Key(command) => key::run(command),
        Command::Id { which, json } => status::id(&which, json),
        Command::Name(NameCommand::Resolve { name, which }) => name::resolve(&which, &name),
        Command::Name(NameCommand::Publish { which }) => name::publish(&which),
        Command::Name(NameCommand::Adopt { which, json }) => name::adopt(&which, json),
        Command::Name(NameCommand::Overwrite { which }) => name::overwrite(&which),
        Command::Status { which, json } => status::status(&which, json),
        Command::Gc { which, json } => status::collect_garbage(&which, json),
        Command::Load(arguments) => load::run(arguments),
        Command::Save(arguments) => save::run(arguments),
        Command::Pull(arguments) => pull::run(arguments),
        Command::Prefetch(arguments) => cache::prefetch(&arguments),
        Command::Pin(arguments) => cache::pin(&arguments),
        Command::Unpin(arguments) => cache::unpin(&arguments),
        Command::Evict(arguments) => cache::evict(&arguments),
        Command::Cache { which, json } => cache::list(&which, json),
        Command::Layout(command) => layout::run(command),
        Command::Import(arguments) => import::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Setup(command) => setup::run(command),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Config(ConfigCommand::Check { config }) => check(config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandError::Config(error)) => fail(2, &error.to_string()),
        Err(CommandError::Other(error)) => fail(1, &format!("{error:#}")),
    }
}

fn fail(code: u8, line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(code)
}

fn complain(line: &str) {
    // Nothing is left to be done if standard error is closed.
    let _ = writeln!(std::io::stderr(), "shoal: {line}");
}

/// Writes an answer to standard output; a reader that has gone is no failure.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Reads the config as `serve` would; warnings go to standard error.
fn load(path: Option<PathBuf>) -> Result<Config, ConfigError> {
    let (config, warnings) = Config::load(path.as_deref(), std::env::vars())?;
    warnings.iter().for_each(|warning| complain(&format!("warning: {}", warning.0)));
    Ok(config)
}

fn check(path: Option<PathBuf>) -> Result<(), CommandError> {
    let config = load(path)?;
    print(&format!("ok: root directory {}", config.store.root_directory.display()));
    if let Some(kubo) = &config.kubo {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let version = runtime.map_err(anyhow::Error::from)?.block_on(crate::kubo::version(kubo));
        print(&format!("ok: Kubo {} answers at {}", version.map_err(anyhow::Error::from)?, kubo.api));
    }
    Ok(())
}

/// Reads whatever bytes as an archive of images: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    transfer::archive::fuzz(bytes);
}
