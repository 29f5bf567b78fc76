//! Protobuf messages behind their length, as most protocols of libp2p have them.

use std::io;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt};
use prost::Message;

/// The longest length prefix that may be read.
const LENGTH_BYTES_MAX: usize = 3;

/// Reads a message of at most `bytes_max` behind its length.
pub(super) async fn read<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> io::Result<M> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut prefix = [0; LENGTH_BYTES_MAX];
    let mut prefix_bytes = 0;
    loop {
        let Some(byte) = prefix.get_mut(prefix_bytes..=prefix_bytes) else {
            return Err(invalid(format!("a message longer than {bytes_max} bytes")));
        };
        stream.read_exact(byte).await?;
        prefix_bytes += 1;
        if prefix[prefix_bytes - 1] & 0x80 == 0 {
            break;
        }
    }
    let (size_bytes, _) = unsigned_varint::decode::usize(&prefix[..prefix_bytes])
        .map_err(|error| invalid(error.to_string()))?;
    if size_bytes > bytes_max {
        return Err(invalid(format!("a message of {size_bytes} bytes, where {bytes_max} are allowed")));
    }
    let mut message = vec![0; size_bytes];
    stream.read_exact(&mut message).await?;
    M::decode(Bytes::from(message)).map_err(|error| invalid(error.to_string()))
}
