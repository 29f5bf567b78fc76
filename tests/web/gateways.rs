//! Gateways that give wrong blocks, too many, too few, or something else; and those that give what they should.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use shoal::ipfs::Want;
use shoal::ipld::block::RAW as RAW_CODEC;
use shoal::ipld::unixfs::{File, FileChild};
use shoal::ipld::{Block, Cid, car};
use shoal::web::{Web, WebError};
use tokio_util::sync::CancellationToken;

use crate::common::{PATIENCE, random_bytes};
use crate::double::{CAR, Double, RAW, Seen, endless, redirect_to, said, stalled, status, web};

const LEAF_BYTES: usize = 100_000;

/// A file of some leaves.
#[derive(Clone)]
struct Dag {
    root: Block,
    leaves: Vec<Block>,
}

impl Dag {
    fn new(seed: u64, leaves: u64) -> Self {
        let leaf = |n| Block::encode(RAW_CODEC, random_bytes(seed * 1000 + n, LEAF_BYTES).into());
        let leaves: Vec<Block> = (0..leaves).map(leaf).collect();
        let child = |leaf: &Block| FileChild {
            cid: *leaf.cid(),
            size_bytes: LEAF_BYTES as u64,
            tsize: LEAF_BYTES as u64,
        };
        let root = File { data: Bytes::new(), children: leaves.iter().map(child).collect() }.encode();
        Self { root, leaves }
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        std::iter::once(&self.root).chain(&self.leaves)
    }

    fn archive(&self) -> Vec<u8> {
        let entries = self.blocks().flat_map(car::entry);
        std::iter::once(car::header(self.root.cid())).chain(entries).collect::<Vec<Bytes>>().concat()
    }

    fn raw(&self, seen: &Seen) -> Response {
        let cid: Cid = seen.path.trim_start_matches("/ipfs/").parse().unwrap();
        match self.blocks().find(|block| *block.cid() == cid) {
            Some(block) => said(RAW, block.bytes().clone()),
            None => status(404),
        }
    }

    fn want(&self, block: &Block) -> Want {
        Want { cid: *block.cid(), root: *self.root.cid() }
    }

    /// Fetches all of it as a reader does: root first, then leaf after leaf.
    async fn is_fetched(&self, web: &Web) {
        for block in self.blocks() {
            let found = match web.held(block.cid()) {
                Some(block) => Ok(Some(block)),
                None => fetch(web, &self.want(block)).await,
            };
            assert_eq!(found.map(|found| found.map(|found| *found.cid())), Ok(Some(*block.cid())));
        }
    }
}

/// With nobody else to wait for.
async fn fetch(web: &Web, want: &Want) -> Result<Option<Block>, WebError> {
    let nobody = CancellationToken::new();
    nobody.cancel();
    tokio::time::timeout(PATIENCE, web.fetch(want, &nobody)).await.expect("an answer")
}

fn is_car(seen: &Seen) -> bool {
    seen.query.contains("format=car")
}

/// How often single blocks were asked for.
fn raws(double: &Double) -> usize {
    double.seen().iter().filter(|seen| seen.query == "format=raw").count()
}

#[tokio::test]
async fn a_file_comes_by_one_request_each_block_verified() {
    let dag = Dag::new(1, 8);
    let (archive, root) = (dag.archive(), *dag.root.cid());
    let double = Double::start(move |_| said(CAR, archive.clone())).await;
    let web = web(&[], &[&double]);
    dag.is_fetched(&web).await;
    assert!(web.leads(&root));
    let seen = double.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].path, format!("/ipfs/{root}"));
}

#[tokio::test]
async fn an_archive_larger_than_what_may_wait_is_read_as_fast_as_it_is_taken() {
    let dag = Dag::new(2, 100); // 10 MB.
    let archive = dag.archive();
    let given = dag.clone();
    let double =
        Double::start(move |seen| if is_car(seen) { said(CAR, archive.clone()) } else { given.raw(seen) })
            .await;
    let web = web(&[], &[&double]);
    dag.is_fetched(&web).await;
    assert!(raws(&double) < 10, "{} blocks were asked for alone", raws(&double));
}

#[tokio::test]
async fn a_gateway_without_archives_is_asked_for_blocks_and_not_again_for_archives() {
    for refusal in [0, 1] {
        let dags = [Dag::new(3, 3), Dag::new(4, 3)];
        let given = dags.clone();
        let double = Double::start(move |seen| match (is_car(seen), refusal) {
            (true, 0) => status(406),
            (true, _) => said("text/html", "<html>"),
            _ => given.iter().map(|dag| dag.raw(seen)).find(|answer| answer.status() == 200).unwrap(),
        })
        .await;
        let web = web(&[], &[&double]);
        for dag in &dags {
            dag.is_fetched(&web).await;
        }
        assert_eq!((double.asked(), raws(&double)), (9, 8));
    }
}

#[tokio::test]
async fn who_sends_wrong_bytes_is_left_at_once_and_the_next_is_asked() {
    let (dag, other) = (Dag::new(5, 3), Dag::new(6, 3));
    let header = car::header(dag.root.cid());
    let foreign = [header.as_ref(), &car::entry(&other.root).concat()].concat();
    let forged = Block::from_store(*dag.root.cid(), Bytes::from_static(b"something else"));
    let forged = [header.as_ref(), &car::entry(&forged).concat()].concat();
    let huge = [header.as_ref(), &[0xff, 0xff, 0xff, 0x7f]].concat();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("a foreign block", foreign),
        ("a block that is not its CID's", forged),
        ("an entry of 256 MiB", huge),
        ("junk", vec![0x80; 5000]),
    ];
    let given = dag.clone();
    let good =
        Double::start(move |seen| if is_car(seen) { said(CAR, given.archive()) } else { given.raw(seen) })
            .await;
    for (what, body) in bad {
        let liar = Double::start(move |_| said(CAR, body.clone())).await;
        let web = web(&[], &[&liar, &good]);
        dag.is_fetched(&web).await;
        let told = &web.status()[0];
        assert!(!told.is_asked && told.error.is_some(), "{what}: {told:?}");
        assert_eq!(liar.asked(), 1, "{what}");
    }
    let liar = Double::start(|_| said(RAW, "not the leaf")).await;
    let web = web(&[], &[&liar]);
    let want = dag.want(&dag.leaves[0]);
    assert!(matches!(fetch(&web, &want).await, Err(WebError::Wrong { .. })));
    assert!(fetch(&web, &want).await.is_err() && liar.asked() == 1, "it is left");
}

#[tokio::test]
async fn an_archive_that_is_cut_off_or_stops_is_completed_block_by_block() {
    let dag = Dag::new(7, 6);
    let cut = dag.archive()[..3 * LEAF_BYTES].to_vec();
    for stops in [false, true] {
        let (cut, given) = (cut.clone(), dag.clone());
        let first = Double::start(move |_| {
            said(CAR, if stops { stalled(cut.clone()) } else { Body::from(cut.clone()) })
        })
        .await;
        let second = Double::start(move |seen| given.raw(seen)).await;
        let web = web(&[], &[&first, &second]);
        dag.is_fetched(&web).await;
        assert!((3..=5).contains(&raws(&second)), "{}", raws(&second));
    }
}

#[tokio::test]
async fn bodies_without_end_are_ended() {
    let dag = Dag::new(8, 3);
    // Its root over and over: each a block that belongs there.
    let root = car::entry(&dag.root).concat();
    let header = car::header(dag.root.cid()).to_vec();
    let repeats = Double::start(move |_| {
        let piece = root.clone();
        let body = futures::stream::once(futures::future::ready(Ok::<_, std::io::Error>(header.clone())));
        let rest = futures::stream::repeat_with(move || Ok(piece.clone()));
        said(CAR, Body::from_stream(futures::StreamExt::chain(body, rest)))
    })
    .await;
    let web_of_repeats = web(&[], &[&repeats]);
    assert!(fetch(&web_of_repeats, &dag.want(&dag.root)).await.unwrap().is_some());
    let leaving = async {
        while web_of_repeats.status()[0].is_asked {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, leaving).await.expect("it is left");
    assert!(web_of_repeats.status()[0].error.as_ref().unwrap().contains("does not belong"));

    let raw = Double::start(|_| said(RAW, endless(vec![0; 1 << 16]))).await;
    let web = web(&[], &[&raw]);
    assert!(matches!(fetch(&web, &dag.want(&dag.leaves[0])).await, Err(WebError::TooLarge { .. })));
}

#[tokio::test]
async fn absent_is_said_only_by_who_says_so() {
    let dag = Dag::new(9, 1);
    let want = dag.want(&dag.leaves[0]);
    assert_eq!(fetch(&web(&[], &[]), &want).await, Ok(None));
    let absent = Double::start(|_| status(404)).await;
    assert_eq!(fetch(&web(&[], &[&absent]), &want).await, Ok(None));
    let aside = absent.url.clone();
    let page = Double::start(|_| said("text/html", "<html>not found</html>")).await;
    let down = Double::start(|_| status(504)).await;
    let redirects = Double::start(move |_| redirect_to(&aside)).await;
    for double in [&page, &down, &redirects] {
        let web = web(&[], &[&absent, double]);
        let asked = absent.asked();
        assert!(fetch(&web, &want).await.is_err(), "a failure is none");
        assert_eq!(absent.asked(), asked + 1, "no redirect is followed");
        assert!(fetch(&web, &want).await.is_err(), "nor is a rest");
    }
}

#[tokio::test]
async fn a_second_gateway_is_asked_when_the_first_is_late() {
    let dag = Dag::new(10, 1);
    let mute = Double::start(|_| said(RAW, stalled(vec![1]))).await;
    let given = dag.clone();
    let good = Double::start(move |seen| given.raw(seen)).await;
    let web = web(&[], &[&mute, &good]);
    assert_eq!(fetch(&web, &dag.want(&dag.leaves[0])).await, Ok(Some(dag.leaves[0].clone())));
    assert_eq!(web.status()[0].error, None, "the first was given up before");
    assert_eq!((mute.asked(), good.asked()), (1, 1));
}
