//! What a registry is told of who we are: from the config, from a credential helper, or from a config.json of Docker.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use moka::future::Cache;
use multibase::Base;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::UpstreamError;
use crate::config::{Credentials, Secret};
use crate::oci::Host;

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOSTS: &[&str] = &["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What Docker calls Docker Hub where it keeps credentials.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name that says that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
const HELPER_OUTPUT_BYTES_MAX: u64 = 64 * 1024;
const DOCKER_CONFIG_BYTES_MAX: u64 = 4 << 20;
/// How long the answer of a helper is believed …
const HELPER_TTL: Duration = Duration::from_secs(300);
/// … of which one is asked per registry, or two while a config.json changes.
const HELPERS_MAX: u64 = 2;

/// Who we are, to one registry.
#[derive(Clone, Debug)]
pub(super) enum Login {
    Password(String, Secret),
    /// To be exchanged at the token server.
    RefreshToken(Secret),
}

/// Where it comes from, and what came last.
pub(super) struct Logins {
    host: Host,
    credentials: Credentials,
    /// By the name of the helper.
    helpers: Cache<String, Option<Login>>,
    docker_config: Mutex<Option<(Stamp, Found)>>,
}

/// When a file was changed, and its size in bytes: while it is the same, the file is.
type Stamp = (Option<SystemTime>, u64);

impl Logins {
    pub(super) fn new(host: Host, credentials: Credentials) -> Self {
        let helpers = Cache::builder().max_capacity(HELPERS_MAX).time_to_live(HELPER_TTL).build();
        Self { host, credentials, helpers, docker_config: Mutex::default() }
    }

    /// `None`: nobody in particular.
    pub(super) async fn get(&self) -> Result<Option<Login>, UpstreamError> {
        if let Some(token) = &self.credentials.identity_token {
            return Ok(Some(Login::RefreshToken(token.clone())));
        }
        if let Some((user, password)) = &self.credentials.password {
            return Ok(Some(Login::Password(user.clone(), password.clone())));
        }
        if let Some(helper) = &self.credentials.helper {
            return self.ask_helper(helper).await;
        }
        let Some(path) = &self.credentials.docker_config else { return Ok(None) };
        match self.look_into_docker_config(path).await? {
            Found::Login(login) => Ok(Some(login)),
            Found::Helper(helper) => self.ask_helper(&helper).await,
            Found::Nothing => Ok(None),
        }
    }

    /// What was given last did not do: a helper is asked again.
    pub(super) fn forget(&self) {
        self.helpers.invalidate_all();
    }

    /// Runs it once for all who wait.
    async fn ask_helper(&self, helper: &str) -> Result<Option<Login>, UpstreamError> {
        let run = async {
            match helper.contains('/') {
                true => Err(format!("docker-credential-{helper} is no name of a helper")),
                false => run_helper(format!("docker-credential-{helper}").as_ref(), self.key()).await,
            }
        };
        let login = self.helpers.try_get_with_by_ref(helper, run).await;
        login.map_err(|reason| self.failed((*reason).clone()))
    }

    async fn look_into_docker_config(&self, path: &Path) -> Result<Found, UpstreamError> {
        let unreadable = |error: std::io::Error| self.failed(format!("{}: {error}", path.display()));
        let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
        let stamp = (metadata.modified().ok(), metadata.len());
        let known = self.docker_config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((known, found)) = known
            && known == stamp
        {
            return Ok(found);
        }
        if metadata.len() > DOCKER_CONFIG_BYTES_MAX {
            return Err(self.failed(format!("{} is too large", path.display())));
        }
        let text = tokio::fs::read(path).await.map_err(unreadable)?;
        // What serde says of it might have a part of a secret in it.
        let config: DockerConfig = serde_json::from_slice(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            self.failed(format!(
                "{} is no config.json of Docker: line {line}, column {column}",
                path.display()
            ))
        })?;
        let found = config.find(&self.host);
        *self.docker_config.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, found.clone()));
        Ok(found)
    }

    /// What a store of credentials calls this registry.
    fn key(&self) -> &str {
        match self.host.as_str() {
            DOCKER_HUB => DOCKER_HUB_KEY,
            host => host,
        }
    }

    fn failed(&self, reason: String) -> UpstreamError {
        UpstreamError::Credentials { host: self.host.clone(), reason }
    }
}

/// The parts of Docker's config.json that name credentials.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

/// Kubernetes writes the user and the password beside `auth`, or instead of it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Clone, Debug)]
enum Found {
    Login(Login),
    Helper(String),
    Nothing,
}

impl DockerConfig {
    /// As Docker looks: the helper of the registry, the store of all, then what the file itself has.
    fn find(&self, host: &Host) -> Found {
        if let Some((_, helper)) = self.cred_helpers.iter().find(|(key, _)| names(key, host)) {
            return Found::Helper(helper.clone());
        }
        if let Some(store) = self.creds_store.clone().filter(|store| !store.is_empty()) {
            return Found::Helper(store);
        }
        let auth = self.auths.iter().find(|(key, _)| names(key, host));
        auth.and_then(|(_, auth)| auth.login()).map_or(Found::Nothing, Found::Login)
    }
}

impl DockerAuth {
    fn login(&self) -> Option<Login> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Some(Login::RefreshToken(Secret::new(token)));
        }
        let Some(auth) = given(&self.auth) else {
            let password = Secret::new(self.password.clone().unwrap_or_default());
            return given(&self.username).map(|user| Login::Password(user, password));
        };
        let decoded = String::from_utf8(Base::Base64Pad.decode(auth).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        let password = Secret::new(password.trim_end_matches('\0').to_owned());
        Some(Login::Password(user.to_owned(), password))
    }
}

/// Whether a key of config.json means this registry as a whole. Podman writes keys for single repositories too.
fn names(key: &str, host: &Host) -> bool {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://");
    let (name, path) = bare.split_once('/').unwrap_or((bare, ""));
    let is_whole = matches!(path.trim_end_matches('/'), "" | "v1" | "v2");
    let is_hub = host.as_str() == DOCKER_HUB && DOCKER_HUB_HOSTS.contains(&name);
    is_whole && (name == host.as_str() || is_hub)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Asks a credential helper, without a shell (docker-credential-helpers, "Development").
async fn run_helper(program: &Path, key: &str) -> Result<Option<Login>, String> {
    let run = async {
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that knows one registry only need not listen.
            match stdin.write_all(key.as_bytes()).await {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
                _ => (),
            }
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(HELPER_OUTPUT_BYTES_MAX).read_to_end(&mut output).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, output))
    };
    let late = |_| format!("{} gave no answer within {} s", program.display(), HELPER_TIMEOUT.as_secs());
    let run = timeout(HELPER_TIMEOUT, run).await.map_err(late)?;
    let (status, output) = run.map_err(|error| format!("{}: {error}", program.display()))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        // So the helpers say that they have nothing.
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(format!("{} ended with {status}", program.display()));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output)
        .map_err(|_| format!("{} answered what is no credential", program.display()))?;
    let secret = Secret::new(answer.secret);
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Login::RefreshToken(secret),
        _ => Login::Password(answer.username, secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(config: &str, host: &str) -> String {
        let config: DockerConfig = serde_json::from_str(config).unwrap();
        match config.find(&host.parse().unwrap()) {
            Found::Login(Login::Password(user, password)) => format!("{user}:{}", password.reveal()),
            Found::Login(Login::RefreshToken(token)) => format!("token {}", token.reveal()),
            Found::Helper(helper) => format!("helper {helper}"),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_config_of_docker_is_read_as_docker_reads_it() {
        let auths = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "ghcr.io": {"identitytoken": "t"}},
            "credHelpers": {"quay.io": "pass"}}"#;
        assert_eq!(find(auths, "docker.io"), "u:p");
        assert_eq!(find(auths, "ghcr.io"), "token t");
        assert_eq!(find(auths, "quay.io"), "helper pass");
        assert_eq!(find(auths, "other.example"), "nothing");
        assert_eq!(find(r#"{"credsStore": "secretservice"}"#, "docker.io"), "helper secretservice");
        assert_eq!(find(r#"{"auths": {"a.example": {"auth": "!!"}}}"#, "a.example"), "nothing");
        let kubernetes = r#"{"auths": {"a.example:5000": {"username": "u", "password": "p:q"}}}"#;
        assert_eq!(find(kubernetes, "a.example:5000"), "u:p:q");
        assert_eq!(find(kubernetes, "a.example"), "nothing");
        assert_eq!(find(r#"{"auths": {"a.example/team": {"auth": "dTpw"}}}"#, "a.example"), "nothing");
    }

    /// What a helper answers to whoever runs it as `sh -c SCRIPT`, in our words.
    async fn ask(script: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-test");
        // Written by another process: a program that this one has open for writing, or a child of it, cannot be run.
        let write = format!("cat > '{0}' && chmod 755 '{0}'", program.display());
        let mut writer =
            std::process::Command::new("sh").args(["-c", &write]).stdin(Stdio::piped()).spawn().unwrap();
        let text = format!("#!/bin/sh\n{script}\n");
        std::io::Write::write_all(&mut writer.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        let login = run_helper(&program, "a.example").await?;
        Ok(match login {
            Some(Login::Password(user, password)) => format!("{user}:{}", password.reveal()),
            Some(Login::RefreshToken(token)) => format!("token {}", token.reveal()),
            None => "nothing".to_owned(),
        })
    }

    #[tokio::test]
    async fn a_helper_is_told_the_registry_and_tells_the_login() {
        let echo =
            r#"[ "$1" = get ] && read key; printf '{"ServerURL":"x","Username":"u","Secret":"%s"}' "$key""#;
        assert_eq!(ask(echo).await.as_deref(), Ok("u:a.example"));
        let token = r#"printf '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(ask(token).await.as_deref(), Ok("token t"), "though it does not listen");
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(ask(none).await.as_deref(), Ok("nothing"));
    }

    #[tokio::test]
    async fn a_helper_that_misbehaves_is_named_and_its_output_is_not_shown() {
        for script in ["echo hunter2", "echo hunter2; exit 3", "yes hunter2", "exit 0"] {
            let error = ask(script).await.unwrap_err();
            assert!(error.contains("docker-credential-test") && !error.contains("hunter2"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let credentials =
            Credentials { helper: Some("shoal-test-nowhere".to_owned()), ..Credentials::default() };
        let error = Logins::new("a.example".parse().unwrap(), credentials).get().await.unwrap_err();
        assert!(error.to_string().contains("docker-credential-shoal-test-nowhere"), "{error}");
        assert!(error.to_string().contains("a.example"), "{error}");
    }

    #[tokio::test]
    async fn a_path_in_a_config_of_docker_is_no_helper() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"credsStore": "../../bin/sh"}"#).unwrap();
        let docker_config = Some(file.path().to_owned());
        let credentials = Credentials { docker_config, ..Credentials::default() };
        let error = Logins::new("a.example".parse().unwrap(), credentials).get().await.unwrap_err();
        assert!(error.to_string().contains("is no name of a helper"), "{error}");
    }
}
