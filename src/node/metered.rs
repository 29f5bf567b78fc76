//! A stream whose bytes count as those of a transfer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::connections::Usage;

pub(super) struct Metered<S> {
    stream: S,
    /// Of its connection.
    usage: Usage,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, usage: Usage) -> Self {
        Self { stream, usage }
    }

    fn note(&self, moved: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &moved {
            self.usage.moved(*bytes, Instant::now());
        }
        moved
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.note(read)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read_vectored(cx, bufs);
        self.note(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::io::Cursor;
    use futures::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_read_and_what_is_written_are_a_transfer_and_waiting_is_none() {
        const BYTES: usize = 1 << 20;
        let is_of_use = async |reads: usize, writes: usize| {
            let usage = Usage::new(Instant::now());
            let mut stream = Metered::new(Cursor::new(vec![0; BYTES]), usage.clone());
            stream.read_exact(&mut vec![0; reads]).await.unwrap();
            stream.write_all(&vec![0; writes]).await.unwrap();
            stream.flush().await.unwrap();
            let now = usage.is_of_use(Instant::now());
            tokio::time::advance(Duration::from_secs(60)).await;
            (now, usage.is_of_use(Instant::now()))
        };
        assert_eq!(is_of_use(BYTES / 2, 0).await, (true, false));
        assert_eq!(is_of_use(0, BYTES / 2).await, (true, false));
        assert_eq!(is_of_use(10, 10).await, (false, false));
    }
}
