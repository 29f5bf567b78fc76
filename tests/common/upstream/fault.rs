//! What an upstream does wrong, and to which requests.

/// What is wrong with an answer. Positions are those in the body of the answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status and these header lines, such as `retry-after: 1`, in the place of the answer.
    Status(u16, &'static str),
    /// These header lines besides.
    With(&'static str),
    /// Without this header.
    Without(&'static str),
    /// No header before [`super::Upstream::release`].
    HoldHeader,
    /// Nothing behind so many bytes before [`super::Upstream::release`].
    HoldAfter(usize),
    /// An end of the connection (FIN) after so many bytes.
    EndAfter(usize),
    /// The same, but not before [`super::Upstream::release`].
    HoldThenEndAfter(usize),
    /// A reset of the connection after so many bytes.
    ResetAfter(usize),
    /// A reset in the place of the header.
    Reset,
    /// Another byte at this place of the blob, wherever the answer begins.
    WrongByteAt(usize),
    /// A `Content-Length` that is off by so much.
    LengthOff(i64),
    /// A redirect to the same place.
    RedirectToItself,
    /// `Content-Encoding: gzip`, whatever was asked for.
    Gzip,
    Chunked,
    /// HTTP/1.0: without a length, ended by the end of the connection.
    Http10,
    /// The whole blob, whatever range was asked for.
    IgnoresRanges,
    /// So many bytes a second.
    BytesPerSecond(usize),
}

/// To which requests a fault is done.
#[derive(Clone, Debug)]
pub struct Rule {
    method: Option<&'static str>,
    below: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// A fault for all requests whose path has `below` in it, such as `/blobs/`.
    pub fn on(below: &str, fault: Fault) -> Self {
        Self { method: None, below: below.to_owned(), skip: 0, times: usize::MAX, fault }
    }

    /// For one method only.
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Not for the first so many that it is about.
    pub fn skip(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// For so many, then no more.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// The fault for this request, which is counted.
    pub(super) fn strikes(&mut self, method: &str, path: &str) -> Option<Fault> {
        if self.method.is_some_and(|only| only != method) || !path.contains(&self.below) || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault.clone())
    }
}
