//! Writes tar archives as a stream: what goes into a member may come from the network, and standard output has no way
//! back. The same members give the same bytes.

use anyhow::Context;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Headers, and the ends of members, are padded to this.
const BLOCK_BYTES: u64 = 512;
/// Two empty blocks end an archive.
const END: [u8; 2 * BLOCK_BYTES as usize] = [0; 2 * BLOCK_BYTES as usize];

/// Writes the header of a member. Its bytes have to follow, then [`end`].
pub(in crate::cli) async fn begin(
    out: &mut (impl AsyncWrite + Unpin),
    name: &str,
    size_bytes: u64,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).with_context(|| format!("member name {name}"))?;
    header.set_size(size_bytes);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    out.write_all(header.as_bytes()).await.context("the archive is not written")
}

/// Pads a member.
pub(in crate::cli) async fn end(out: &mut (impl AsyncWrite + Unpin), size_bytes: u64) -> anyhow::Result<()> {
    let padding = size_bytes.next_multiple_of(BLOCK_BYTES) - size_bytes;
    // Less than a block, which fits any usize.
    let padding = &END[..usize::try_from(padding).unwrap_or_default()];
    out.write_all(padding).await.context("the archive is not written")
}

/// Writes a whole member.
pub(in crate::cli) async fn append(
    out: &mut (impl AsyncWrite + Unpin),
    name: &str,
    bytes: &[u8],
) -> anyhow::Result<()> {
    begin(out, name, bytes.len() as u64).await?;
    out.write_all(bytes).await.context("the archive is not written")?;
    end(out, bytes.len() as u64).await
}

/// Ends the archive.
pub(in crate::cli) async fn finish(out: &mut (impl AsyncWrite + Unpin)) -> anyhow::Result<()> {
    out.write_all(&END).await.context("the archive is not written")?;
    out.flush().await.context("the archive is not written")
}
