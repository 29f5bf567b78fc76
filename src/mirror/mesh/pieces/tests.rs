//! Sources of all sorts, in time that is computed.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const TICK: Duration = Duration::from_millis(5);
const MIB: u64 = 1 << 20;
const HEDGE: Duration = Duration::from_millis(50);

/// What a source does.
#[derive(Clone, Debug)]
struct Server {
    begins_after: Duration,
    bytes_per_s: u64,
    /// What it does from this byte of the blob on, or after so many bytes.
    trouble: Trouble,
    served_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// Says nothing more when it has served so much.
    Stalls(u64),
    /// Breaks off when it has served so much, and refuses from then on.
    Breaks(u64),
}

fn server(bytes_per_s: u64, trouble: Trouble) -> Server {
    Server { begins_after: Duration::from_millis(10), bytes_per_s, trouble, served_bytes: 0 }
}

struct Answer {
    id: RequestId,
    source: usize,
    at: u64,
    begins_at: Instant,
}

struct Scene {
    pieces: Pieces,
    servers: Vec<Server>,
    answers: Vec<Answer>,
    asked: Vec<(SourceId, Range<u64>)>,
    taken: u64,
    begun_at: Instant,
    now: Instant,
    /// When the pieces are to be polled, if nothing happens before.
    wakes_at: Option<Instant>,
}

/// `count` bytes of the blob: a pattern whose period is no multiple of a piece.
fn content(at: u64, count: u64) -> Bytes {
    const PERIOD: u64 = (1 << 20) + 7;
    static PATTERN: LazyLock<Bytes> =
        LazyLock::new(|| (0..2 * PERIOD).map(|at| (at % PERIOD * 31 % 251).to_le_bytes()[0]).collect());
    let start = usize::try_from(at % PERIOD).unwrap();
    PATTERN.slice(start..start + usize::try_from(count).unwrap())
}

impl Scene {
    fn new(size_bytes: u64, servers: Vec<Server>) -> Self {
        let now = Instant::now();
        let pieces = Pieces::new(0..size_bytes, servers.iter().map(|_| HEDGE));
        let (answers, asked) = (Vec::new(), Vec::new());
        Self { pieces, servers, answers, asked, taken: 0, begun_at: now, now, wakes_at: Some(now) }
    }

    /// One step of everybody; `takes`: the reader takes what has come.
    fn step(&mut self, takes: bool) {
        let is_awake = self.wakes_at.is_some_and(|at| at <= self.now);
        while let Some(act) = is_awake.then(|| self.pieces.poll(self.now)).flatten() {
            match act {
                Act::Ask { id, source, range } => {
                    assert!(range.end <= self.taken + WINDOW_BYTES && !range.is_empty());
                    assert!(range.end - range.start <= PIECE_BYTES_MAX);
                    assert!(self.answers.iter().all(|answer| answer.source != source.0), "one at a time");
                    let begins_at = self.now + self.servers[source.0].begins_after;
                    self.answers.push(Answer { id, source: source.0, at: range.start, begins_at });
                    self.asked.push((source, range));
                }
                Act::Drop(id) => self.answers.retain(|answer| answer.id != id),
            }
        }
        if is_awake {
            self.wakes_at = self.pieces.wakes_at(self.now);
        }
        self.now += TICK;
        for answer in &mut self.answers {
            let server = &mut self.servers[answer.source];
            let mut count = server.bytes_per_s * u64::try_from(TICK.as_millis()).unwrap() / 1000;
            match server.trouble {
                _ if self.now < answer.begins_at => continue,
                Trouble::Breaks(after) if server.served_bytes >= after => {
                    self.pieces.failed(answer.id);
                    self.wakes_at = Some(self.now);
                    continue;
                }
                Trouble::Stalls(after) => count = count.min(after.saturating_sub(server.served_bytes)),
                Trouble::Breaks(after) => count = count.min(after - server.served_bytes),
                Trouble::None => (),
            }
            self.pieces.arrived(answer.id, content(answer.at, count), self.now);
            self.wakes_at = Some(self.now);
            answer.at += count;
            server.served_bytes += count;
        }
        let under_way = &self.pieces.under_way;
        self.answers.retain(|answer| under_way.contains_key(&answer.id));
        while let Some(bytes) = takes.then(|| self.pieces.take()).flatten() {
            assert_eq!(bytes, content(self.taken, bytes.len() as u64));
            self.taken += bytes.len() as u64;
            self.wakes_at = Some(self.now);
        }
    }

    /// How it ends, and after how long.
    fn run(&mut self) -> (Outlook, Duration) {
        loop {
            self.step(true);
            let (outlook, took) = (self.pieces.outlook(self.now), self.now.duration_since(self.begun_at));
            if outlook != Outlook::UnderWay {
                return (outlook, took);
            }
            assert!(took < Duration::from_secs(600), "it does not end");
        }
    }

    fn completes_within(&mut self, limit_ms: u64) {
        let (outlook, took) = self.run();
        assert_eq!(outlook, Outlook::Complete);
        assert!(took <= Duration::from_millis(limit_ms), "took {took:?}");
    }
}

#[test]
fn sources_add_up() {
    let alone = Scene::new(40 * MIB, vec![server(10 * MIB, Trouble::None)]).run().1;
    let together = Scene::new(40 * MIB, vec![server(10 * MIB, Trouble::None); 4]).run().1;
    assert!(together < alone / 3, "{together:?}, alone {alone:?}");
}

#[test]
fn pieces_follow_the_speed() {
    let mut scene = Scene::new(60 * MIB, vec![server(40 * MIB, Trouble::None), server(MIB, Trouble::None)]);
    scene.run();
    let largest = |n| {
        let of = scene.asked.iter().filter(|(source, _)| *source == SourceId(n));
        of.map(|(_, range)| range.end - range.start).max().unwrap()
    };
    assert_eq!(largest(0), PIECE_BYTES_MAX);
    assert!(largest(1) <= 2 * PIECE_BYTES_MIN);
}

#[test]
fn a_slow_source_does_not_hold_up_the_fast_one() {
    for order in [[20 * MIB, 10_000], [10_000, 20 * MIB]] {
        let servers = order.map(|speed| server(speed, Trouble::None)).to_vec();
        // Alone, the fast one takes two seconds and a bit.
        Scene::new(40 * MIB, servers).completes_within(4000);
    }
}

#[test]
fn the_second_source_begins_when_the_first_is_late() {
    let dead = server(MIB, Trouble::Stalls(0));
    let mut scene = Scene::new(MIB, vec![dead, server(20 * MIB, Trouble::None)]);
    while scene.taken == 0 {
        scene.step(true);
    }
    let took = scene.now.duration_since(scene.begun_at);
    assert!(took <= HEDGE + Duration::from_millis(20), "took {took:?}");
    assert_eq!(scene.asked[0].1, scene.asked[1].1);
    scene.completes_within(1000);
}

#[test]
fn a_source_that_begins_in_time_is_alone_until_then() {
    let mut scene = Scene::new(MIB, vec![server(20 * MIB, Trouble::None); 3]);
    scene.step(true);
    assert_eq!(scene.asked.len(), 1);
}

#[test]
fn a_source_that_stalls_loses_its_piece_within_half_a_second() {
    let stalling = server(10 * MIB, Trouble::Stalls(3 * MIB + 1));
    let mut scene = Scene::new(20 * MIB, vec![stalling, server(10 * MIB, Trouble::None)]);
    let mut stood_for = Duration::ZERO;
    while scene.pieces.outlook(scene.now) == Outlook::UnderWay {
        let before = scene.taken;
        scene.step(true);
        stood_for = if scene.taken > before { Duration::ZERO } else { stood_for + TICK };
        // The other one ends the piece that it is at before it takes this one.
        assert!(stood_for <= STALL + PIECE_TAKES, "stands for {stood_for:?}");
    }
    assert_eq!(scene.taken, 20 * MIB);
}

#[test]
fn one_that_breaks_off_is_not_asked_again() {
    let breaking = server(10 * MIB, Trouble::Breaks(MIB));
    let mut scene = Scene::new(20 * MIB, vec![breaking, server(10 * MIB, Trouble::None)]);
    scene.completes_within(2500);
    assert_eq!(scene.servers[0].served_bytes, MIB);
    let asked_of_first = scene.asked.iter().filter(|(source, _)| *source == SourceId(0)).count();
    assert!(asked_of_first <= 4);
}

#[test]
fn when_all_are_lost_it_is_said_within_a_second_and_what_came_was_taken() {
    for trouble in
        [Trouble::Stalls(3 * MIB), Trouble::Breaks(3 * MIB), Trouble::Stalls(0), Trouble::Breaks(0)]
    {
        let mut scene = Scene::new(40 * MIB, vec![server(20 * MIB, trouble); 3]);
        let (outlook, took) = scene.run();
        assert_eq!(outlook, Outlook::Failed);
        let served = scene.servers.iter().map(|server| server.served_bytes).max().unwrap();
        assert!(took < Duration::from_millis(1500), "took {took:?}");
        assert!(scene.taken >= served, "{} taken of {served} and more", scene.taken);
    }
    assert_eq!(Scene::new(1, Vec::new()).pieces.outlook(Instant::now()), Outlook::Failed);
}

#[test]
fn what_nobody_takes_is_bounded_by_the_window() {
    let mut scene = Scene::new(100 * MIB, vec![server(50 * MIB, Trouble::None); 4]);
    for _ in 0..400 {
        scene.step(false);
    }
    let came: usize = scene.pieces.came.values().map(Bytes::len).sum();
    assert!(came as u64 <= WINDOW_BYTES && came as u64 > WINDOW_BYTES / 2);
    assert_eq!(scene.pieces.poll(scene.now), None);
    scene.completes_within(4000);
}

#[test]
fn what_comes_too_late_or_beyond_the_piece_is_left_out() {
    let now = Instant::now();
    let mut pieces = Pieces::new(0..10, [HEDGE]);
    let Some(Act::Ask { id, .. }) = pieces.poll(now) else { panic!("nobody is asked") };
    assert_eq!(pieces.arrived(id, Bytes::from_static(b"0123456789ABC"), now + TICK), Some(TICK));
    assert_eq!(pieces.arrived(id, Bytes::from_static(b"more"), now + TICK), None);
    assert_eq!(pieces.take().unwrap(), "0123456789");
    assert_eq!(pieces.outlook(now), Outlook::Complete);
    assert_eq!(pieces.poll(now), Some(Act::Drop(id)));
}

fn any_server() -> impl Strategy<Value = Server> {
    let trouble = prop_oneof![
        Just(Trouble::None),
        (0..8 * MIB).prop_map(Trouble::Stalls),
        (0..8 * MIB).prop_map(Trouble::Breaks)
    ];
    (0..700_u64, 100_000..40 * MIB, trouble).prop_map(|(ms, bytes_per_s, trouble)| Server {
        begins_after: Duration::from_millis(ms),
        ..server(bytes_per_s, trouble)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn one_sound_source_is_enough(
        size_bytes in 1..12 * MIB,
        mut servers in prop::collection::vec(any_server(), 0..4),
        at in 0..4_usize
    ) {
        servers.insert(at.min(servers.len()), server(4 * MIB, Trouble::None));
        let mut scene = Scene::new(size_bytes, servers);
        let (outlook, _) = scene.run();
        prop_assert_eq!(outlook, Outlook::Complete);
        prop_assert_eq!(scene.taken, size_bytes);
        prop_assert!(scene.pieces.lost.is_empty() && scene.pieces.came.is_empty());
    }

    #[test]
    fn whatever_the_sources_do_it_ends(
        size_bytes in 1..12 * MIB,
        servers in prop::collection::vec(any_server(), 0..5)
    ) {
        let mut scene = Scene::new(size_bytes, servers);
        let (outlook, _) = scene.run();
        prop_assert_eq!(outlook == Outlook::Complete, scene.taken == size_bytes);
    }
}
