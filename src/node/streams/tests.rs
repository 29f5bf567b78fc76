use futures::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::node::bitswap::testing::{Bare, open};

const ONE: StreamProtocol = StreamProtocol::new("/test/1");
const TWO: StreamProtocol = StreamProtocol::new("/test/2");

/// Two connected nodes; the second takes `incoming_max` streams at a time, of protocol one.
async fn pair(incoming_max: usize) -> (Bare, Bare) {
    let (opener, taker) = (Bare::speaking(vec![], 1).await, Bare::speaking(vec![ONE], incoming_max).await);
    opener.dial(&taker.address).await;
    (opener, taker)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stream_is_lost_while_the_taker_is_slow() {
    const STREAMS: usize = 200;
    let (opener, mut taker) = pair(1).await;
    let mut kept = Vec::new();
    for number in 0..STREAMS {
        let (protocol, mut stream) = opener.control.open(taker.peer, vec![TWO, ONE]).await.unwrap();
        assert_eq!(protocol, ONE);
        stream.write_all(&[number as u8]).await.unwrap();
        stream.flush().await.unwrap();
        kept.push(stream);
    }
    let mut seen = Vec::new();
    for _ in 0..STREAMS {
        let Incoming { peer, mut stream, .. } = taker.incoming.recv().await.unwrap();
        assert_eq!(peer, opener.peer);
        let mut number = [0];
        stream.read_exact(&mut number).await.unwrap();
        seen.extend(number);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..STREAMS as u8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_counts_for_the_connection_that_it_goes_over() {
    let (opener, taker) = (Bare::speaking(vec![], 1).await, Bare::speaking(vec![ONE], 1).await);
    // One that is about to end: it takes no streams any more.
    let (usage, (requests, _)) = (Usage::new(Instant::now()), mpsc::channel(1));
    let id = ConnectionId::new_unchecked(usize::MAX);
    let ending = Connection { id, relayed_since: None, requests, usage: usage.clone() };
    opener.control.peers().insert(taker.peer, ending);
    opener.dial(&taker.address).await;
    let opened = opener.control.open_noted(taker.peer, vec![ONE]).await.unwrap();
    opened.usage.moved(1 << 20, Instant::now());
    assert!(!usage.is_of_use(Instant::now()));
    let in_use = opener.control.peers().usages().into_values();
    assert_eq!(in_use.filter(|usage| usage.is_of_use(Instant::now())).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_another_protocol_or_is_not_there_is_told_at_once() {
    let (opener, taker) = pair(1).await;
    let unsupported = opener.control.open(taker.peer, vec![TWO]).await;
    assert!(matches!(unsupported, Err(OpenError::Unsupported(_))));
    let stranger = opener.control.open(PeerId::random(), vec![ONE]).await;
    assert!(matches!(stranger, Err(OpenError::NotConnected(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_never_hangs_while_connections_come_and_go() {
    let (opener, mut taker) = pair(1).await;
    let (peer, address) = (taker.peer, taker.address.clone());
    taker
        .tasks
        .clone()
        .spawn_short("take", |_| async move { while taker.incoming.recv().await.is_some() {} });
    for _ in 0..30 {
        let opening = (0..40).map(|_| opener.control.open(peer, vec![ONE]));
        let (opened, ()) = futures::join!(futures::future::join_all(opening), opener.hang_up(peer));
        let expected = |error: &OpenError| {
            matches!(error, OpenError::NotConnected(_) | OpenError::TooMany(_) | OpenError::Io(..))
        };
        assert!(opened.iter().all(|opened| opened.as_ref().err().is_none_or(expected)), "{opened:?}");
        opener.dial(&address).await;
        open(&opener.control, peer, &[ONE]).await;
    }
}
