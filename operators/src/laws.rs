//! Every operator of the catalogue obeys the laws. One line for each configuration worth trying.

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use fieldstream_engine_api::Edge;
use fieldstream_testkit::{Laws, context, laws, readings_edge};
use serde_json::{Value, json};

use crate::catalogue::{OPERATORS, find};

/// A configuration to try: kind, options, and what flows in.
struct Tried {
    kind: &'static str,
    options: Value,
    edge: fn() -> Edge,
    input: fn(RecordBatch) -> RecordBatch,
}

/// Over readings.
fn readings(kind: &'static str, options: Value) -> Tried {
    Tried { kind, options, edge: readings_edge, input: |rows| rows }
}

fn stateless() -> Vec<Tried> {
    vec![
        readings("filter", json!({"where": "value > 21 OR quality <> 'good'"})),
        readings("filter", json!({"where": "100 / CAST(round(value) AS BIGINT) >= 4"})),
        readings("map", json!({"set": {"value": "value * 2", "n": "100 / (CAST(value AS BIGINT) - 21)", "quality": "'bad'"}})),
        readings("map", json!({"select": {"device_id": "device_id", "ts": "ts", "half": "value / 2"}})),
        readings("route", json!({"routes": {"a": "value > 23", "b": "value > 21"}, "otherwise": "c"})),
        readings("batch", json!({"max_rows": 3})),
    ]
}

fn stateful() -> Vec<Tried> {
    vec![
        readings("dedupe", json!({"by": ["sensor_id", "ts"], "last": 4})),
        readings("dedupe", json!({"by": ["value", "text", "quality", "flag"], "last": 3, "space": "device"})),
        readings(
            "validate",
            json!({"units": {"temperature": "K"}, "rules": [
                {"id": "range", "range": {"min": 0, "max": 40}, "otherwise": {"quality": "uncertain"}},
                {"id": "rate", "rate": {"max_step": 2, "resync": 2}},
                {"id": "speed", "rate": {"max_per_second": 0.5}, "otherwise": {"quality": "bad"}},
                {"id": "stuck", "stuck": {"count": 3, "for": "10s"}, "sensor": "s0"},
                {"id": "check", "check": "100 / (CAST(value AS BIGINT) - 21) > -1000"},
            ]}),
        ),
        readings("deadband", json!({"absolute": 1.0})),
        readings("deadband", json!({"percent": 5, "max_silence": "20s"})),
    ]
}

/// Windows, detectors and predictors; their own files try more of them.
fn methods() -> Vec<Tried> {
    vec![
        readings("window", json!({"tumbling": "10s", "by": "series", "aggregate": {"n": {"count": "value"}, "mean": {"mean": "value"}}})),
        readings("detect", json!({"ewma": {"warmup": 5, "z": 2}, "emit": "row"})),
        readings("predict", json!({"health": {"every": "20s", "warmup": 3}})),
    ]
}

fn all() -> Vec<Tried> {
    [stateless(), stateful(), methods()].into_iter().flatten().collect()
}

/// Kinds that keep state in one of the configurations above.
pub(crate) fn kinds_with_state() -> BTreeSet<&'static str> {
    let stateful = |t: &Tried| {
        let operator = (find(t.kind).unwrap().build)(&t.options, &(t.edge)(), &context());
        operator.is_ok_and(|mut operator| !operator.states().is_empty())
    };
    all().iter().filter(|t| stateful(t)).map(|t| t.kind).collect()
}

#[test]
fn every_operator_has_laws() {
    let tried: BTreeSet<&str> = all().iter().map(|t| t.kind).collect();
    let offered: BTreeSet<&str> = OPERATORS.iter().map(|o| o.name).collect();
    assert_eq!(tried, offered, "each operator of the catalogue needs a line here");
}

fn obey(tried: &[Tried]) {
    for Tried { kind, options, edge, input } in tried {
        println!("{kind} {options}");
        let build = find(kind).unwrap().build;
        let make = || build(options, &edge(), &context()).unwrap_or_else(|e| panic!("{kind}: {e:?}"));
        // Fewer histories than the default: planning SQL for each of them takes most of the time.
        laws(make, &Laws { cases: 24, input: *input, ..Laws::default() });
    }
}

#[test]
fn stateless_operators_obey() {
    obey(&stateless());
}

#[test]
fn stateful_operators_obey() {
    obey(&stateful());
}

#[test]
fn windows_detectors_and_predictors_obey() {
    obey(&methods());
}
