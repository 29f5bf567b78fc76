//! Where sockets are opened, and how many may be open.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};

use super::server::Listener;
use crate::config::{HttpConfig, Net};

/// Open files that are not connections of clients: segments of the store, the swarm, logs.
const OTHER_FILES: u64 = 2048;

/// Connections that wait to be accepted: who comes when it is full tries again a second later.
const BACKLOG: u32 = 4096;

/// Why there is nothing to listen at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {addr}")]
    Bind { addr: String, source: io::Error },
    #[error("cannot listen on {}: {reason}", .path.display())]
    Taken { path: PathBuf, reason: &'static str },
}

/// The registry's listener, and its address as the ready line has it: `http://127.0.0.1:5000`, `unix:/run/shoal.sock`.
pub async fn registry(config: &HttpConfig) -> Result<(Listener, String), ListenError> {
    match config.net {
        Net::Tcp => {
            let (listener, address) = tcp(&config.addr).await?;
            let scheme = if config.tls.is_some() { "https" } else { "http" };
            Ok((Listener::Tcp(listener), format!("{scheme}://{address}")))
        }
        Net::Unix => {
            let path = Path::new(&config.addr);
            let listener = unix(path).await?;
            // Fields of the ready line have no spaces.
            Ok((Listener::Unix(listener), format!("unix:{}", config.addr.replace(' ', "%20"))))
        }
    }
}

/// Binds the first address of `HOST:PORT` that can be; gives the port that was taken for 0.
pub async fn tcp(addr: &str) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |source| ListenError::Bind { addr: addr.to_owned(), source };
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in tokio::net::lookup_host(addr).await.map_err(failed)? {
        match bind(address) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// A socket for the daemon's user and group, in the place of one at which nobody listens any more.
async fn unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Bind { addr: path.display().to_string(), source };
    let taken = |reason| ListenError::Taken { path: path.to_owned(), reason };
    match tokio::fs::symlink_metadata(path).await {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(taken("there is a file that is no socket"));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tokio::fs::remove_file(path).await.map_err(failed)?;
            }
            _ => return Err(taken("another process listens there")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).await.map_err(failed)?;
    Ok(listener)
}

/// Raises the limit of open files as far as that goes without privileges, and returns how many connections fit, at most
/// `wanted`. Says so when that is fewer.
pub fn connections_that_fit(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let Rlimit { current: files, .. } = getrlimit(Resource::Nofile);
    tracing::debug!(before = ?current, files = ?files, "limit of open files");
    // No limit at all.
    let Some(files) = files else { return wanted };
    let room = files.saturating_sub(OTHER_FILES).max(files / 2);
    let fits = wanted.min(usize::try_from(room).unwrap_or(wanted));
    if fits < wanted {
        tracing::warn!(
            connections_max = fits,
            files,
            "fewer connections than {wanted} are served at once: raise the limit of open files (ulimit -n, LimitNOFILE=)"
        );
    }
    fits
}
