//! What a registry is told of who we are: from the config, from a credential helper, or from a config.json of Docker.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use multibase::Base;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::UpstreamError;
use crate::config::{Credentials, Secret};
use crate::oci::Host;

const DOCKER_HUB: &str = "docker.io";
/// What Docker calls Docker Hub where it keeps credentials.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name that says that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
const HELPER_OUTPUT_BYTES_MAX: u64 = 64 * 1024;
const DOCKER_CONFIG_BYTES_MAX: u64 = 4 << 20;
/// How long the answer of a helper is believed.
const HELPER_TTL: Duration = Duration::from_secs(300);

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
    last: Mutex<Option<(Stamp, Option<Login>)>>,
}

/// For how long a login may be used again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stamp {
    /// The file has not been changed.
    File(Option<SystemTime>),
    Until(Instant),
}

impl Logins {
    pub(super) fn new(host: Host, credentials: Credentials) -> Self {
        Self { host, credentials, last: Mutex::default() }
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
        match &self.credentials.docker_config {
            Some(path) => self.look_into_docker_config(path).await,
            None => Ok(None),
        }
    }

    async fn ask_helper(&self, helper: &str) -> Result<Option<Login>, UpstreamError> {
        let mut last = self.last.lock().await;
        if let Some((Stamp::Until(until), login)) = &*last
            && Instant::now() < *until
        {
            return Ok(login.clone());
        }
        let login = run_helper(helper, self.key()).await.map_err(|reason| self.failed(reason))?;
        *last = Some((Stamp::Until(Instant::now() + HELPER_TTL), login.clone()));
        Ok(login)
    }

    async fn look_into_docker_config(&self, path: &Path) -> Result<Option<Login>, UpstreamError> {
        let unreadable = |error: std::io::Error| self.failed(format!("{}: {error}", path.display()));
        let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
        let stamp = Stamp::File(metadata.modified().ok());
        {
            let last = self.last.lock().await;
            if let Some((known, login)) = &*last
                && *known == stamp
            {
                return Ok(login.clone());
            }
        }
        if metadata.len() > DOCKER_CONFIG_BYTES_MAX {
            return Err(self.failed(format!("{} is too large", path.display())));
        }
        let text = tokio::fs::read(path).await.map_err(unreadable)?;
        let config: DockerConfig = serde_json::from_slice(&text)
            .map_err(|error| self.failed(format!("{}: {error}", path.display())))?;
        match config.find(&self.host) {
            Found::Login(login) => {
                *self.last.lock().await = Some((stamp, Some(login.clone())));
                Ok(Some(login))
            }
            Found::Helper(helper) => self.ask_helper(&helper).await,
            Found::Nothing => Ok(None),
        }
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
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Debug)]
enum Found {
    Login(Login),
    Helper(String),
    Nothing,
}

impl DockerConfig {
    /// As Docker looks: the helper of the registry, the store of all, then what the file itself has.
    fn find(&self, host: &Host) -> Found {
        let names = |name: &str| {
            let bare = name.trim_start_matches("https://").trim_start_matches("http://");
            let bare = bare.split('/').next().unwrap_or_default();
            bare == host.as_str() || (host.as_str() == DOCKER_HUB && name == DOCKER_HUB_KEY)
        };
        if let Some((_, helper)) = self.cred_helpers.iter().find(|(name, _)| names(name)) {
            return Found::Helper(helper.clone());
        }
        if let Some(store) = self.creds_store.clone().filter(|store| !store.is_empty()) {
            return Found::Helper(store);
        }
        let auth = self.auths.iter().find(|(name, _)| names(name)).map(|(_, auth)| auth);
        let Some(auth) = auth else { return Found::Nothing };
        if let Some(token) = auth.identitytoken.clone().filter(|token| !token.is_empty()) {
            return Found::Login(Login::RefreshToken(Secret::new(token)));
        }
        let decoded = auth.auth.as_deref().and_then(|auth| Base::Base64Pad.decode(auth).ok());
        let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) => {
                let password = password.trim_end_matches('\0').to_owned();
                Found::Login(Login::Password(user.to_owned(), Secret::new(password)))
            }
            None => Found::Nothing,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-NAME`, without a shell (docker-credential-helpers, "Development").
async fn run_helper(name: &str, key: &str) -> Result<Option<Login>, String> {
    let program = PathBuf::from(format!("docker-credential-{name}"));
    let run = async {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(key.as_bytes()).await?;
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
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let error = run_helper("shoal-test-nowhere", "a.example").await.unwrap_err();
        assert!(error.contains("docker-credential-shoal-test-nowhere"), "{error}");
    }
}
