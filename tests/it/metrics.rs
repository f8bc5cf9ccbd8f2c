//! What Prometheus scrapes from a running node: every family well formed, with the counts that must be there.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::node::{Node, fieldstream};

const PIPELINE: &str = "
version: 1
pipeline: scraped
checkpoint: { interval: 200ms }
sources:
  field: { generator: { devices: 20, seed: 1, rate: 1, speed: 600 } }
operators:
  clean:
    validate: { rules: [{ id: range, range: { min: -60, max: 300 } }] }
    inputs: [field]
  minute:
    window: { tumbling: 1m, by: series, aggregate: { mean: { mean: value } } }
    inputs: [clean]
sinks:
  rows: { file: { path: rows.ndjson }, batch: { max_wait: 50ms }, inputs: [minute] }
dead_letter: { file: { path: dead-letters.ndjson } }
discard: [minute.late]
";

/// The value of one sample, whole name with labels.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Asks promtool; without it only what is below is checked, loudly.
fn check_by_promtool(text: &str) {
    let Ok(mut tool) =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    else {
        eprintln!("SKIPPED: promtool (Debian package prometheus) is not installed, the metrics' form was not checked");
        return;
    };
    tool.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("promtool reads");
    let said = tool.wait_with_output().expect("promtool ends");
    let words = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && words.trim().is_empty(), "{words}\n{text}");
}

#[test]
fn metrics_are_well_formed_and_count_what_happened() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("scraped.yaml"), PIPELINE).expect("a file");
    let mut command = fieldstream();
    command.arg("run").arg("scraped.yaml");
    let mut node = Node::start(command, "scraped", dir.path());
    node.until("readings that are settled", |l| l["settled"].as_u64() > Some(1000) && l["delivered"]["rows"].as_u64() > Some(10));
    let checkpoints = r#"fieldstream_checkpoint_duration_seconds_count{pipeline="scraped"}"#;
    let text = crate::node::eventually("a checkpoint", || {
        let text = node.get("/metrics")?;
        sample(&text, checkpoints).is_some_and(|n| n >= 1.0).then_some(text)
    });
    check_by_promtool(&text);
    for (name, kind) in [("clean", "validate"), ("minute", "window")] {
        let labels = format!(r#"component="{name}",kind="{kind}",pipeline="scraped""#);
        let of = |family: &str| {
            let found = sample(&text, &format!("{family}{{{labels}}}"));
            found.unwrap_or_else(|| panic!("{family} of {name} in\n{text}"))
        };
        let (batches, turns) = (of("fieldstream_component_batches_total"), of("fieldstream_operator_duration_seconds_count"));
        assert!(turns >= 1.0 && batches >= 1.0, "{turns} turns, {batches} batches");
        assert!(of("fieldstream_operator_duration_seconds_sum") > 0.0);
        let all = sample(&text, &format!(r#"fieldstream_operator_duration_seconds_bucket{{{labels},le="+Inf"}}"#));
        assert_eq!(all, Some(turns), "the last bucket holds all");
    }
    assert!(sample(&text, "fieldstream_journal_fsync_duration_seconds_count").is_some_and(|n| n >= 1.0), "{text}");
    assert_eq!(sample(&text, r#"fieldstream_ledger_imbalance{pipeline="scraped"}"#), Some(0.0));
    node.stop();
}
