//! Pictures of `validate`.

use expect_test::{Expect, expect};
use fieldstream_engine_api::{Keys, Position};
use fieldstream_testkit::{Rig, context, readings_edge, text};
use serde_json::json;

use super::*;

fn validate(options: &Value) -> Box<dyn Operator> {
    build(options, &readings_edge(), &context()).unwrap_or_else(|e| panic!("{e:?}"))
}

fn check(options: &Value, picture: &str, columns: &[&str], expected: &Expect) {
    expected.assert_eq(&Rig::new(validate(options)).feed(picture).picture(columns));
}

fn rule(rule: &Value) -> Value {
    json!({"rules": [rule]})
}

#[test]
fn units_are_converted_or_refused() {
    check(
        &json!({"units": {"temperature": "Cel", "pressure": "kPa"}}),
        "device type ts value unit\n a temperature 0 212 F\n a temperature 1 20 celsius\n a temperature 2 21 -\n a temperature 3 5 bogus\n a temperature 4 5 V\n a pressure 5 2 bar\n a humidity 6 40 bogus\n a temperature 7 - F\n a temperature 8 19 Cel",
        &["ts", "value", "unit"],
        &expect![[r#"
            [out]
            ts  value  unit
            0   100    Cel
            1   20     Cel
            2   21     Cel
            5   200    kPa
            6   40     bogus
            7   -      F
            8   19     Cel
            [rejected] offset 3 unit: unit `bogus` cannot be converted to Cel
            [rejected] offset 4 unit: unit `V` cannot be converted to Cel
            counts: received 9 forwarded 7 rejected 2
        "#]],
    );
}

#[test]
fn the_first_rule_that_fails_counts() {
    check(
        &json!({"rules": [
            {"id": "timestamp", "timestamp": {"min": "1970-01-01T00:00:10Z", "max": "1970-01-01T00:00:20Z"}},
            {"id": "range", "range": {"min": -40, "max": 85}},
            {"id": "quality", "quality": {"min_score": 0.5}},
        ]}),
        "device ts value score\n a 9 99 0.1\n a 10 85 0.5\n a 19 -40 -\n a 20 1 1\n a 12 85.1 0.1\n a 13 1 0.49\n a 14 NaN 1\n a 15 - 1\n a 16 1 NaN",
        &["ts", "value", "score"],
        &expect![[r#"
            [out]
            ts  value  score
            10  85     0.5
            19  -40    -
            15  -      1
            [rejected] offset 0 timestamp: ts is not from 1970-01-01T00:00:10.000Z, before 1970-01-01T00:00:20.000Z
            [rejected] offset 3 timestamp: ts is not from 1970-01-01T00:00:10.000Z, before 1970-01-01T00:00:20.000Z
            [rejected] offset 4 range: value is not in [-40, 85]
            [rejected] offset 6 range: value is not in [-40, 85]
            [rejected] offset 5 quality: score is below 0.5
            [rejected] offset 8 quality: score is below 0.5
            counts: received 9 forwarded 3 rejected 6
        "#]],
    );
}

#[test]
fn age_and_future_are_judged_by_ingest_time_where_there_is_one() {
    check(
        &rule(&json!({"id": "clock", "timestamp": {"max_age": "1m", "max_future": "10s"}})),
        "device ts ingest_ts value\n a 100 100 1\n a 100 160 2\n a 100 161 3\n a 100 90 4\n a 100 89 5\n a 9999 - 6",
        &["ts", "ingest_ts", "value"],
        &expect![[r#"
            [out]
            ts    ingest_ts  value
            100   100        1
            100   160        2
            100   90         4
            9999  -          6
            [rejected] offset 2 clock: ts is not at most 60s old, at most 10s ahead
            [rejected] offset 4 clock: ts is not at most 60s old, at most 10s ahead
            counts: received 6 forwarded 4 rejected 2
        "#]],
    );
}

#[test]
fn quality_classes_and_required_columns() {
    check(
        &json!({"rules": [{"id": "class", "quality": {"min": "uncertain"}}, {"id": "required", "required": ["unit", "sensor_type"]}]}),
        "device type ts value unit quality\n a t 0 1 V good\n a t 1 1 V uncertain\n a t 2 1 V bad\n a - 3 1 V good\n a t 4 1 - good",
        &["ts", "quality"],
        &expect![[r#"
            [out]
            ts  quality
            0   good
            1   uncertain
            [rejected] offset 2 class: quality is below uncertain
            [rejected] offset 3 required: missing: one of unit, sensor_type
            [rejected] offset 4 required: missing: one of unit, sensor_type
            counts: received 5 forwarded 2 rejected 3
        "#]],
    );
}

#[test]
fn a_check_must_be_true_and_sees_what_rules_before_it_did() {
    check(
        &json!({"rules": [
            {"id": "doubt", "range": {"max": 50}, "otherwise": {"quality": "uncertain"}},
            {"id": "check", "check": "value > 0 AND quality = 'good' AND CAST(text AS INT) = 1"},
        ]}),
        "device ts value text\n a 0 1 1\n a 1 - 1\n a 2 51 1\n a 3 1 x\n a 4 -1 1",
        &["ts", "value", "quality"],
        &expect![[r#"
            [out]
            ts  value  quality
            0   1      good
            [rejected] offset 3 expression: Cast error: Cannot cast string 'x' to value of Int32 type
            [rejected] offset 1 check: not true: value > 0 AND quality = 'good' AND CAST(text AS INT) = 1
            [rejected] offset 2 check: not true: value > 0 AND quality = 'good' AND CAST(text AS INT) = 1
            [rejected] offset 4 check: not true: value > 0 AND quality = 'good' AND CAST(text AS INT) = 1
            counts: received 5 forwarded 1 rejected 4
        "#]],
    );
}

#[test]
fn rules_apply_to_their_type_and_sensor() {
    check(
        &json!({"rules": [
            {"id": "range", "range": {"max": 10}, "type": "temperature"},
            {"id": "range", "range": {"max": 20}, "sensor": "p"},
        ]}),
        "device sensor type ts value\n a t temperature 0 11\n a t - 1 11\n a p pressure 2 11\n a p pressure 3 21",
        &["sensor_id", "ts", "value"],
        &expect![[r#"
            [out]
            sensor_id  ts  value
            t          1   11
            p          2   11
            [rejected] offset 0 range: value is above 10
            [rejected] offset 3 range: value is above 20
            counts: received 4 forwarded 2 rejected 2
        "#]],
    );
}

#[test]
fn a_spike_is_refused_and_a_new_level_is_taken_in_the_end() {
    check(
        &rule(&json!({"id": "spike", "rate": {"max_step": 5, "resync": 2}})),
        "device sensor ts value\n a t 0 10\n a t 1 90\n a t 2 11\n a p 2 90\n a t 3 50\n a t 4 51\n a t 5 52\n a t 6 53\n a t 7 NaN\n a t 8 54",
        &["sensor_id", "ts", "value"],
        &expect![[r#"
            [out]
            sensor_id  ts  value
            t          0   10
            t          2   11
            p          2   90
            t          5   52
            t          6   53
            t          7   NaN
            t          8   54
            [rejected] offset 1 spike: value moved by more than 5
            [rejected] offset 4 spike: value moved by more than 5
            [rejected] offset 5 spike: value moved by more than 5
            counts: received 10 forwarded 7 rejected 3
        "#]],
    );
    check(
        &rule(&json!({"id": "speed", "rate": {"max_per_second": 1}, "otherwise": {"quality": "bad"}})),
        "device ts value\n a 0 10\n a 10 20\n a 11 22\n a 5 90\n a 12 22\n a 12 29",
        &["ts", "value", "quality"],
        &expect![[r#"
            [out]
            ts  value  quality
            0   10     good
            10  20     good
            11  22     bad
            5   90     good
            12  22     good
            12  29     good
            counts: received 6 forwarded 6
        "#]],
    );
}

#[test]
fn a_value_that_never_changes_is_stuck() {
    check(
        &rule(&json!({"id": "stuck", "stuck": {"count": 3, "tolerance": 0.1}, "otherwise": {"quality": "uncertain"}})),
        "device ts value\n a 0 10\n a 1 10.05\n a 2 10\n a 3 9.9\n a 4 10.2\n b 5 10\n a 6 10.2",
        &["device_id", "ts", "value", "quality"],
        &expect![[r#"
            [out]
            device_id  ts  value  quality
            a          0   10     good
            a          1   10.05  good
            a          2   10     uncertain
            a          3   9.9    uncertain
            a          4   10.2   good
            b          5   10     good
            a          6   10.2   good
            counts: received 7 forwarded 7
        "#]],
    );
    check(
        &rule(&json!({"id": "stuck", "stuck": {"for": "10m"}})),
        "device ts value\n a 0 10\n a 599 10\n a 600 10\n a 601 11",
        &["ts", "value"],
        &expect![[r#"
            [out]
            ts   value
            0    10
            599  10
            601  11
            [rejected] offset 2 stuck: value is the same for 600s
            counts: received 4 forwarded 3 rejected 1
        "#]],
    );
}

#[test]
fn a_quality_is_never_made_better() {
    check(
        &rule(&json!({"id": "doubt", "range": {"max": 0}, "otherwise": {"quality": "uncertain"}})),
        "device ts value quality\n a 0 1 good\n a 1 1 bad\n a 2 0 good",
        &["ts", "quality"],
        &expect![[r#"
            [out]
            ts  quality
            0   uncertain
            1   bad
            2   good
            counts: received 3 forwarded 3
        "#]],
    );
}

#[test]
fn a_batch_in_order_is_not_copied() {
    let mut operator = validate(&json!({"units": {"temperature": "Cel"}, "rules": [{"id": "range", "range": {"min": 0}}]}));
    let rows = text::readings("device type ts value unit\n a temperature 0 2 Cel\n a humidity 0 2 bogus");
    let mut keys = Keys::default();
    (0..2).for_each(|row| keys.push(0, 0, Position::new(row, 0)));
    let batch = KeyedBatch::new(rows, keys);
    let mut out = Emitter::default();
    operator.on_batch(&batch, &SlotDirectory::default(), &mut out);
    let (sent, _, _) = out.finish(2);
    assert!(Arc::ptr_eq(&sent[0].1.keys, &batch.keys) && Arc::ptr_eq(sent[0].1.rows.column(5), batch.rows.column(5)));
}

#[test]
fn codes_are_named_beforehand() {
    let options = json!({"units": {"temperature": "Cel"}, "rules": [
        {"id": "range", "range": {"min": 0}}, {"id": "range", "range": {"min": 1}, "type": "x"},
        {"id": "soft", "range": {"min": 0}, "otherwise": {"quality": "bad"}},
    ]});
    let codes: Vec<String> = validate(&options).reject_codes().iter().map(ToString::to_string).collect();
    assert_eq!(codes, ["unit", "range"]);
}

#[test]
fn all_mistakes_are_told_with_their_places() {
    let told = |options: Value| {
        let errors = build(&options, &readings_edge(), &context()).err().unwrap();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let all = [
        told(json!({})),
        told(json!({"units": {"temperature": "Celcius", "a/b": "zzzzzz"}, "rules": [
            {"id": "a", "check": "valeu > 1"},
            {"id": "b"},
            {"id": "c", "check": "value > 1", "range": {"min": 1}},
            {"id": "", "range": {"min": 1}},
            {"id": "d", "range": {"min": 2, "max": 1}},
            {"id": "e", "range": {}},
            {"id": "f", "timestamp": {}},
            {"id": "g", "timestamp": {"min": "2026-01-02T00:00:00Z", "max": "2026-01-01T00:00:00Z"}},
            {"id": "h", "required": ["unti"]},
            {"id": "i", "required": []},
            {"id": "j", "rate": {}},
            {"id": "k", "rate": {"max_step": -1}},
            {"id": "l", "rate": {"max_step": 1, "resync": 0}},
            {"id": "m", "stuck": {"count": 1}},
            {"id": "n", "stuck": {}},
            {"id": "o", "quality": {}},
            {"id": "p", "check": "value"},
        ]})),
        told(json!({"rules": [{"id": "a", "range": {"mni": 1}}]})),
        told(json!({"rules": [{"id": "a", "range": {"min": 1}, "otherwise": {"quality": "good"}}]})),
        told(json!({"rules": [{"id": "a", "range": {"min": 1}, "otherwise": "rejct"}]})),
        told(json!({"rules": [{"range": {"min": 1}}]})),
    ];
    expect![[r#"
        nothing to validate (write `units` or `rules`)
        /units/a~1b: unknown unit `zzzzzz` (use a UCUM name such as Cel, kPa, mV or l/min)
        /units/temperature: unknown unit `Celcius` (did you mean `celsius`?)
        /rules/0/check: there is no column `valeu` (did you mean `value`?)
        /rules/1: the rule has no check (write one of check, range, timestamp, quality, required, rate, stuck)
        /rules/2: the rule has more than one check (write a rule for each)
        /rules/3/id: must not be empty
        /rules/4/range: `min` 2 is above `max` 1
        /rules/5/range: there is no limit (write `min`, `max` or both)
        /rules/6/timestamp: there is no limit (write `min`, `max`, `max_age` or `max_future`)
        /rules/7/timestamp: `min` is not before `max`
        /rules/8/required/0: there is no column `unti` (did you mean `unit`?)
        /rules/9/required: there is no column
        /rules/10/rate: there is no limit (write `max_step` or `max_per_second`)
        /rules/11/rate/max_step: must be 0 or more
        /rules/12/rate/resync: must be at least 1
        /rules/13/stuck/count: must be at least 2
        /rules/14/stuck: there is no limit (write `count` or `for`)
        /rules/15/quality: there is no limit (write `min_score`, `min` or both)
        /rules/16/check: a condition must be true or false, this gives a number; compare it with something
        /rules/0/range/mni: unknown field `mni` (did you mean `min`?)
        /rules/0/otherwise/quality: unknown name `good` (known: uncertain, bad)
        /rules/0/otherwise: unknown name `rejct` (did you mean `reject`?)
        /rules/0: missing field `id`"#]]
    .assert_eq(&all.join("\n"));
}
