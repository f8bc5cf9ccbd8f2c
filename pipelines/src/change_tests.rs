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
fn check(replacements: &[(&str, &str)], expected: Expect) -> Change {
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
    let same = check(&[("version: 1\n", "# a comment\nversion: 1\n")], expect![[""]]);
    assert!(same.is_nothing());
}

#[test]
fn thresholds_sinks_and_settings_change_and_states_stay() {
    let change = check(
        &[("above: 40", "above: 45"), ("rows: { blackhole: {}", "rows: { stdout: {}"), ("out_of_orderness: 5s", "out_of_orderness: 10s")],
        expect![[""]],
    );
    assert!(!change.is_nothing() && change.losses.is_empty() && change.refused.is_empty());
}

#[test]
fn a_window_with_other_aggregates_or_another_size_loses_what_is_open() {
    let change = check(&[("{ mean: { mean: value } }", "{ spread: { stddev: value } }")], expect![[""]]);
    assert_eq!(change.losses.len(), 1);
    let change = check(&[("tumbling: 1m", "tumbling: 5m")], expect![[""]]);
    assert_eq!(change.losses.len(), 1);
    let change = check(&[("by: series", "by: device")], expect![[""]]);
    assert_eq!(change.losses.len(), 1);
}

#[test]
fn a_renamed_operator_is_a_lost_and_a_new_one() {
    let change = check(&[("  high: {", "  hot: {"), ("inputs: [high]", "inputs: [hot]"), ("high.rejected", "hot.rejected")], expect![[""]]);
    assert_eq!(change.losses, ["state high/0: there is no such state any more"]);
}

#[test]
fn another_log_or_pipeline_is_refused() {
    check(&[("generator: {}", "file: { path: \"*.ndjson\" }"), ("pipeline: plant", "pipeline: other")], expect![[""]]);
    let change = check(
        &[("  fleet: { generator: {} }", "  pumps: { generator: {} }"), ("[fleet]", "[pumps]"), ("fleet.rejected", "pumps.rejected")],
        expect![[""]],
    );
    assert_eq!(change.losses, ["source fleet: what it has left unread in the journal is passed over"]);
}

#[test]
fn receivers_are_the_same_unless_something_of_them_changes() {
    let of = |text: &str| crate::receivers(&plan(text));
    assert_eq!(of(FILE), of(&FILE.replace("above: 40", "above: 50")));
    assert_ne!(of(FILE), of(&FILE.replace("generator: {}", "generator: { devices: 3 }")));
}
