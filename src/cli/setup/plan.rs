//! What is to be written for each engine. Reads files, and changes none.

use std::path::{Path, PathBuf};

use super::change::Change;
use crate::cli::engine::certificates;
use crate::cli::engine::containerd::{self, ContainerdConfig};
use crate::cli::engine::daemon_json::{self, DaemonJson};
use crate::cli::engine::hosts_toml::{self, Wanted};
use crate::cli::engine::registries_conf::{self, Registries};
use crate::cli::engine::{Engine, EngineError, MirrorUrl, Root, Version, list, read, registry_url};
use crate::config::PullThrough;
use crate::oci::Host;

const DOCKER_HUB: &str = "docker.io";

/// For whom the files are written.
pub(super) struct Target<'a> {
    pub(super) root: &'a Root,
    pub(super) mirror: &'a MirrorUrl,
    pub(super) registries: &'a [Host],
    /// Somebody named these registries; else they are what is done in the place of all.
    pub(super) are_named: bool,
    /// The mirror takes requests for any registry.
    pub(super) all: bool,
    /// The mirror's authority, in PEM, if it is not one that the system trusts.
    pub(super) authority: Option<&'a str>,
    /// What the mirror asks other registries for, if that is known.
    pub(super) configured: Option<&'a PullThrough>,
}

impl Target<'_> {
    /// Where a registry itself is asked: as the mirror does, if it is known how.
    fn upstream(&self, registry: &Host) -> String {
        let known = self.configured.and_then(|configured| configured.registries.get(registry));
        let endpoint = known.and_then(|registry| registry.endpoints.first());
        endpoint.map_or_else(
            || registry_url(registry),
            |endpoint| endpoint.as_str().trim_end_matches('/').to_owned(),
        )
    }

    /// Says of an engine that has to be told each registry for which ones it was.
    fn say_which(&self, plan: &mut Plan, engine: Engine) {
        if self.all {
            let names: Vec<_> = self.registries.iter().map(Host::as_str).collect();
            plan.warnings.push(format!(
                "mirror.registries has \"*\", but {engine} has to be told each registry: this is for {}; name others with \
                 --registry, such as --registry ghcr.io",
                names.join(", ")
            ));
        }
    }

    /// Whether the mirror takes a request that names no registry for one of this.
    fn has_default(&self, registry: &str) -> bool {
        let default = self.configured.and_then(|configured| configured.default_registry.as_ref());
        default.is_some_and(|default| default.as_str() == registry)
    }
}

/// What is to be done, and what a person has to know of it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    /// What was done, where that does not show.
    pub(super) notes: Vec<String>,
    /// Settings that get in the way.
    pub(super) warnings: Vec<String>,
    /// What is left to be done by hand.
    pub(super) steps: Vec<String>,
}

/// Where containerd's files are, if not where they usually are.
pub(super) struct ContainerdPaths<'a> {
    pub(super) config: &'a Path,
    /// In the place of the `config_path` that the config has.
    pub(super) hosts: Option<&'a Path>,
}

impl ContainerdPaths<'_> {
    /// The folder for `hosts.toml` files: the first of those that containerd looks through.
    fn folder(&self, config: &ContainerdConfig) -> PathBuf {
        let configured = || config.folders().into_iter().next();
        self.hosts
            .map(Path::to_owned)
            .or_else(configured)
            .unwrap_or_else(|| PathBuf::from(containerd::HOSTS_DIR))
    }
}

pub(super) fn containerd(target: &Target<'_>, paths: &ContainerdPaths<'_>) -> Result<Plan, EngineError> {
    let version = Engine::Containerd.version();
    let config = ContainerdConfig::load(target.root, paths.config, version)?;
    let folder = paths.folder(&config);
    let mut plan = Plan::default();
    let ca = authority(&mut plan, target, &folder)?;
    let named = Target { registries: if target.are_named { target.registries } else { &[] }, ..*target };
    hosts(&mut plan, if target.all { &named } else { target }, &folder, version, ca.as_deref())?;
    if target.all {
        all_hosts(&mut plan, target, &folder, version, ca.as_deref())?;
    }
    if config.folders().is_empty() {
        let lines = config.lines(&folder);
        let step = format!("add to {}, and restart containerd:\n\n{lines}\n", config.file.display());
        plan.steps.push(step);
    } else if !config.folders().contains(&folder) {
        plan.warnings.push(format!(
            "containerd looks in {}, not in {}",
            config
                .folders()
                .iter()
                .map(|folder| folder.display().to_string())
                .collect::<Vec<_>>()
                .join(" and "),
            folder.display()
        ));
    }
    if let Some(file) = &config.old_style {
        plan.warnings.push(format!(
            "{} has registry.mirrors or registry.configs, beside which containerd refuses a config_path: \
             move them to hosts.toml files",
            file.display()
        ));
    }
    Ok(plan)
}

/// The mirror's authority below a folder of certificates; its path, as the engine knows it.
fn authority(plan: &mut Plan, target: &Target<'_>, folder: &Path) -> Result<Option<String>, EngineError> {
    let Some(pem) = target.authority else { return Ok(None) };
    let known = certificates::place(folder, target.mirror);
    let path = target.root.under(&known);
    plan.changes.push(Change::write(path.clone(), read(&path)?, pem.to_owned()));
    Ok(Some(known.display().to_string()))
}

/// The `hosts.toml` for all registries that have no folder of their own.
fn all_hosts(
    plan: &mut Plan,
    target: &Target<'_>,
    folder: &Path,
    version: Option<Version>,
    ca: Option<&str>,
) -> Result<(), EngineError> {
    let config_path = target.root.under(folder);
    let place = containerd::default_folder(&config_path);
    let wanted = Wanted { mirror: target.mirror, upstream: None, ca, version };
    host(plan, &place, &wanted)?;
    let ours = plan.changes.iter().filter_map(|change| change.path().parent()).collect::<Vec<_>>();
    let others =
        list(&config_path)?.into_iter().filter(|name| !ours.contains(&config_path.join(name).as_path()));
    let others: Vec<String> = others.collect();
    plan.notes.push("this is for all registries: the mirror is asked first for each".to_owned());
    if !others.is_empty() {
        plan.warnings.push(format!(
            "{} in {} have folders of their own, which go before the one for all: name them with --registry",
            others.join(", "),
            config_path.display()
        ));
    }
    Ok(())
}

/// A `hosts.toml` for each registry below `folder`.
fn hosts(
    plan: &mut Plan,
    target: &Target<'_>,
    folder: &Path,
    version: Option<Version>,
    ca: Option<&str>,
) -> Result<(), EngineError> {
    let config_path = target.root.under(folder);
    for registry in target.registries {
        let own = containerd::host_folders(&config_path, registry);
        let (default, own) = own.split_last().map_or((None, &own[..]), |(last, own)| (Some(last), own));
        let there = own.iter().find(|folder| folder.is_dir());
        let Some(place) = there.or_else(|| own.last()) else { continue };
        if let Some(default) = default.filter(|default| there.is_none() && default.is_dir()) {
            let (default, place) = (default.display(), place.display());
            plan.warnings.push(format!("{default} no longer counts for {registry}: it has {place}"));
        }
        let upstream = target.upstream(registry);
        let wanted = Wanted { mirror: target.mirror, upstream: Some(&upstream), ca, version };
        host(plan, place, &wanted)?;
    }
    Ok(())
}

/// The `hosts.toml` in one folder.
fn host(plan: &mut Plan, place: &Path, wanted: &Wanted<'_>) -> Result<(), EngineError> {
    let certificates = containerd::certificates(place)?;
    if !certificates.is_empty() {
        plan.warnings.push(format!(
            "{} in {} no longer count once there is a hosts.toml: name them in it, as `ca` and `client`",
            certificates.join(", "),
            place.display()
        ));
    }
    let path = place.join(hosts_toml::FILE);
    let before = read(&path)?;
    let after = match &before {
        Some(text) => hosts_toml::with_mirror(text, wanted),
        None => hosts_toml::new(wanted),
    };
    let after = after.map_err(|reason| EngineError::Invalid { path: path.clone(), reason })?;
    plan.changes.push(Change::write(path, before, after));
    Ok(())
}

pub(super) fn podman(target: &Target<'_>) -> Result<Plan, EngineError> {
    let mut plan = Plan::default();
    target.say_which(&mut plan, Engine::Podman);
    authority(&mut plan, target, Path::new(certificates::PODMAN))?;
    let path = target.root.under(registries_conf::OURS);
    let all = Registries::load(target.root)?;
    let before = read(&path)?;
    let mut after = before.clone();
    for registry in target.registries {
        let taken_over = all.before(&path, registry);
        let text = registries_conf::with_mirror(after.as_deref(), registry, target.mirror, taken_over);
        after = Some(text.map_err(|reason| EngineError::Invalid { path: path.clone(), reason })?);
        if let Some(entry) = taken_over {
            plan.warnings.push(format!(
                "what {} says of {registry} is taken over into {}, which takes its place",
                entry.file.display(),
                path.display()
            ));
        }
        plan.warnings.extend(all.above(&path, registry).into_iter().map(|entry| {
            format!("{} goes before ours for {}: add the mirror there", entry.file.display(), entry.prefix)
        }));
    }
    if let Some(after) = after {
        plan.changes.push(Change::write(path, before, after));
    }
    plan.steps.push("for CRI-O: systemctl reload crio; podman reads the files at each pull".to_owned());
    Ok(plan)
}

pub(super) fn docker(target: &Target<'_>) -> Result<Plan, EngineError> {
    let mut plan = Plan::default();
    target.say_which(&mut plan, Engine::Docker);
    let ca = authority(&mut plan, target, Path::new(daemon_json::HOSTS_DIR))?;
    let path = target.root.under(daemon_json::CONFIG);
    let version = Engine::Docker.version();
    let invalid = |reason| EngineError::Invalid { path: path.clone(), reason };
    let before = read(&path)?;
    let json = DaemonJson::parse(before.as_deref().unwrap_or_default()).map_err(invalid)?;
    let (hub, others): (Vec<Host>, Vec<Host>) =
        target.registries.iter().cloned().partition(|registry| registry.as_str() == DOCKER_HUB);
    if !hub.is_empty() {
        let after = daemon_json::with_mirror(before.as_deref().unwrap_or_default(), target.mirror);
        plan.changes.push(Change::write(path.clone(), before, after.map_err(invalid)?));
        plan.steps.push("systemctl reload docker".to_owned());
        if json.is_classic(version) && !target.has_default(DOCKER_HUB) {
            plan.steps.push(
                "have mirror.defaultregistry: docker.io in Shoal's config: this Docker does not say which registry it means"
                    .to_owned(),
            );
        }
    }
    if json.reads_hosts(version) {
        // For docker.io such a file goes before registry-mirrors, where there is one.
        let hub_file = target.root.under(daemon_json::HUB_HOSTS);
        let hub = hub.into_iter().filter(|_| hub_file.exists());
        let registries: Vec<_> = hub.chain(others).collect();
        let target = Target { registries: &registries, ..*target };
        hosts(&mut plan, &target, Path::new(daemon_json::HOSTS_DIR), None, ca.as_deref())?;
    } else if !others.is_empty() {
        let names: Vec<_> = others.iter().map(Host::as_str).collect();
        plan.warnings.push(format!(
            "nothing is done for {}: with its own image store Docker has mirrors of docker.io only; \
             that of containerd is the default from version 29 on",
            names.join(", ")
        ));
    }
    Ok(plan)
}

/// Every file that setup may have made or changed for an engine.
pub(super) fn undo(
    root: &Root,
    engine: Engine,
    paths: &ContainerdPaths<'_>,
    only: &[Host],
) -> Result<Plan, EngineError> {
    let files = match engine {
        Engine::Containerd => {
            let config = ContainerdConfig::load(root, paths.config, Engine::Containerd.version())?;
            hosts_files(&root.under(paths.folder(&config)), only)?
        }
        Engine::Podman => {
            let mut files = authorities(&root.under(certificates::PODMAN), only)?;
            files.push(root.under(registries_conf::OURS));
            files
        }
        Engine::Docker => {
            let mut files = hosts_files(&root.under(daemon_json::HOSTS_DIR), only)?;
            files.push(root.under(daemon_json::CONFIG));
            files
        }
    };
    let changes = files.into_iter().map(Change::undo).filter_map(Result::transpose);
    Ok(Plan { changes: changes.collect::<Result<_, _>>()?, ..Plan::default() })
}

/// The `hosts.toml` files below a folder: of some registries, or of all, with the authorities beside them.
fn hosts_files(folder: &Path, only: &[Host]) -> Result<Vec<PathBuf>, EngineError> {
    let default = containerd::default_folder(folder);
    let folders = only.iter().flat_map(|registry| containerd::host_folders(folder, registry));
    let mut folders: Vec<_> = folders.filter(|folder| *folder != default).collect();
    if only.is_empty() {
        folders = list(folder)?.into_iter().map(|name| folder.join(name)).collect();
    }
    let files = folders.into_iter().map(|folder| folder.join(hosts_toml::FILE));
    Ok(files.chain(authorities(folder, only)?).collect())
}

/// The authorities below a folder of certificates; none if only some registries are meant, since the others need them.
fn authorities(folder: &Path, only: &[Host]) -> Result<Vec<PathBuf>, EngineError> {
    if !only.is_empty() {
        return Ok(Vec::new());
    }
    Ok(list(folder)?.into_iter().map(|name| folder.join(name).join(certificates::FILE)).collect())
}
