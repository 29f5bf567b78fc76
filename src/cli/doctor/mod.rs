//! `shoal doctor`: whether pulls of containerd, podman and Docker come by the mirror. Reads their files as they do,
//! and pulls a probe as they would; changes nothing.

mod files;
mod probe;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::engine::registries_conf::Registries;
use super::engine::{Engine, MirrorUrl, Root, containerd, daemon_json};
use super::setup::{ContainerdArguments, MirrorArguments, Settled};
use super::{CommandError, print};
use crate::config::PullThrough;
use crate::oci::Host;
use probe::{Asked, Image};

#[derive(Args, Debug)]
pub(super) struct DoctorArguments {
    /// Whose files are looked at [default: of all that are installed]
    engine: Option<Engine>,
    /// The image that is pulled, with its registry [default: a small well-known one of each registry]
    #[arg(long, value_name = "IMAGE")]
    probe: Option<Image>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    containerd: ContainerdArguments,
    #[command(flatten)]
    mirror: MirrorArguments,
}

/// What came of one step.
#[derive(Debug, Serialize)]
struct Step {
    /// Whose pulls it concerns.
    engine: Option<String>,
    state: State,
    what: String,
    /// The command, or the lines, that mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// Pulls do not come by the mirror, or not always.
    Wrong,
    /// Good to know.
    Note,
}

/// All steps, in the order in which they were taken.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    steps: Vec<Step>,
    #[serde(skip)]
    engine: Option<Engine>,
}

impl Report {
    fn new() -> Self {
        Self { ok: true, steps: Vec::new(), engine: None }
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.step(State::Ok, what.into(), None);
    }

    fn note(&mut self, what: impl Into<String>) {
        self.step(State::Note, what.into(), None);
    }

    fn wrong(&mut self, what: impl Into<String>, mend: impl Into<String>) {
        self.ok = false;
        self.step(State::Wrong, what.into(), Some(mend.into()));
    }

    fn step(&mut self, state: State, what: String, mend: Option<String>) {
        self.steps.push(Step { engine: self.engine.map(|engine| engine.to_string()), state, what, mend });
    }

    fn readable(&self) -> String {
        let line = |step: &Step| {
            let state = match step.state {
                State::Ok => "ok   ",
                State::Wrong => "WRONG",
                State::Note => "note ",
            };
            let engine = step.engine.as_ref().map(|engine| format!("{engine}: ")).unwrap_or_default();
            let mend =
                step.mend.as_ref().map(|mend| format!("\n        {}", mend.replace('\n', "\n        ")));
            format!("{state}  {engine}{}{}", step.what, mend.unwrap_or_default())
        };
        self.steps.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// What the steps go by.
struct Patient<'a> {
    root: &'a Root,
    mirror: &'a MirrorUrl,
    registries: &'a [Host],
    containerd: &'a ContainerdArguments,
    /// What the mirror asks other registries for, if that is known.
    configured: Option<&'a PullThrough>,
}

pub(super) fn run(arguments: &DoctorArguments) -> Result<(), CommandError> {
    let root = arguments.mirror.root();
    let Settled { mirror, mut registries, configured, .. } = arguments.mirror.settle()?;
    if let Some(image) = arguments.probe.as_ref().filter(|image| !registries.contains(&image.registry)) {
        registries.push(image.registry.clone());
    }
    let patient = Patient {
        root: &root,
        mirror: &mirror,
        registries: &registries,
        containerd: &arguments.containerd,
        configured: configured.as_ref(),
    };
    let mut report = Report::new();
    let mut asked = Vec::new();
    for engine in engines(arguments, &root) {
        report.engine = Some(engine);
        asked.push(match engine {
            Engine::Containerd => files::containerd(&mut report, &patient),
            Engine::Podman => files::podman(&mut report, &patient),
            Engine::Docker => files::docker(&mut report, &patient),
        });
    }
    report.engine = None;
    if asked.is_empty() {
        let what = "neither containerd nor podman nor Docker is installed";
        report.wrong(what, "install one, or name the one that is meant: shoal doctor containerd");
    }
    asked.sort_unstable();
    asked.dedup();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    runtime.block_on(probe::run(&mut report, &patient, &asked, arguments.probe.as_ref()))?;
    if arguments.json {
        // Plain values always serialise.
        print(&serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        print(&report.readable());
    }
    match report.steps.iter().filter(|step| step.state == State::Wrong).count() {
        0 => Ok(()),
        1 => Err(anyhow::anyhow!("1 thing is wrong").into()),
        wrong => Err(anyhow::anyhow!("{wrong} things are wrong").into()),
    }
}

/// The engine that was named, or those whose program or config is there.
fn engines(arguments: &DoctorArguments, root: &Root) -> Vec<Engine> {
    let is_there = |engine: &Engine| {
        let config: PathBuf = root.under(match engine {
            Engine::Containerd => arguments.containerd.containerd_config.as_path(),
            Engine::Podman => Registries::MAIN.as_ref(),
            Engine::Docker => daemon_json::CONFIG.as_ref(),
        });
        config.exists() || engine.version().is_some()
    };
    match arguments.engine {
        Some(engine) => vec![engine],
        None => Engine::ALL.into_iter().filter(is_there).collect(),
    }
}

impl Patient<'_> {
    /// The command that writes the files of an engine.
    fn setup(&self, engine: Engine, registry: &Host) -> String {
        let mut command = format!("shoal setup {engine} --mirror {} --registry {registry}", self.mirror);
        if self.containerd.containerd_config.as_os_str() != containerd::CONFIG && engine == Engine::Containerd
        {
            command += &format!(" --containerd-config {}", self.containerd.containerd_config.display());
        }
        if let Some(folder) = self.containerd.config_path.as_ref().filter(|_| engine == Engine::Containerd) {
            command += &format!(" --config-path {}", folder.display());
        }
        command
    }
}
