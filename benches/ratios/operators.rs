//! Bar: single operators, batches of 8192 rows at 1 k and 1 M series, at 0.6 or more of a bare loop over the same state.

use fieldstream_engine_api::{Emitter, KeyedBatch, Operator};
use serde_json::{Value, json};

use crate::TITLES;
use crate::bare::{self, Bare, Cells, Clock, Episode, Moments, Point};
use crate::feed::{self, Fleet};
use crate::reference::verdict;
use crate::rounds::{Rounds, timed};

const BATCH: usize = 8192;
/// Batches made ahead, so that making them is not timed.
const CHUNK: usize = 64;
const ROUNDS: usize = 9;

/// An operator and its bare loop for `series` series.
struct Pair {
    name: &'static str,
    kind: &'static str,
    options: Value,
    bare: fn(usize) -> Box<dyn Bare>,
}

fn pairs() -> Vec<Pair> {
    let window = json!({"tumbling": "10s", "by": "series", "aggregate":
        {"n": {"count": "*"}, "lowest": {"min": "value"}, "highest": {"max": "value"}, "average": {"mean": "value"}}});
    vec![
        Pair {
            name: "threshold",
            kind: "detect",
            options: json!({"threshold": {"above": 24.5}}),
            bare: |n| Box::new(bare::Threshold { above: 24.5, episodes: vec![Episode::default(); n] }),
        },
        Pair {
            name: "threshold, each row",
            kind: "detect",
            options: json!({"threshold": {"above": 24.5}, "emit": "row"}),
            bare: |_| Box::new(bare::ThresholdRows { above: 24.5 }),
        },
        Pair {
            name: "ewma",
            kind: "detect",
            options: json!({"ewma": {"z": 4}}),
            bare: |n| Box::new(bare::Ewma { moments: vec![Moments::default(); n], episodes: vec![Episode::default(); n] }),
        },
        Pair {
            name: "ewma, each row",
            kind: "detect",
            options: json!({"ewma": {"z": 4}, "emit": "row"}),
            bare: |n| Box::new(bare::Ewma { moments: vec![Moments::default(); n], episodes: Vec::new() }),
        },
        Pair {
            name: "rate",
            kind: "detect",
            options: json!({"rate": {"max_per_second": 8}}),
            bare: |n| Box::new(bare::Rate { max_per_second: 8.0, newest: vec![Point::NONE; n], episodes: vec![Episode::default(); n] }),
        },
        Pair {
            name: "flatline",
            kind: "detect",
            options: json!({"flatline": {"for": "60s"}}),
            bare: |n| {
                Box::new(bare::Flatline { duration_us: 60_000_000, still: vec![Point::NONE; n], episodes: vec![Episode::default(); n] })
            },
        },
        Pair {
            name: "tumbling",
            kind: "window",
            options: window,
            bare: |n| {
                Box::new(bare::Tumbling {
                    size_us: 10_000_000,
                    out_of_orderness_us: 5_000_000,
                    clocks: vec![Clock::NONE; n],
                    windows: vec![Cells::default(); n],
                    waiting: vec![None; n],
                    closed: bare::Closed::default(),
                })
            },
        },
    ]
}

fn engine(operator: &mut dyn Operator, fleet: &Fleet, chunk: &[KeyedBatch], out: &mut Emitter) -> usize {
    chunk.iter().map(|batch| feed::call(operator, batch, &fleet.slots, out)).sum()
}

/// One operator at one size. A round is ten seconds of event time, so that every round closes the same number of windows.
fn measure(pair: &Pair, fleet: &Fleet, series: usize) -> Rounds {
    let mut operator = feed::operator(pair.kind, &pair.options, &fleet.slots);
    let mut bare = (pair.bare)(series);
    let (mut feed, mut out, mut rounds) = (fleet.feed(), Emitter::default(), Rounds::default());
    let chunks = (10 * series).div_ceil(BATCH * CHUNK).max(8);
    let mut told = (0, 0);
    for round in 0..=ROUNDS {
        let mut spent = (0, 0);
        for _ in 0..chunks {
            let chunk: Vec<KeyedBatch> = (0..CHUNK).map(|_| feed.batch(BATCH)).collect();
            let (ns, rows) = timed(|| chunk.iter().map(|batch| bare.batch(batch)).sum::<usize>());
            (spent.0, told.0) = (spent.0 + ns, told.0 + rows);
            let (ns, rows) = timed(|| engine(&mut *operator, fleet, &chunk, &mut out));
            (spent.1, told.1) = (spent.1 + ns, told.1 + rows);
        }
        // The first round fills caches and states.
        if round > 0 {
            rounds.push((chunks * CHUNK * BATCH) as u64, spent.0, spent.1);
        }
    }
    assert_eq!(told.0, told.1, "{}: both sides tell the same number of rows", pair.name);
    rounds
}

/// Prints a line for each operator whose name begins with `prefix`, and each size.
pub(crate) fn run(prefix: &str) {
    println!("\noperators, batches of {BATCH} rows, nanoseconds of CPU a row, {ROUNDS} rounds");
    println!("{:<34}{TITLES}", "");
    for series in [1000, 1_000_000] {
        let fleet = Fleet::new(series);
        for pair in pairs().into_iter().filter(|pair| pair.name.starts_with(prefix)) {
            let rounds = measure(&pair, &fleet, series);
            println!("{:<22}{series:>9} se{rounds}  bar 0.60 {}", pair.name, verdict(rounds.ratio() >= 0.6));
        }
    }
}
