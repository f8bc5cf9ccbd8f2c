//! Bar: the reference job through a partition, everything on, at 0.7 or more of the hand-written loop.

use std::path::Path;

use fieldstream_runtime::decisions::end_of_input;
use fieldstream_runtime::spec::PipelineSpec;
use fieldstream_schemas::PayloadBlock;

use crate::by_hand::{self, Answer};
use crate::rounds::{Rounds, timed};
use crate::{TITLES, engine, lines};

const ROUNDS: usize = 15;

/// All turns of one partition, with the end of input that closes every window. The account must balance.
fn partition(spec: &PipelineSpec, blocks: &[PayloadBlock]) -> Answer {
    let mut partition = engine::partition(spec);
    let mut sinks = vec![0; spec.graph.sinks.len()];
    for block in blocks {
        engine::turn(&mut partition, block).iter().zip(&mut sinks).for_each(|(rows, sum)| *sum += rows);
    }
    let end = partition.complete_to().next_offset;
    let Ok(output) = partition.decide(&end_of_input(end)) else { panic!("nothing is passivated here") };
    for (rows, sum) in output.rows.iter().zip(&mut sinks) {
        *sum += rows.iter().map(|r| r.batch.len() as u64).sum::<u64>();
    }
    let totals = partition.totals();
    assert_eq!(totals.received, totals.accounted(), "the account balances");
    let rows = |name: &str| spec.graph.sinks.iter().position(|s| &*s.name == name).map_or(0, |at| sinks[at]);
    Answer { valid: totals.settled, rejected: totals.dead_lettered.values().sum(), alerts: rows("alerts"), windows: rows("windows") }
}

fn sum(answers: impl Iterator<Item = Answer>) -> Answer {
    answers.fold(Answer::default(), |a, b| Answer {
        valid: a.valid + b.valid,
        rejected: a.rejected + b.rejected,
        alerts: a.alerts + b.alerts,
        windows: a.windows + b.windows,
    })
}

/// Prints the bar's line.
pub(crate) fn run(folder: Option<&Path>) {
    let parts = lines::partitions(folder);
    let rows: u64 = parts.iter().flatten().map(|b| b.entries.len() as u64).sum();
    let spec = engine::plan(engine::REFERENCE);
    let mut rounds = Rounds::default();
    let mut answer = Answer::default();
    for _ in 0..ROUNDS {
        let (by_hand, expected) = timed(|| sum(parts.iter().map(|blocks| by_hand::run(blocks))));
        let (engine, found) = timed(|| sum(parts.iter().map(|blocks| partition(&spec, blocks))));
        assert_eq!(found, expected, "the engine gives the yardstick's answer");
        rounds.push(rows, by_hand, engine);
        answer = found;
    }
    println!("\nreference job, {rows} lines in {} partitions, nanoseconds of CPU a line, {ROUNDS} rounds; {answer:?}", parts.len());
    println!("{:<34}{TITLES}", "");
    println!("{:<34}{rounds}  bar 0.70 {}", "partition against hand-written", verdict(rounds.ratio() >= 0.7));
}

/// `met` or `NOT met`.
pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "NOT met" }
}
