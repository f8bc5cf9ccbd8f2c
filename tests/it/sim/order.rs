//! A take-over keeps the order that makes it safe, whatever happens around it: read from the trace.

use super::run_seed;

/// The steps of a take-over, in order; a step may show several times before the next.
const STEPS: [&str; 6] = ["claims", "tables", "manifests", "decisions", "adoptions", "seek"];

/// What a line of the trace has to do with a take-over: process, partition and step.
fn step(line: &str) -> Option<(&str, u32, &'static str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let folder = |path: &str, kind: &str| -> Option<u32> {
        path.strip_prefix(kind)?.strip_prefix("/simulated/simulated/")?.split('/').next()?.parse().ok()
    };
    match words[..] {
        [_, process, "puts", path, "done"] if path.starts_with("claims/") && !path.ends_with(".released:") => {
            Some((process, folder(path, "claims")?, "claims"))
        }
        [_, process, "opens", "table", _, "for", partition, ..] => Some((process, partition.parse().ok()?, "tables")),
        [_, process, "lists", path] if path.starts_with("manifests/") => Some((process, folder(path, "manifests")?, "manifests")),
        [_, process, "lists", path] if path.starts_with("decisions/") => Some((process, folder(path, "decisions")?, "decisions")),
        [_, process, "puts", path, "done"] if path.starts_with("adoptions/") => Some((process, folder(path, "adoptions")?, "adoptions")),
        [_, process, "seeks", partition, ..] => Some((process, partition.parse().ok()?, "seek")),
        _ => None,
    }
}

/// Whole take-overs in a trace; panics where one goes another way.
fn take_overs(lines: &[String]) -> u32 {
    let steps: Vec<_> = lines.iter().filter_map(|line| step(line)).collect();
    let mut whole = 0;
    for (at, (process, partition, _)) in steps.iter().enumerate().filter(|(_, (_, _, kind))| *kind == "claims") {
        let own = steps[at..].iter().filter(|(p, n, _)| (p, n) == (process, partition));
        let mut reached = 0;
        for (_, _, kind) in own {
            let number = STEPS.iter().position(|step| step == kind).unwrap_or_default();
            if number != reached {
                assert_eq!(number, reached + 1, "{process} takes {partition} over: {kind} after {}", STEPS[reached]);
                reached = number;
            }
            if reached == STEPS.len() - 1 {
                whole += 1;
                break;
            }
        }
    }
    whole
}

#[test]
fn claim_fence_manifest_decisions_adopt_seek() {
    let whole: u32 = (0..10).map(|seed| take_overs(&run_seed(seed, None, true).lines)).sum();
    assert!(whole > 100, "only {whole} take-overs in ten seeds");
}
