//! Pictures, laws and size of `predict`.

use expect_test::expect;
use fieldstream_engine_api::Operator;
use fieldstream_testkit::generate::Shape;
use fieldstream_testkit::{Laws, Rig, context, laws, readings_edge};
use serde_json::{Value, json};

use super::build;

fn predict(options: &Value) -> Box<dyn Operator> {
    build(options, &readings_edge(), &context()).unwrap()
}

/// One reading of `a` a second: a line with a little noise.
fn line(seconds: std::ops::Range<i32>, start: f64, slope: f64) -> String {
    let value = |s: i32| start + slope * f64::from(s) + f64::from(s * 7 % 5 - 2) * 0.01;
    std::iter::once("device ts value".to_owned()).chain(seconds.map(|s| format!("\n a {s} {}", value(s)))).collect()
}

const PICK: &[&str] =
    &["device_id", "sensor_id", "ts", "value", "limit", "time_to_event_ms", "earliest_ms", "latest_ms", "confidence", "actions"];

#[test]
fn a_rising_value_is_foretold_to_cross_its_limit() {
    let options = json!({"trend_to_limit": {"limit": 50, "lookback": "80s", "min_points": 40}, "actions": ["look at it"]});
    let mut rig = Rig::new(predict(&options));
    // 20 + s / 4 is 50 at 120 s.
    expect![[r#"
        [out]
        device_id  sensor_id  ts  value              limit  time_to_event_ms  earliest_ms  latest_ms  confidence          actions
        a          t          49  32.24999988079071  50     71000             71000        71000      1                   ["look at it"]
        a          t          59  34.74999988079071  50     61000             61000        61000      1                   ["look at it"]
        a          t          69  37.24999988079071  50     51000             51000        51000      1                   ["look at it"]
        a          t          79  39.74999988079071  50     41000             41000        41000      1                   ["look at it"]
        a          t          89  42.24999988079071  50     31000             31000        31000      1                   ["look at it"]
        a          t          90  42.49888037568056  50     30007             29997        30018      0.9992791533771258  ["look at it"]
        counts: received 91 absorbed 91 emitted 6
    "#]]
    .assert_eq(&rig.feed(&line(0..91, 20.0, 0.25)).then(rig.end()).picture(PICK));
}

#[test]
fn it_abstains_when_nothing_rises_or_it_is_too_far_or_the_evidence_is_thin() {
    let quiet = |options: Value, rows: &str| {
        let mut rig = Rig::new(predict(&json!({"trend_to_limit": options})));
        rig.feed(rows).then(rig.end()).port("").is_none()
    };
    let options = || json!({"limit": 50, "lookback": "80s", "min_points": 40});
    assert!(quiet(options(), &line(0..91, 20.0, 0.0)), "nothing rises");
    assert!(quiet(options(), &line(0..91, 20.0, -0.1)), "it leads away");
    assert!(quiet(options(), &line(0..91, 20.0, 0.1)), "too far ahead");
    assert!(quiet(options(), &line(0..39, 40.0, 0.2)), "few points");
    assert!(quiet(json!({"limit": 0, "direction": "up", "lookback": "80s"}), &line(0..91, 40.0, -0.4)), "from the other side");
    assert!(!quiet(json!({"limit": 0, "lookback": "80s"}), &line(0..91, 40.0, -0.4)), "down is a direction too");
}

#[test]
fn health_falls_with_the_worst_series_and_comes_back() {
    let mut rig = Rig::new(predict(&json!({"health": {"every": "100s", "warmup": 20, "alpha": 0.2}, "actions": ["oil", "rest"]})));
    let rows: String = (0..500)
        .map(|s| {
            let drift = if (200..300).contains(&s) { f64::from(s - 200) * 0.05 } else { 0.0 };
            format!("\n a p {s} {}\n a t {s} {}", 5.0 + f64::from(s % 3), 20.0 + f64::from(s * 7 % 5 - 2) * 0.5 + drift)
        })
        .collect();
    let turn = rig.feed(&format!("device sensor ts value{rows}")).then(rig.end());
    expect![[r#"
        [out]
        device_id  ts   health  trend      factors                actions
        a          99   100     stable     {"p":100.0,"t":100.0}  ["oil","rest"]
        a          199  100     stable     {"p":100.0,"t":100.0}  ["oil","rest"]
        a          299  36.9    degrading  {"p":100.0,"t":36.9}   ["oil","rest"]
        a          399  100     improving  {"p":100.0,"t":100.0}  ["oil","rest"]
        a          499  100     stable     {"p":100.0,"t":100.0}  ["oil","rest"]
        counts: received 1000 absorbed 1000 emitted 5
    "#]]
    .assert_eq(&turn.picture(&["device_id", "ts", "health", "trend", "factors", "actions"]));
}

#[test]
fn mistakes_are_named() {
    let told = |options: Value| {
        let errors = build(&options, &readings_edge(), &context()).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    expect!["needs exactly one method (trend_to_limit or health)"].assert_eq(&told(json!({"actions": []})));
    expect![[r#"
        /trend_to_limit/buckets: must lie between 4 and 32
        /trend_to_limit/interval: must lie between 0 and 1
        /trend_to_limit/lookback: must be longer, at least a millisecond a bucket
        /trend_to_limit/column: there is no column `valeu` (did you mean `value`?)"#]]
    .assert_eq(&told(json!({"trend_to_limit": {"column": "valeu", "limit": 1, "lookback": "1ms", "buckets": 99, "interval": 1}})));
    expect![[r#"
        /health/every: must be longer than nothing
        /health/warmup: must be 2 or more, or there is no deviation to learn
        /health/alpha: must lie between 0 and 1
        /health/worst: must be more than 1"#]]
    .assert_eq(&told(json!({"health": {"every": "0s", "alpha": 1, "worst": 1, "warmup": 1}})));
}

#[test]
fn trends_obey_the_laws() {
    let options = json!({"trend_to_limit": {"limit": 30, "lookback": "60s", "buckets": 6, "min_points": 4, "interval": 0.1, "where": "10 / (value - 21) < 9"}});
    laws(|| predict(&options), &Laws { shape: Shape { devices: 3, ..Shape::default() }, ..Laws::default() });
}

#[test]
fn health_obeys_the_laws() {
    let options = json!({"health": {"every": "20s", "warmup": 3, "alpha": 0.3, "worst": 3}});
    laws(|| predict(&options), &Laws { shape: Shape { devices: 3, ..Shape::default() }, ..Laws::default() });
}

/// Bytes a series of everything the operator keeps, in 100 000 slots.
fn bytes_a_series(mut operator: Box<dyn Operator>) -> usize {
    operator.states().into_iter().for_each(|state| state.grow_to(100_000));
    operator.states().iter().map(|state| state.bytes()).sum::<usize>() / 100_000
}

#[test]
fn a_device_with_threshold_ewma_and_a_trend_of_four_stretches_takes_at_most_400_bytes() {
    let detect = |options: Value| bytes_a_series(crate::detect::build(&options, &readings_edge(), &context()).unwrap());
    let threshold = detect(json!({"threshold": {"above": 1}}));
    let ewma = detect(json!({"ewma": {}}));
    let trend = bytes_a_series(predict(&json!({"trend_to_limit": {"limit": 1, "lookback": "1d", "buckets": 4}})));
    assert!(threshold + ewma + trend <= 250, "{threshold} + {ewma} + {trend}");
    let usual = bytes_a_series(predict(&json!({"trend_to_limit": {"limit": 1, "lookback": "14d"}})));
    assert!(usual <= 200, "{usual}");
}
