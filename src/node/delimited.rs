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

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::Cursor;

    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Said {
        #[prost(bytes = "vec", tag = "1")]
        what: Vec<u8>,
    }

    const BYTES_MAX: usize = 300;

    fn read_of(bytes: &[u8]) -> Result<Said, io::ErrorKind> {
        block_on(read(&mut Cursor::new(bytes), BYTES_MAX)).map_err(|error| error.kind())
    }

    #[test]
    fn messages_are_read_one_after_the_other() {
        let said = [0, 1, 120, BYTES_MAX - 3].map(|bytes| Said { what: vec![7; bytes] });
        let stream = said.iter().flat_map(Message::encode_length_delimited_to_vec).collect::<Vec<u8>>();
        let mut stream = Cursor::new(stream);
        for said in said {
            assert_eq!(block_on(read::<Said>(&mut stream, BYTES_MAX)).unwrap(), said);
        }
        let end = block_on(read::<Said>(&mut stream, BYTES_MAX)).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_message_or_too_long_is_an_error() {
        let too_long = Said { what: vec![7; BYTES_MAX] }.encode_length_delimited_to_vec();
        for (bytes, expected) in [
            (too_long.as_slice(), io::ErrorKind::InvalidData),
            (&[0xff, 0xff, 0xff, 0xff, 0x0f], io::ErrorKind::InvalidData),
            // A length that could be written shorter.
            (&[0x80, 0x00], io::ErrorKind::InvalidData),
            (&[1, 0xff], io::ErrorKind::InvalidData),
            (&[5, 1], io::ErrorKind::UnexpectedEof),
            (&[0x80], io::ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(read_of(bytes), Err(expected), "{bytes:?}");
        }
    }
}
