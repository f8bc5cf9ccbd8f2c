//! Whole programs: the yardstick's and ours over the same files on the same core, in CPU seconds, user and system.

use std::path::Path;
use std::process::Command;

use crate::reference::verdict;
use crate::rounds::Rounds;

const ROUNDS: usize = 11;

/// CPU nanoseconds of a command line, as the shell counts them, and the last line it printed.
fn cpu(command: &str) -> (u64, String) {
    let script = format!("TIMEFORMAT='%U %S'; time {command}");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap_or_else(|e| panic!("bash: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}: {err}");
    let times = err.lines().last().unwrap_or_default();
    let seconds: f64 = times.split(' ').filter_map(|t| t.parse::<f64>().ok()).sum();
    ((seconds * 1e9) as u64, out.lines().last().unwrap_or_default().to_owned())
}

/// Prints one line.
pub(crate) fn run(folder: &Path, fast: &Path, binary: &Path) {
    let work = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let lines: u64 = (0..).map_while(|n| std::fs::read(folder.join(format!("p{n}.ndjson"))).ok()).map(|t| count(&t)).sum();
    let pipeline = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/examples/sensor-alerts.yaml");
    let (input, out, state) = (folder.display(), work.path().join("out"), work.path().join("state"));
    let ours = format!(
        "{} run {pipeline} --var input={input} --var output={} --data-dir {} --json",
        binary.display(),
        out.display(),
        state.display()
    );
    let theirs = format!("{} full-sonic {input} 1 {}", fast.display(), work.path().display());
    let (mut rounds, mut last) = (Rounds::default(), String::new());
    for round in 0..=ROUNDS {
        let (yardstick, _) = cpu(&theirs);
        let (engine, line) = cpu(&ours);
        // The first round warms the page cache.
        if round > 0 {
            rounds.push(lines, yardstick, engine);
        }
        last = line;
    }
    println!("\nwhole programs over {lines} lines, nanoseconds of CPU a line, {ROUNDS} rounds\n{last}");
    println!("{:<34}{}", "", crate::TITLES);
    println!("{:<34}{rounds}  bar 0.70 {}", "run against full-sonic", verdict(rounds.ratio() >= 0.7));
}

fn count(text: &[u8]) -> u64 {
    text.iter().filter(|b| **b == b'\n').count() as u64
}
