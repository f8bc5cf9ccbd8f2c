//! Pictures and laws of `detect`.

use expect_test::expect;
use fieldstream_engine_api::{Operator, TickTime};
use fieldstream_testkit::generate::Shape;
use fieldstream_testkit::{Laws, Rig, context, laws, readings_edge};
use serde_json::{Value, json};

use super::build;

const PICK: &[&str] =
    &["device_id", "sensor_id", "ts", "state", "severity", "description", "value", "limit", "deviation", "raised_ts", "reading_id"];

fn detect(options: &Value) -> Box<dyn Operator> {
    build(options, &readings_edge(), &context()).unwrap()
}

fn rig(options: &Value) -> Rig {
    Rig::new(detect(options))
}

/// Readings of one series, one a second from 0.
fn series(values: impl IntoIterator<Item = f64>) -> String {
    let rows = values.into_iter().enumerate().map(|(s, v)| format!("\n a {s} {v}"));
    std::iter::once("device ts value".to_owned()).chain(rows).collect()
}

#[test]
fn a_threshold_episode_waits_worsens_and_ends_beyond_its_dead_band() {
    let mut rig = rig(&json!({
        "threshold": {"above": 10, "deadband": 2, "where": "quality <> 'bad'"},
        "on_delay": "2s", "off_delay": "1s", "alarm": {"severity": "high", "text": "{device_id}/{sensor_id} at {value} ({quality})"},
    }));
    let rows = series([11.0, 9.0, 11.0, 12.0, 11.0, 11.5, 13.0, 9.0, 8.5, 8.0, 7.0, 7.0]);
    expect![[r#"
        [out]
        device_id  sensor_id  ts  state    severity  description       value  limit  deviation  raised_ts  reading_id
        a          t          4   raised   high      a/t at 11 (good)  11     10     1          2          -
        a          t          6   updated  high      a/t at 13 (good)  13     10     3          2          -
        a          t          10  cleared  high      a/t at 7 (good)   7      -      -          2          -
        counts: received 12 absorbed 12 emitted 3
    "#]]
    .assert_eq(&rig.feed(&rows).picture(PICK));
    expect![[r#"
        counts: received 2 absorbed 2
    "#]]
    .assert_eq(&rig.feed("device ts value quality\n b 0 99 bad\n b 9 99 bad").picture(PICK));
}

#[test]
fn an_alert_per_row_carries_the_readings_id_or_one_of_its_own() {
    let mut rig = rig(&json!({"threshold": {"below": 0}, "emit": "row"}));
    let turn = rig.feed("device ts value id\n a 0 -1 x1\n a 1 0 x2\n a 2 -inf -\n a 3 NaN -\n a 4 - -");
    expect![[r#"
        [out]
        id                                    ts  state  value  limit  reading_id
        x1                                    0   row    -1     0      x1
        3c2a6d1f-cd78-558a-85fa-1980f83dc724  2   row    -inf   0      -
        counts: received 5 absorbed 5 emitted 2
    "#]]
    .assert_eq(&turn.picture(&["id", "ts", "state", "value", "limit", "reading_id"]));
}

#[test]
fn ewma_judges_before_it_learns() {
    let mut rig = rig(&json!({"ewma": {}, "emit": "row"}));
    let values = (0..40).map(|i| if i == 35 { 30.0 } else { 20.0 + f64::from(i % 3) });
    let (mut mean, mut var, mut expected) = (0.0_f64, 0.0_f64, Vec::new());
    for (n, x) in values.clone().enumerate() {
        if n == 0 {
            mean = x;
            continue;
        }
        let d = x - mean;
        if n >= 30 && var > 1e-9 && (d / var.sqrt()).abs() > 4.0 {
            expected.push((mean, var.sqrt(), d / var.sqrt()));
        }
        mean += 0.05 * d;
        var = 0.95 * (var + 0.05 * d * d);
    }
    let alerts = rig.feed(&series(values)).port("").unwrap();
    let column = |name: &str| fieldstream_testkit::text::cell(alerts.column_by_name(name).unwrap(), 0);
    let (mean, std, z) = expected[0];
    assert_eq!((alerts.num_rows(), expected.len()), (1, 1));
    assert_eq!((column("expected"), column("spread"), column("deviation")), (mean.to_string(), std.to_string(), z.to_string()));
}

#[test]
fn a_level_shift_is_one_alarm() {
    let noise = |i: i32| f64::from(i * 7 % 5) * 0.1;
    let values: Vec<f64> = (0..120).map(|i| if i < 60 { 20.0 } else { 40.0 } + noise(i)).collect();
    for (options, what) in [
        (json!({"ewma": {}}), "ewma"),
        (json!({"robust": {"window": 21}}), "robust"),
        (json!({"cusum": {"warmup": 20, "shift_after": 10}}), "cusum"),
    ] {
        let turn = rig(&options).feed(&series(values.clone()));
        let alerts = turn.port("").unwrap();
        let states: Vec<String> =
            (0..alerts.num_rows()).map(|r| fieldstream_testkit::text::cell(alerts.column_by_name("state").unwrap(), r)).collect();
        assert_eq!(states, ["raised", "cleared"], "{what}");
    }
}

#[test]
fn rate_flatline_and_gap() {
    let rows = "device ts value\n a 0 1\n a 1 2\n a 0.5 9\n a 2 9\n a 3 9.05\n a 4 9\n a 5 9\n a 6 12\n a 30 12";
    expect![[r#"
        [out]
        device_id  sensor_id  ts  state    severity  description                                   value  limit  deviation  raised_ts  reading_id
        a          t          2   raised   medium    changes by 7 a second, at most 3 is possible  9      3      7          2          -
        a          t          3   cleared  medium    back to normal                                9.05   -      -          2          -
        counts: received 9 absorbed 9 emitted 2
    "#]].assert_eq(&rig(&json!({"rate": {"max_per_second": 3}})).feed(rows).picture(PICK));
    expect![[r#"
        [out]
        device_id  sensor_id  ts  state    severity  description               value  limit  deviation  raised_ts  reading_id
        a          t          3   raised   medium    has stood at 9 for 2.5 s  9.05   2      2.5        3          -
        a          t          6   cleared  medium    back to normal            12     -      -          3          -
        a          t          30  raised   medium    has stood at 12 for 24 s  12     2      24         30         -
        counts: received 9 absorbed 9 emitted 3
    "#]]
    .assert_eq(&rig(&json!({"flatline": {"for": "2s", "tolerance": 0.1}})).feed(rows).picture(PICK));
    let mut gap = rig(&json!({"gap": {"after": "10s"}}));
    expect![[r#"
        [out]
        device_id  sensor_id  ts  state    severity  description      value  limit  deviation  raised_ts  reading_id
        a          t          30  raised   medium    silent for 24 s  -      10     24         6          -
        a          t          30  cleared  medium    back to normal   -      10     24         6          -
        counts: received 9 absorbed 9 emitted 2
    "#]]
    .assert_eq(&gap.feed(rows).picture(PICK));
    expect![[r#"
        [out]
        device_id  sensor_id  ts  state   severity  description      value  limit  deviation  raised_ts  reading_id
        a          t          45  raised  medium    silent for 15 s  -      10     15         30         -
        counts: emitted 1
    "#]]
    .assert_eq(&gap.tick(TickTime::Append(45_000_000)).picture(PICK));
    expect![[r#"
        [out]
        device_id  sensor_id  ts  state    severity  description     value  limit  deviation  raised_ts  reading_id
        a          t          61  cleared  medium    back to normal  -      10     31         30         -
        counts: received 1 absorbed 1 emitted 1
    "#]]
    .assert_eq(&gap.tick(TickTime::Append(60_000_000)).then(gap.feed("device ts value\n a 61 1")).then(gap.end()).picture(PICK));
}

#[test]
fn mistakes_are_named() {
    let told = |options: Value| {
        let errors = build(&options, &readings_edge(), &context()).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    expect!["needs exactly one method (threshold, ewma, robust, cusum, rate, flatline or gap)"].assert_eq(&told(json!({"emit": "row"})));
    expect![[r#"
        /threshold/column: there is no column `valeu` (did you mean `value`?)
        /threshold/where: a condition must be true or false, this gives a number; compare it with something
        /threshold: there is no limit (write `above:` or `below:`)
        /threshold/deadband: must be 0 or more
        /alarm/text: there is no column `devic_id` (did you mean `device_id`?)"#]]
    .assert_eq(&told(json!({"threshold": {"column": "valeu", "where": "value", "deadband": -1}, "alarm": {"text": "{devic_id}"}})));
    expect![[r#"
        /ewma/alpha: must lie between 0 and 1
        /ewma/z: must be more than 0"#]]
    .assert_eq(&told(json!({"ewma": {"alpha": 2, "z": 0}})));
    expect!["/emit: rows have no delays (write `emit: episode`, or leave the delays out)"]
        .assert_eq(&told(json!({"rate": {"max_per_second": 1}, "emit": "row", "on_delay": "1s"})));
}

#[test]
fn every_method_obeys_the_laws() {
    let methods = [
        json!({"threshold": {"above": 23, "below": 20.5, "deadband": 0.5, "where": "100 / (value - 21) > 0"}}),
        json!({"ewma": {"warmup": 5, "z": 2}}),
        json!({"robust": {"window": 5, "k": 2}}),
        json!({"cusum": {"warmup": 4, "h": 2, "shift_after": 3}}),
        json!({"rate": {"max_per_second": 0.5}}),
        json!({"flatline": {"for": "3s", "tolerance": 1}}),
        json!({"gap": {"after": "6s"}}),
    ];
    for mut options in methods {
        for (emit, delayed) in [("row", false), ("episode", false), ("episode", true)] {
            options["emit"] = emit.into();
            if delayed && options.get("gap").is_none() {
                (options["on_delay"], options["off_delay"]) = ("2s".into(), "3s".into());
            }
            let shape = Shape { devices: 3, jitter_us: 2_000_000, ..Shape::default() };
            laws(|| detect(&options), &Laws { cases: 6, shape, ..Laws::default() });
        }
    }
}

#[test]
fn over_windows_two_warm_minutes_stay_quiet_and_five_raise_one_alarm() {
    let window = json!({"tumbling": "1m", "aggregate": {
        "max_c": {"max": "value"}, "good": {"mean": "CASE WHEN quality = 'good' THEN 1.0 ELSE 0.0 END"},
    }});
    let window = crate::window::build(&window, &readings_edge(), &context()).unwrap();
    let detect = json!({
        "threshold": {"column": "max_c", "above": -18.0, "deadband": 1.5, "where": "good >= 0.8"},
        "on_delay": "3m", "off_delay": "5m", "alarm": {"severity": "high", "text": "{device_id} at {max_c} C"},
    });
    let mut detect = Rig::new(build(&detect, &window.outputs()[0].edge, &context()).unwrap());
    let runs = [(-20.0, 9), (-12.0, 2), (-20.0, 9), (-12.0, 5), (-20.0, 9)];
    let values = runs.iter().flat_map(|(value, times)| std::iter::repeat_n(value, *times));
    let rows: String = values.enumerate().map(|(minute, value)| format!("\n f1 {} {value}", minute * 60)).collect();
    let mut windows = Rig::new(window);
    let turn = windows.feed(&format!("device ts value{rows}"));
    let minutes = turn.then(windows.end()).port("").unwrap();
    expect![[r#"
        [out]
        device_id  ts    state    description  raised_ts
        f1         1440  raised   f1 at -12 C  1260
        f1         1860  cleared  f1 at -20 C  1260
        counts: received 34 absorbed 34 emitted 2
    "#]]
    .assert_eq(&detect.batch(&minutes).picture(&["device_id", "ts", "state", "description", "raised_ts"]));
}
