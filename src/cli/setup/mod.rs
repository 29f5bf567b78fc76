//! `shoal setup`: points containerd, podman and Docker at the mirror. Works on their files alone; they, and the
//! daemon, need not run.

mod change;
mod plan;

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hyper::Method;

use super::client::ask;
use super::engine::{Engine, MirrorUrl, Root, containerd};
use super::{CommandError, Which, complain, print};
use crate::api;
use crate::config::{
    Config, HttpConfig, Net, PullThrough, SELF_SIGNED_CERTIFICATE, SELF_SIGNED_FOLDER, TlsPair,
};
use crate::oci::Host;
use change::Change;
use plan::{ContainerdPaths, Plan, Target};

/// Mirrored if nobody says which.
const DEFAULT_REGISTRY: &str = "docker.io";

#[derive(Debug, Subcommand)]
pub(super) enum SetupCommand {
    /// Write a hosts.toml for each registry
    ///
    /// The mirror becomes the first host, for pulls only; the registry itself stays the last. Read at each pull:
    /// nothing has to be restarted.
    #[command(after_help = "Example: shoal setup containerd --registry docker.io --registry ghcr.io")]
    Containerd {
        #[command(flatten)]
        containerd: ContainerdArguments,
        #[command(flatten)]
        common: Common,
    },
    /// Write a drop-in of registries.conf, for podman, CRI-O, buildah and skopeo
    #[command(after_help = "Example: shoal setup podman --dry-run")]
    Podman {
        #[command(flatten)]
        common: Common,
    },
    /// Write registry-mirrors into daemon.json, and hosts.toml files where Docker reads them
    #[command(after_help = "Example: shoal setup docker --mirror http://127.0.0.1:5000")]
    Docker {
        #[command(flatten)]
        common: Common,
    },
}

/// Where containerd's files are.
#[derive(Args, Debug)]
pub(super) struct ContainerdArguments {
    /// containerd's own config, which says where it looks for hosts.toml files
    #[arg(long, value_name = "FILE", default_value = containerd::CONFIG)]
    pub(super) containerd_config: PathBuf,
    /// The folder of hosts.toml files, in place of what that config says
    #[arg(long, value_name = "DIR")]
    pub(super) config_path: Option<PathBuf>,
}

/// What is to be mirrored, and where.
#[derive(Args, Debug)]
pub(super) struct MirrorArguments {
    /// Where engines reach the mirror [default: the running daemon's address, or else that of its config]
    #[arg(long, value_name = "URL")]
    mirror: Option<MirrorUrl>,
    /// A registry to be mirrored; may be given several times [default: those of mirror.registries, with "*" for containerd
    /// all, or else docker.io]
    #[arg(long, value_name = "HOST")]
    registry: Vec<Host>,
    /// The authority of a mirror with https, in PEM [default: the certificate that the daemon made for itself]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The folder that stands for /
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    which: Which,
}

/// What was made of [`MirrorArguments`].
pub(super) struct Settled {
    pub(super) mirror: MirrorUrl,
    pub(super) registries: Vec<Host>,
    /// The registries were named, by the command line or by the config.
    are_named: bool,
    /// All others are mirrored too.
    all: bool,
    /// The mirror's authority, in PEM, if it is not one that the system trusts.
    authority: Option<String>,
    /// What the mirror asks other registries for; `None` if its config is not known.
    pub(super) configured: Option<PullThrough>,
}

#[derive(Args, Debug)]
pub(super) struct Common {
    #[command(flatten)]
    mirror: MirrorArguments,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Bring back what was there before, and remove what was made
    #[arg(long)]
    undo: bool,
}

impl MirrorArguments {
    pub(super) fn root(&self) -> Root {
        Root::new(self.root.clone())
    }

    /// What is to be mirrored, and where, as it was said, or as the daemon or its config has it.
    pub(super) fn settle(&self) -> Result<Settled, CommandError> {
        let path = self.which.config.clone();
        let (mirror, config) = match &self.mirror {
            Some(mirror) => (mirror.clone(), super::load(path)?),
            None => {
                let status: Result<api::Status, _> = ask(&self.which, &Method::GET, "/v0/status");
                // Asking has told its warnings.
                let (config, _) = Config::load(path.as_deref(), std::env::vars())?;
                (found(status.ok(), &config.http)?, config)
            }
        };
        // The mirror that was named may be that of another machine, with another config.
        let is_of_config = self.mirror.is_none() || self.which.config.is_some();
        let authority = self.authority(&mirror, is_of_config.then_some(&config))?;
        let configured = is_of_config.then_some(config.pull_through);
        let all = self.registry.is_empty() && configured.as_ref().is_some_and(|config| config.any.is_some());
        let mut registries = self.registries(configured.as_ref());
        let are_named = !registries.is_empty();
        if !are_named {
            registries.extend(DEFAULT_REGISTRY.parse::<Host>());
        }
        Ok(Settled { mirror, registries, are_named, all, authority, configured })
    }

    fn authority(&self, mirror: &MirrorUrl, config: Option<&Config>) -> anyhow::Result<Option<String>> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        if let Some(path) = &self.ca {
            return read(path).map(Some);
        }
        let pair = config.and_then(|config| Some(&config.http.tls.as_ref()?.pair));
        let (Some(TlsPair::SelfSigned { .. }), Some(config), false) = (pair, config, mirror.is_plain())
        else {
            return Ok(None);
        };
        let path = config.store.root_directory.join(SELF_SIGNED_FOLDER).join(SELF_SIGNED_CERTIFICATE);
        let unmade =
            "the daemon makes its certificate at its first start: start it, or name the file with --ca";
        read(&path).context(unmade).map(Some)
    }

    fn registries(&self, configured: Option<&PullThrough>) -> Vec<Host> {
        if !self.registry.is_empty() {
            return self.registry.clone();
        }
        let configured = configured.into_iter();
        let registries: BTreeSet<Host> = configured
            .flat_map(|configured| configured.registries.keys().chain(&configured.default_registry))
            .cloned()
            .collect();
        registries.into_iter().collect()
    }
}

/// Where engines reach the daemon that gave this status, or else the one that will run with this config.
fn found(status: Option<api::Status>, http: &HttpConfig) -> anyhow::Result<MirrorUrl> {
    let name = "name the URL that engines reach with --mirror";
    let url = match status {
        Some(status) => status.registry,
        None if http.net == Net::Unix => format!("unix:{}", http.addr),
        None => format!("{}://{}", if http.tls.is_some() { "https" } else { "http" }, http.addr),
    };
    if !http.prefix.is_empty() {
        bail!("http.prefix = {:?}: engines ask at the root; {name}", http.prefix);
    }
    if url.ends_with(":0") {
        bail!("http.addr = {:?}, and no daemon runs that has taken a port; {name}", http.addr);
    }
    let mirror: Result<MirrorUrl, _> = url.parse();
    mirror.map(MirrorUrl::dialled).map_err(|_| anyhow::anyhow!("the registry is at {url}; {name}"))
}

pub(super) fn run(command: SetupCommand) -> Result<(), CommandError> {
    let (engine, containerd, common) = match command {
        SetupCommand::Containerd { containerd, common } => (Engine::Containerd, Some(containerd), common),
        SetupCommand::Podman { common } => (Engine::Podman, None, common),
        SetupCommand::Docker { common } => (Engine::Docker, None, common),
    };
    let root = common.mirror.root();
    let paths = ContainerdPaths {
        config: containerd.as_ref().map_or(containerd::CONFIG.as_ref(), |given| &given.containerd_config),
        hosts: containerd.as_ref().and_then(|given| given.config_path.as_deref()),
    };
    let plan = if common.undo {
        plan::undo(&root, engine, &paths, &common.mirror.registry).context("nothing was changed")?
    } else {
        let settled = common.mirror.settle()?;
        let target = Target {
            root: &root,
            mirror: &settled.mirror,
            registries: &settled.registries,
            are_named: settled.are_named,
            all: settled.all,
            authority: settled.authority.as_deref(),
            configured: settled.configured.as_ref(),
        };
        let plan = match engine {
            Engine::Containerd => plan::containerd(&target, &paths),
            Engine::Podman => plan::podman(&target),
            Engine::Docker => plan::docker(&target),
        };
        plan.context("nothing was changed")?
    };
    Ok(carry_out(engine, plan, &common)?)
}

/// Shows it, asks, and does it.
fn carry_out(engine: Engine, plan: Plan, common: &Common) -> anyhow::Result<()> {
    plan.warnings.iter().for_each(|warning| complain(&format!("warning: {warning}")));
    let changes: Vec<Change> = plan.changes.into_iter().filter(Change::is_needed).collect();
    if changes.is_empty() {
        print(&format!("nothing to change for {engine}"));
    }
    for change in &changes {
        print(change.diff().trim_end());
    }
    if !common.dry_run && !changes.is_empty() {
        if !common.yes && !agreed()? {
            bail!("nothing was changed");
        }
        change::apply(&changes).context("not all was changed: run it again, or with --undo")?;
        changes.iter().for_each(|change| print(&format!("changed {}", change.path().display())));
    }
    plan.notes.iter().for_each(|note| print(note));
    plan.steps.iter().for_each(|step| print(&format!("next: {step}")));
    Ok(())
}

/// Asks on the terminal.
fn agreed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nothing was changed: there is nobody to ask, so that --yes is needed");
    }
    // Whoever cannot read the question cannot say yes.
    let _ = write!(std::io::stderr(), "write this? [y/N] ").and_then(|()| std::io::stderr().flush());
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("no answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
