//! Time-outs of connections, over pipes in memory and on a paused clock.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::connection::{Client, Protocol, Server};
use super::error::Failure;
use super::tls::Tls;
use crate::config::{HttpLimits, TlsConfig, TlsPair, TlsVersion};
use crate::mirror::MirrorError;
use crate::tasks::Tasks;

/// What the kernel would hold of bytes that nobody reads.
const PIPE_BYTES: usize = 64 * 1024;
const A_MOMENT: Duration = Duration::from_secs(1);

/// The client's end of a connection to a server with the limits that everybody has.
fn connect(tasks: &Tasks, protocol: Protocol) -> DuplexStream {
    let endless =
        || futures::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[7; 16 * 1024])));
    let router = Router::new()
        .route("/small", get(async || "small"))
        .route("/endless", get(async move || Body::from_stream(endless())))
        .route("/upload", put(upload));
    let server = Server { router, limits: HttpLimits::default(), tasks: tasks.clone() };
    let (ours, theirs) = duplex(PIPE_BYTES);
    let client = Client::default();
    tasks.spawn_short("connection", |stop| server.serve(Box::new(theirs), client, protocol, stop));
    ours
}

async fn upload(request: Request) -> Response {
    match to_bytes(request.into_body(), 1024).await {
        Ok(_) => StatusCode::CREATED.into_response(),
        Err(error) => Failure::from(MirrorError::Body(error.into())).into_response(),
    }
}

/// Reads to the end of the connection, be it clean or not.
async fn rest(mut connection: DuplexStream) -> String {
    let mut bytes = Vec::new();
    // An error is an end too.
    let _ = connection.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Asks for `/small` and reads the answer.
async fn ask(connection: &mut DuplexStream) -> String {
    connection.write_all(b"GET /small HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nsmall") {
        let read = connection.read_buf(&mut answer).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_answer_before_the_end_of_a_body_says_that_the_connection_ends() {
    for (length, ends) in [(10, false), (4000, true)] {
        let mut connection = connect(&Tasks::new(), Protocol::Http1);
        let request = format!("PUT /upload HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        connection.write_all(&[0; 2000][..length.min(2000)]).await.unwrap();
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(connection.read_buf(&mut answer).await.unwrap() > 0);
        }
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert_eq!(answer.contains("connection: close"), ends, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_that_comes_byte_by_byte_ends_the_connection() {
    let limits = HttpLimits::default();
    let mut connection = connect(&Tasks::new(), Protocol::Http1);
    let begun = Instant::now();
    let mut sent = 0;
    for byte in b"GET /small HTTP/1.1\r\nHost: h\r\nX-Long: ".iter().chain(std::iter::repeat(&b'x')) {
        if connection.write_all(&[*byte]).await.is_err() {
            break;
        }
        sent += 1;
        sleep(A_MOMENT).await;
        assert!(begun.elapsed() <= limits.header_timeout + 2 * A_MOMENT, "still open after {sent} bytes");
    }
    assert!(begun.elapsed() >= limits.header_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_idle_for_a_while_and_is_then_closed() {
    let limits = HttpLimits::default();
    let mut connection = connect(&Tasks::new(), Protocol::Http1);
    for _ in 0..2 {
        sleep(limits.idle_timeout - A_MOMENT).await;
        assert!(ask(&mut connection).await.starts_with("HTTP/1.1 200 OK"));
    }
    let begun = Instant::now();
    assert_eq!(rest(connection).await, "");
    assert!(begun.elapsed() >= limits.idle_timeout - A_MOMENT);
}

#[tokio::test(start_paused = true)]
async fn a_body_of_which_nothing_comes_is_answered_and_a_slow_one_is_taken() {
    let limits = HttpLimits::default();
    let head = b"PUT /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n";
    let mut slow = connect(&Tasks::new(), Protocol::Http1);
    slow.write_all(head).await.unwrap();
    for byte in b"abc" {
        sleep(limits.body_stall_timeout - A_MOMENT).await;
        slow.write_all(&[*byte]).await.unwrap();
    }
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");

    let mut stalled = connect(&Tasks::new(), Protocol::Http1);
    stalled.write_all(head).await.unwrap();
    stalled.write_all(b"a").await.unwrap();
    let answer = rest(stalled).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("no byte of the body came for 60 s"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_broken_off_when_the_client_takes_nothing_of_it() {
    let limits = HttpLimits::default();
    let mut connection = connect(&Tasks::new(), Protocol::Http1);
    connection.write_all(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut some = vec![0; PIPE_BYTES];
    for _ in 0..3 {
        sleep(limits.send_stall_timeout - A_MOMENT).await;
        connection.read_exact(&mut some).await.unwrap();
    }
    sleep(limits.send_stall_timeout + A_MOMENT).await;
    let left = rest(connection).await;
    assert!(left.len() <= PIPE_BYTES, "{} bytes", left.len());
}

#[tokio::test(start_paused = true)]
async fn it_is_so_over_http2_where_the_window_holds_back() {
    let limits = HttpLimits::default();
    let connection = connect(&Tasks::new(), Protocol::Http2);
    let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let (mut sender, connection) = builder.handshake(TokioIo::new(connection)).await.unwrap();
    let tasks = Tasks::new();
    let connection = tasks.spawn("client", |_| connection);
    let request = hyper::Request::get("http://h/endless").body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);

    sleep(limits.send_stall_timeout - A_MOMENT).await;
    assert!(!connection.is_finished());
    sleep(2 * A_MOMENT).await;
    // Its last packets may still be under way.
    sleep(A_MOMENT).await;
    assert!(connection.is_finished());
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn a_header_that_is_too_long_or_has_too_many_lines_is_refused() {
    let limits = HttpLimits::default();
    let long = format!("X-Long: {}\r\n", "x".repeat(limits.header_bytes_max));
    // hyper's own limit, which costs nothing while nobody sets it.
    let many = "X-Many: x\r\n".repeat(101);
    for lines in [long, many] {
        let connection = connect(&Tasks::new(), Protocol::Http1);
        let (read, mut write) = tokio::io::split(connection);
        let request = format!("GET /small HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        // The server may close before it has read it all.
        let _ = write.write_all(request.as_bytes()).await;
        let answer = rest(read.unsplit(write)).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_come_is_given_up() {
    let (folder, tasks, limits) = (tempfile::tempdir().unwrap(), Tasks::new(), HttpLimits::default());
    let config = TlsConfig {
        pair: TlsPair::SelfSigned { names: vec!["localhost".to_owned()] },
        client_cas: Vec::new(),
        client_optional: false,
        minimum: TlsVersion::Tls12,
    };
    let tls = Tls::start(&tasks, config, true, folder.path().to_owned(), &limits).await.unwrap();
    let (_silent, theirs) = duplex(PIPE_BYTES);
    let error = tls.accept(Box::new(theirs), &limits).await.err();
    assert_eq!(error.map(|error| error.kind()), Some(std::io::ErrorKind::TimedOut));
}
