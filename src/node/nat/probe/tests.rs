use super::testing::{Server, Witness};
use super::*;
use crate::node::bitswap::testing::Bare;

/// A node that has an address tested by these servers.
async fn tested_by(servers: &[Server]) -> (Prober, Vec<Witness>, Tasks) {
    let mut node = Bare::speaking(vec![DIAL_BACK], 8).await;
    let tasks = node.tasks.clone();
    let (_, none) = mpsc::channel(1);
    let mut prober = Prober::new(node.control.clone());
    prober.serve(&tasks, std::mem::replace(&mut node.incoming, none));
    let address: Multiaddr = "/ip4/8.8.8.8/tcp/4001".parse().unwrap();
    let mut witnesses = Vec::new();
    for server in servers {
        let witness = Witness::start(*server, address.clone(), node.address.clone()).await;
        node.dial(&witness.address).await;
        prober.found(witness.peer);
        witnesses.push(witness);
    }
    prober.test(&address, Instant::now());
    tasks.spawn_short("node", |stop| async move {
        let _node = node;
        stop.cancelled().await;
    });
    (prober, witnesses, tasks)
}

/// The next test, as if its time had come.
async fn next(prober: &mut Prober, now: &mut Instant) -> (Option<Voice>, Verdict) {
    while prober.under_way.is_empty() {
        *now += ROUND;
        prober.round(*now);
    }
    let probed = prober.probed().await.unwrap();
    let (_, voice, verdict) = prober.judge(probed, *now);
    (voice, verdict)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lies_proves_nothing_and_takes_nothing_away() {
    for (server, voice) in [
        (Server::Comes, Some(Voice::Reached)),
        (Server::StaysWhereItIs, None),
        (Server::BringsAnother, None),
        (Server::SaysThatItCame, None),
        (Server::SaysThatItCannot, Some(Voice::NotReached)),
        (Server::WantsMuch, None),
        (Server::WantsMore, None),
        (Server::Refuses, None),
    ] {
        let (mut prober, _witnesses, _tasks) = tested_by(&[server]).await;
        let mut now = Instant::now();
        let said = next(&mut prober, &mut now).await;
        let verdict = if server == Server::Comes { Verdict::Reached } else { Verdict::Open };
        assert_eq!(said, (voice, verdict), "{server:?}");
        assert!(prober.nonces.lock().is_empty() && prober.busy.is_empty(), "nothing is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_liars_took_away_comes_back_by_others() {
    use Server::{Comes, SaysThatItCannot};
    let servers = [SaysThatItCannot, SaysThatItCannot, Comes, Comes];
    let (mut prober, _witnesses, _tasks) = tested_by(&servers).await;
    let others = prober.servers.split_off(2);
    let mut now = Instant::now();
    let mut said = Vec::new();
    for servers in [Vec::new(), others] {
        prober.servers.extend(servers);
        for _ in 0..2 {
            said.push(next(&mut prober, &mut now).await.1);
        }
    }
    assert_eq!(said, [Verdict::Open, Verdict::NotReached, Verdict::Open, Verdict::Reached]);
}
