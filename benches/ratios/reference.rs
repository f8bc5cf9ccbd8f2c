//! Bar: the reference job through a partition, everything on, at 0.7 or more of the hand-written loop.

use std::path::{Path, PathBuf};
use std::process::Command;

use fieldstream_runtime::decisions::end_of_input;
use fieldstream_runtime::spec::PipelineSpec;

use crate::rounds::{Rounds, timed};
use crate::{TITLES, engine, lines};

const ROUNDS: usize = 15;

/// What both sides must agree on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Answer {
    valid: u64,
    rejected: u64,
    alerts: u64,
    windows: u64,
}

/// Builds the hand-written loop, a program of its own (see its `Cargo.toml`).
fn yardstick() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/yardstick");
    let built = Command::new("cargo").args(["build", "--release", "--quiet", "--target-dir", "target"]).current_dir(&folder).status();
    assert!(built.is_ok_and(|status| status.success()), "the yardstick builds");
    folder.join("target/release/fieldstream-yardstick")
}

/// Its CPU nanoseconds and answer.
fn by_hand(program: &Path, folder: &Path) -> (u64, Answer) {
    let output = Command::new(program).arg(folder).output().unwrap_or_else(|e| panic!("{e}"));
    let numbers: Vec<u64> = String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [valid, rejected, alerts, windows, ns] = numbers[..] else { panic!("the yardstick gives five numbers: {output:?}") };
    (ns, Answer { valid, rejected, alerts, windows })
}

/// The files `p0.ndjson`, `p1.ndjson` ... of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    (0..).map(|n| folder.join(format!("p{n}.ndjson"))).take_while(|file| file.exists()).collect()
}

/// All turns of one partition, with the end of input that closes every window. The account must balance.
fn partition(spec: &PipelineSpec, file: &Path) -> Answer {
    let mut partition = engine::partition(spec);
    let mut sinks = vec![0; spec.graph.sinks.len()];
    lines::read(file, |block| {
        engine::turn(&mut partition, block).iter().zip(&mut sinks).for_each(|(rows, sum)| *sum += rows);
    });
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
pub(crate) fn run(given: Option<&Path>) {
    let made = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    if given.is_none() {
        // One partition of four, as in the reference's data set of a million lines.
        std::fs::write(made.path().join("p0.ndjson"), lines::lines(250_000, 2500)).unwrap_or_else(|e| panic!("{e}"));
    }
    let (folder, program) = (given.unwrap_or(made.path()), yardstick());
    let (files, spec) = (files(folder), engine::reference());
    let (mut rounds, mut answer) = (Rounds::default(), Answer::default());
    for round in 0..=ROUNDS {
        let (by_hand, expected) = by_hand(&program, folder);
        let (engine, found) = timed(|| sum(files.iter().map(|file| partition(&spec, file))));
        assert_eq!(found, expected, "the engine gives the yardstick's answer");
        // The first round warms the page cache.
        if round > 0 {
            rounds.push(found.valid + found.rejected, by_hand, engine);
        }
        answer = found;
    }
    println!("\nreference job, {} partitions, nanoseconds of CPU a line, {ROUNDS} rounds; {answer:?}", files.len());
    println!("{:<34}{TITLES}", "");
    println!("{:<34}{rounds}  bar 0.70 {}", "partition against hand-written", verdict(rounds.ratio() >= 0.7));
}

/// `met` or `NOT met`.
pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "NOT met" }
}
