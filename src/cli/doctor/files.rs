//! The files of each engine, step by step as it reads them. Each gives back how that engine asks the mirror.

use std::path::{Path, PathBuf};

use super::{Asked, Patient, Report};
use crate::cli::engine::containerd::{self, ContainerdConfig};
use crate::cli::engine::daemon_json::{self, DaemonJson};
use crate::cli::engine::hosts_toml::{self, Hosts};
use crate::cli::engine::registries_conf::{self, Registries};
use crate::cli::engine::{Engine, EngineError, Version, read};
use crate::oci::Host;

/// The first containerd whose pulls go by the transfer service unless told otherwise. It takes a list of folders for
/// the name of one (containerd#12415).
const ONE_FOLDER_SINCE: Version = Version::new(2, 1);

pub(super) fn containerd(report: &mut Report, patient: &Patient<'_>) -> Asked {
    let version = Engine::Containerd.version();
    match version {
        Some(version) => report.ok(format!("version {version}")),
        None => report.note("its version is not known: there is no containerd on the path"),
    }
    let config = match ContainerdConfig::load(patient.root, &patient.containerd.containerd_config, version) {
        Ok(config) => config,
        Err(error) => {
            broken(report, &error);
            return Asked::Namespace;
        }
    };
    let folders = match &patient.containerd.config_path {
        Some(folder) => vec![folder.clone()],
        None => config.folders(),
    };
    config_path(report, &config, version, &folders);
    for registry in patient.registries {
        hosts(report, patient, Engine::Containerd, version, &folders, registry);
    }
    if let Some(folder) = folders.first() {
        let folder = folder.display();
        report.note(format!(
            "ctr looks for hosts.toml files only where it is told: ctr images pull --hosts-dir {folder}"
        ));
    }
    Asked::Namespace
}

fn broken(report: &mut Report, error: &EngineError) {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    report.wrong(format!("{error}{cause}"), "correct the file by hand");
}

/// Whether `config_path` says where the files are, in a way that all of containerd understands.
fn config_path(
    report: &mut Report,
    config: &ContainerdConfig,
    version: Option<Version>,
    folders: &[PathBuf],
) {
    let file = config.file.display();
    let Some(first) = folders.first() else {
        let lines = config.lines(Path::new(containerd::HOSTS_DIR));
        report.wrong(
            format!("config_path is not set in {file}: no hosts.toml is read"),
            format!("add to {file}, and restart containerd:\n{lines}"),
        );
        return;
    };
    let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    report.ok(format!("config_path is {}", names.join(" and ")));
    let setting = config.cri.as_ref().or(config.transfer.as_ref());
    if config.cri.is_none() && config.transfer.is_some() {
        report.note("config_path is that of the transfer service: pulls of Kubernetes do not go by it");
    }
    let one_folder = config.cri.is_none() || version.is_some_and(|version| version >= ONE_FOLDER_SINCE);
    if let Some(setting) = setting.filter(|_| folders.len() > 1 && one_folder) {
        let (first, file) = (first.display(), setting.file.display());
        report.wrong(
            "config_path is a list, which the transfer service takes for the name of one folder: it finds no file",
            format!("set config_path = \"{first}\" in {file}, and restart containerd"),
        );
    }
    if let Some(old) = &config.old_style {
        report.wrong(
            format!(
                "{} has registry.mirrors or registry.configs, beside which CRI refuses config_path",
                old.display()
            ),
            "move them to hosts.toml files, and restart containerd",
        );
    }
}

/// The `hosts.toml` of one registry: of the first folder that has one for it.
fn hosts(
    report: &mut Report,
    patient: &Patient<'_>,
    engine: Engine,
    version: Option<Version>,
    folders: &[PathBuf],
    registry: &Host,
) {
    if folders.is_empty() {
        return;
    }
    let setup = patient.setup(engine, registry);
    let found =
        folders.iter().find_map(|folder| containerd::host_folder(&patient.root.under(folder), registry));
    let path = found.map(|folder| folder.join(hosts_toml::FILE));
    let text = match path.as_deref().map(read).transpose() {
        Ok(text) => text.flatten(),
        Err(error) => return broken(report, &error),
    };
    let (Some(path), Some(text)) = (path, text) else {
        return report.wrong(format!("there is no hosts.toml for {registry}"), setup);
    };
    let path = path.display();
    let hosts = match Hosts::parse(&text, version) {
        Ok(hosts) => hosts,
        Err(reason) => {
            let mend = format!("correct it, or move it away and run: {setup}");
            return report.wrong(format!("{path} is ignored: {reason}"), mend);
        }
    };
    let server_is_mirror =
        hosts.server.as_ref().is_some_and(|server| server.parse().as_ref() == Ok(patient.mirror));
    let at = hosts.entries.iter().position(|entry| entry.is(patient.mirror));
    let before = report.steps.len();
    match at {
        None => report.wrong(format!("{path} does not name the mirror {}", patient.mirror), &setup),
        Some(at) if !hosts.entries[at].pulls() => {
            report.wrong(format!("{path} does not ask the mirror for tags and content"), &setup);
        }
        Some(0) => (),
        Some(_) => report.wrong(format!("{path} asks {} before the mirror", hosts.entries[0].url), &setup),
    }
    if server_is_mirror {
        let what = format!("{path} has the mirror as `server`: when it is down, nobody else is asked");
        report.wrong(what, &setup);
    }
    if report.steps.len() == before {
        let server = hosts.server.unwrap_or_else(|| registry.to_string());
        report.ok(format!("{path}: {} first, then {server}", patient.mirror));
    }
}

pub(super) fn podman(report: &mut Report, patient: &Patient<'_>) -> Asked {
    if let Some(version) = Engine::Podman.version() {
        report.ok(format!("version {version}"));
    }
    let registries = match Registries::load(patient.root) {
        Ok(registries) => registries,
        Err(error) => {
            broken(report, &error);
            return Asked::PathPrefix;
        }
    };
    for registry in patient.registries {
        let setup = patient.setup(Engine::Podman, registry);
        let location = registries_conf::location(patient.mirror, registry);
        let Some(entry) = registries.of(registry.as_str()) else {
            report.wrong(format!("no file has a mirror for {registry}"), setup);
            continue;
        };
        let (file, mirrors) = (entry.file.display(), entry.mirrors());
        match mirrors.iter().position(|(mirror, _)| *mirror == location) {
            _ if entry.is_blocked() => {
                report
                    .wrong(format!("{file} has {registry} blocked"), format!("remove `blocked` from {file}"));
            }
            None => {
                report.wrong(format!("{file}, the last with {registry}, does not name {location}"), setup)
            }
            Some(0) if patient.mirror.is_plain() && !mirrors[0].1 => {
                report.wrong(
                    format!("{file} lacks `insecure = true` for {location}, which is plain HTTP"),
                    setup,
                );
            }
            Some(0) => report.ok(format!("{file}: {location} first, then {registry}")),
            Some(_) => report.wrong(format!("{file} asks {} before the mirror", mirrors[0].0), setup),
        }
    }
    Asked::PathPrefix
}

pub(super) fn docker(report: &mut Report, patient: &Patient<'_>) -> Asked {
    let version = Engine::Docker.version();
    if let Some(version) = version {
        report.ok(format!("version {version}"));
    }
    let path = patient.root.under(daemon_json::CONFIG);
    let text = match read(&path) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) => {
            broken(report, &error);
            return Asked::DefaultRegistry;
        }
    };
    let json = match DaemonJson::parse(&text) {
        Ok(json) => json,
        Err(reason) => {
            broken(report, &EngineError::Invalid { path, reason });
            return Asked::DefaultRegistry;
        }
    };
    let asked = if json.is_classic(version) { Asked::DefaultRegistry } else { Asked::Namespace };
    let path = path.display();
    let folders = [PathBuf::from(daemon_json::HOSTS_DIR)];
    for registry in patient.registries {
        let setup = patient.setup(Engine::Docker, registry);
        let is_hub = registry.as_str() == "docker.io";
        let by_hosts = !is_hub || patient.root.under(daemon_json::HUB_HOSTS).exists();
        if by_hosts && json.reads_hosts(version) {
            hosts(report, patient, Engine::Docker, None, &folders, registry);
        } else if !is_hub {
            report.note(format!("this Docker has no mirrors of {registry}, only of docker.io"));
        } else if !json.mirrors.iter().any(|url| url.parse().as_ref() == Ok(patient.mirror)) {
            report.wrong(format!("registry-mirrors of {path} does not name {}", patient.mirror), setup);
        } else if !json.asks_first(patient.mirror) {
            report.wrong(format!("{path} asks {} before the mirror", json.mirrors[0]), setup);
        } else if !json.reaches(patient.mirror) {
            let name = patient.mirror.authority();
            report.wrong(format!("insecure-registries of {path} lacks {name}, which is plain HTTP"), setup);
        } else {
            report.ok(format!("{path}: {} first, then docker.io", patient.mirror));
        }
    }
    asked
}
