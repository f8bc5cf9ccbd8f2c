//! Pictures of changes: two files in, what becomes of what out.

use expect_test::{Expect, expect};

use super::*;
use crate::{Catalogue, Environment, load_text};

const FILE: &str = r#"
version: 1
pipeline: plant
time: { out_of_orderness: 5s }
sources:
  fleet: { generator: {} }
operators:
  clean: { validate: { rules: [{ id: range, range: { min: 0, max: 100 } }] }, inputs: [fleet] }
  minute: { window: { tumbling: 1m, by: series, aggregate: { mean: { mean: value } } }, inputs: [clean] }
  high: { detect: { threshold: { above: 40 } }, inputs: [clean] }
sinks:
  rows: { blackhole: {}, inputs: [minute] }
  alerts: { blackhole: {}, inputs: [high] }
discard: [fleet.rejected, clean.rejected, minute.rejected, minute.revised, minute.late, high.rejected]
"#;

fn plan(text: &str) -> Plan {
    let loaded = load_text("plant.yaml", text, &Environment::default(), &Catalogue::built_in());
    loaded.into_result().unwrap_or_else(|problems| panic!("{problems:#?}")).0
}

/// What `replacements` in the file change.
fn check(replacements: &[(&str, &str)], expected: &Expect) -> Change {
    let mut text = FILE.to_owned();
    for (from, to) in replacements {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let change = change(&plan(FILE), &plan(&text));
    // The words of digests follow the hash, not this test.
    let said = change.to_string().replace(&change.from, "OLD").replace(&change.to, "NEW");
    expected.assert_eq(&said);
    change
}

#[test]
fn nothing_changes() {
    let same = check(
        &[("version: 1\n", "# a comment\nversion: 1\n")],
        &expect![[r#"
        pipeline plant: plan OLD -> OLD
          operator minute (window) is the same
            keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
            keeps state minute/1: per series, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64
          operator high (detect) is the same
            keeps state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
        nothing changes
    "#]],
    );
    assert!(same.is_nothing());
}

#[test]
fn thresholds_sinks_and_settings_change_and_states_stay() {
    let change = check(
        &[("above: 40", "above: 45"), ("rows: { blackhole: {}", "rows: { stdout: {}"), ("out_of_orderness: 5s", "out_of_orderness: 10s")],
        &expect![[r#"
            pipeline plant: plan OLD -> NEW
              operator minute (window) is the same
                keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
                keeps state minute/1: per series, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64
              operator high (detect) changes
                keeps state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
              sink rows (stdout) changes
              setting time.out_of_orderness: 5s -> 10s
        "#]],
    );
    assert!(!change.is_nothing() && change.losses.is_empty() && change.refused.is_empty());
}

#[test]
fn a_window_with_other_aggregates_or_another_size_loses_what_is_open() {
    let change = check(
        &[("{ mean: { mean: value } }", "{ spread: { stddev: value } }")],
        &expect![[r#"
        pipeline plant: plan OLD -> NEW
          operator minute (window) changes
            keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
            LOSES state minute/1: per series, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64, mean_0: Float64, squares_0: Float64; it has other columns (+mean_0: Float64, +squares_0: Float64)
          operator high (detect) is the same
            keeps state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
        needs --accept-state-loss:
          state minute/1: it has other columns (+mean_0: Float64, +squares_0: Float64)
    "#]],
    );
    assert_eq!(change.losses.len(), 1);
    let change = check(
        &[("tumbling: 1m", "tumbling: 5m")],
        &expect![[r#"
        pipeline plant: plan OLD -> NEW
          operator minute (window) changes
            keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
            LOSES state minute/1: per series, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64; windows: tumbling 60s before, tumbling 300s now
          operator high (detect) is the same
            keeps state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
        needs --accept-state-loss:
          state minute/1: windows: tumbling 60s before, tumbling 300s now
    "#]],
    );
    assert_eq!(change.losses.len(), 1);
    let change = check(
        &[("by: series", "by: device")],
        &expect![[r#"
        pipeline plant: plan OLD -> NEW
          operator minute (window) changes
            keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
            LOSES state minute/1: per device, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64; it was kept per series, and is kept per device now
          operator high (detect) is the same
            keeps state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
        needs --accept-state-loss:
          state minute/1: it was kept per series, and is kept per device now
    "#]],
    );
    assert_eq!(change.losses.len(), 1);
}

#[test]
fn a_renamed_operator_is_a_lost_and_a_new_one() {
    let change = check(
        &[("  high: {", "  hot: {"), ("inputs: [high]", "inputs: [hot]"), ("high.rejected", "hot.rejected")],
        &expect![[r#"
        pipeline plant: plan OLD -> NEW
          operator minute (window) is the same
            keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
            keeps state minute/1: per series, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64
          operator hot (detect) is new
            begins state hot/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
          operator high (detect) is gone
            LOSES state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64; there is no such state any more
          sink alerts (blackhole) changes
        needs --accept-state-loss:
          state high/0: there is no such state any more
    "#]],
    );
    assert_eq!(change.losses, ["state high/0: there is no such state any more"]);
}

#[test]
fn another_log_or_pipeline_is_refused() {
    check(
        &[("generator: {}", "file: { path: \"*.ndjson\" }"), ("pipeline: plant", "pipeline: other")],
        &expect![[r#"
        pipeline other: plan OLD -> NEW
          source fleet (file) changes
          operator minute (window) is the same
            keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
            keeps state minute/1: per series, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64
          operator high (detect) is the same
            keeps state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
        cannot be applied: it is the pipeline `other`, not `plant`: another name is another pipeline
        cannot be applied: it reads another log (file instead of the journal): state and marks belong to a log, everything would start anew. Give it another pipeline name
    "#]],
    );
    let change = check(
        &[("  fleet: { generator: {} }", "  pumps: { generator: {} }"), ("[fleet]", "[pumps]"), ("fleet.rejected", "pumps.rejected")],
        &expect![[r#"
            pipeline plant: plan OLD -> NEW
              source pumps (generator) is new
              source fleet (generator) is gone
              operator clean (validate) changes
              operator minute (window) is the same
                keeps state minute/0: per device, layout 1, slot: UInt32, now: Int64, due: Int64
                keeps state minute/1: per series, layout 1, slot: UInt32, window_start: Int64, window_end: Int64, emitted: UInt64, count_0: UInt64, sum_0: Float64, min_0: Float64, max_0: Float64
              operator high (detect) is the same
                keeps state high/0: per series, layout 1, slot: UInt32, phase: UInt32, since: Int64, began: Int64, told: Float64
            needs --accept-state-loss:
              source fleet: what it has left unread in the journal is passed over
        "#]],
    );
    assert_eq!(change.losses, ["source fleet: what it has left unread in the journal is passed over"]);
}

#[test]
fn a_topic_for_the_journal_is_another_log_and_another_broker_of_it_is_not() {
    let journal = |brokers: &str, topic: &str| format!("journal: {{ kafka: {{ brokers: [\"{brokers}\"], topic: {topic} }} }}\nsources:\n");
    let with = |brokers: &str, topic: &str| plan(&FILE.replace("sources:\n", &journal(brokers, topic)));
    let (old, moved) = (with("a:1", "t"), with("b:1", "t"));
    let other = "Give it another pipeline name";
    let refused = |from: &Plan, to: &Plan| change(from, to).refused.join("; ");
    assert!(refused(&plan(FILE), &old).starts_with("it reads another log (kafka [\"t\"] instead of the journal)"));
    assert!(refused(&old, &with("a:1", "u")).contains(other) && refused(&old, &plan(FILE)).contains(other));
    assert_eq!(refused(&old, &moved), "");
    assert!(change(&old, &moved).to_string().contains("journal kafka (kafka) changes"));
    assert_ne!(crate::receivers(&old), crate::receivers(&moved), "receivers that run write to the brokers they know");
}

#[test]
fn receivers_are_the_same_unless_something_of_them_changes() {
    let of = |text: &str| crate::receivers(&plan(text));
    assert_eq!(of(FILE), of(&FILE.replace("above: 40", "above: 50")));
    assert_ne!(of(FILE), of(&FILE.replace("generator: {}", "generator: { devices: 3 }")));
}
