//! Pictures and laws of `window`.

use expect_test::{Expect, expect};
use fieldstream_engine_api::{BuildContext, Operator, TickTime};
use fieldstream_testkit::generate::Shape;
use fieldstream_testkit::{Laws, Rig, context, laws, readings_edge};
use serde_json::{Value, json};

use super::build;

fn window(options: &Value) -> Box<dyn Operator> {
    build(options, &readings_edge(), &context()).unwrap()
}

fn rig(options: &Value) -> Rig {
    Rig::new(window(options))
}

/// Nothing is kept for late rows.
fn prompt() -> BuildContext {
    let mut context = context();
    context.time.allowed_lateness = std::time::Duration::ZERO;
    context
}

fn check(rig: &mut Rig, rows: &str, expected: &Expect) {
    expected.assert_eq(&rig.feed(rows).picture(&[]));
}

fn tumbling() -> Value {
    json!({"tumbling": "10s", "aggregate": {"n": {"count": {}}, "low": {"min": "value"}, "high": {"max": "value"}, "avg": {"mean": "value"}}})
}

#[test]
fn a_row_closes_windows_of_its_device_once_the_clock_has_passed_them() {
    let mut rig = rig(&tumbling());
    // 5 s out of order: the row at 15 closes what ends at 10, of both sensors of `a` and of nobody else.
    let rows = "device sensor ts value\n a t 1 1\n a p 2 7\n b t 2 5\n a t 9 3\n a t 14.999 9\n a t 15 8";
    check(
        &mut rig,
        rows,
        &expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  avg  high  low  n
        a          p          10  0             10          7    7     7    1
        a          t          10  0             10          2    3     1    2
        counts: received 6 absorbed 6 emitted 2
    "#]],
    );
    // A window kept for 10 s is revised by a late row, and later rows are late.
    check(
        &mut rig,
        "device sensor ts value\n a t 3 -5\n a t 25 1\n a t 4 0\n a p 26 2",
        &expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  avg  high  low  n
        a          t          20  10            20          8.5  9     8    2
        [revised]
        device_id  sensor_id  ts  window_start  window_end  avg                  high  low  n
        a          t          10  0             10          -0.3333333333333333  3     -5   3
        [late]
        device_id  sensor_id  ts  value  quality  stamped
        a          t          4   0      good     false
        counts: received 4 absorbed 3 late 1 emitted 2
    "#]],
    );
    expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  avg  high  low  n
        a          p          30  20            30          2    2     2    1
        a          t          30  20            30          1    1     1    1
        b          t          10  0             10          5    5     5    1
        counts: emitted 3
    "#]]
    .assert_eq(&rig.end().picture(&[]));
    expect![[r#"
        counts:
    "#]]
    .assert_eq(&rig.end().picture(&[]));
}

#[test]
fn ticks_close_what_is_over_and_time_stays_there() {
    let mut rig = rig(&tumbling());
    check(
        &mut rig,
        "device ts value\n a 1 1\n a 12 2",
        &expect![[r#"
        counts: received 2 absorbed 2
    "#]],
    );
    expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  avg  high  low  n
        a          t          10  0             10          1    1     1    1
        counts: emitted 1
    "#]]
    .assert_eq(&rig.tick(TickTime::Append(10_000_000)).picture(&[]));
    check(
        &mut rig,
        "device ts value\n a 2 5\n a 11 4",
        &expect![[r#"
        [revised]
        device_id  sensor_id  ts  window_start  window_end  avg  high  low  n
        a          t          10  0             10          3    5     1    2
        counts: received 2 absorbed 2 emitted 1
    "#]],
    );
}

#[test]
fn nulls_and_nan_are_no_values_and_a_window_of_none_has_only_counts() {
    let options = json!({"tumbling": "10s", "by": "device", "aggregate": {
        "rows": {"count": "*"}, "n": {"count": "value"}, "named": {"count": "text"}, "sum": {"sum": "value"}, "sd": {"stddev": "value"},
        "first": {"first": "value"}, "last": {"last": "value"}, "mid": {"quantile": {"of": "value", "q": 0.5}},
        "good": {"mean": "CASE WHEN quality = 'good' THEN 1.0 ELSE 0.0 END"},
    }});
    let mut rig = rig(&options);
    let rows = "device sensor ts value quality\n a t -3 1 good\n a p -4 3 bad\n a t -2 - good\n a t -1 NaN good\n b t 0 - bad";
    check(
        &mut rig,
        rows,
        &expect![[r#"
        counts: received 5 absorbed 5
    "#]],
    );
    expect![[r#"
        [out]
        device_id  ts  window_start  window_end  first  good  last  mid   n  named  rows  sd                  sum
        a          0   -10           0           3      0.75  1     1.01  2  0      4     1.4142135623730951  4
        b          10  0             10          -      0     -     -     0  0      1     -                   -
        counts: emitted 2
    "#]]
    .assert_eq(&rig.end().picture(&[]));
}

#[test]
fn hopping_windows_overlap() {
    let mut rig = rig(&json!({"hopping": {"size": "20s", "every": "10s"}, "aggregate": {"sum": {"sum": "value"}}}));
    check(
        &mut rig,
        "device ts value\n a 5 1\n a 15 2\n a 27 4",
        &expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  sum
        a          t          10  -10           10          1
        a          t          20  0             20          3
        counts: received 3 absorbed 3 emitted 2
    "#]],
    );
    expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  sum
        a          t          30  10            30          6
        a          t          40  20            40          4
        counts: emitted 2
    "#]]
    .assert_eq(&rig.end().picture(&[]));
}

#[test]
fn sessions_grow_join_and_end() {
    let mut rig =
        rig(&json!({"session": {"gap": "3s"}, "aggregate": {"n": {"count": {}}, "sum": {"sum": "value"}, "sd": {"stddev": "value"}}}));
    check(
        &mut rig,
        "device ts value\n a 0 1\n a 5 2\n a 2.5 4\n a 13 8\n a 1 1",
        &expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  n  sd                  sum
        a          t          8   0             8           3  1.5275252316519465  7
        [late]
        device_id  sensor_id  ts  value  quality  stamped
        a          t          1   1      good     false
        counts: received 5 absorbed 4 late 1 emitted 1
    "#]],
    );
    expect![[r#"
        [out]
        device_id  sensor_id  ts  window_start  window_end  n  sum
        a          t          16  13            16          1  8
        counts: emitted 1
    "#]]
    .assert_eq(&rig.end().picture(&[]));
}

#[test]
fn more_windows_than_allowed_are_refused() {
    let mut rig = rig(&json!({"session": {"gap": "1s"}, "max_open": 2, "aggregate": {"n": {"count": {}}}}));
    check(
        &mut rig,
        "device ts\n a 0\n a 2\n a 4\n a 4.5",
        &expect![[r#"
        [rejected] offset 2 window_limit: more than 2 windows would be open
        [rejected] offset 3 window_limit: more than 2 windows would be open
        counts: received 4 absorbed 2 rejected 2
    "#]],
    );
}

#[test]
fn mistakes_are_named() {
    let told = |options: Value| {
        let errors = build(&options, &readings_edge(), &context()).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        needs exactly one of `tumbling`, `hopping` and `session`
        /aggregate: nothing is aggregated (write, for example, `aggregate: { highest: { max: value } }`)"#]]
    .assert_eq(&told(json!({"aggregate": {}})));
    expect![[r#"
        /hopping/every: longer than `size`: rows between two windows would be lost
        /aggregate/q/quantile/q: must lie between 0 and 1
        /aggregate/ts: `ts` is a column of every window (choose another name)
        /aggregate/ts/max: there is no column `valeu` (did you mean `value`?)"#]].assert_eq(&told(json!({"hopping": {"size": "1s", "every": "2s"}, "aggregate": {"ts": {"max": "valeu"}, "q": {"quantile": {"of": "value", "q": 2}}}})));
    expect![[r#"
        /tumbling: must be longer than nothing and at most a thousand years
        /aggregate/n/mean: not an expression: Expected: an expression, found: * at Line: 1, Column: 1"#]]
    .assert_eq(&told(json!({"tumbling": "0s", "aggregate": {"n": {"mean": "*"}}})));
}

#[test]
fn tumbling_windows_obey_the_laws() {
    laws(|| window(&tumbling()), &Laws::default());
    laws(|| build(&tumbling(), &readings_edge(), &prompt()).unwrap(), &Laws::default());
}

#[test]
fn tumbling_windows_by_device_obey_the_laws() {
    let options = json!({"tumbling": "7s", "by": "device", "aggregate": {
        "sum": {"sum": "value"}, "sd": {"stddev": "value"}, "first": {"first": "value"}, "last": {"last": "value"},
        "p90": {"quantile": {"of": "value", "q": 0.9}}, "inverse": {"sum": "1 / (value - 21)"},
    }});
    laws(|| window(&options), &Laws::default());
}

#[test]
fn hopping_windows_obey_the_laws() {
    let options = json!({"hopping": {"size": "10s", "every": "3s"}, "aggregate": {"sum": {"sum": "value"}, "n": {"count": {}}}});
    laws(|| window(&options), &Laws::default());
}

#[test]
fn sessions_obey_the_laws() {
    let options = json!({"session": {"gap": "2s"}, "by": "device", "max_open": 4, "aggregate": {
        "sum": {"sum": "value"}, "n": {"count": {}}, "sd": {"stddev": "value"}, "last": {"last": "value"}, "mid": {"quantile": {"of": "value", "q": 0.5}},
    }});
    laws(|| window(&options), &Laws { shape: Shape { step_us: 1_000_000, ..Shape::default() }, ..Laws::default() });
}

#[test]
fn one_open_window_of_four_aggregates_takes_at_most_80_bytes_a_series() {
    let mut op = window(&tumbling());
    let before: usize = op.states().iter().map(|s| s.bytes()).sum();
    op.states().into_iter().for_each(|s| s.grow_to(100_000));
    let after: usize = op.states().iter().map(|s| s.bytes()).sum();
    assert!((after - before) / 100_000 <= 80, "{}", (after - before) / 100_000);
}

/// Rows of a few devices as a picture: time steps may run backwards, values may be missing or NaN.
fn made_up(steps: &[(u8, bool, i8, Option<i8>)]) -> Vec<String> {
    let mut now = 1000;
    let row = |(device, second, step, value): &(u8, bool, i8, Option<i8>)| {
        now += i64::from(*step);
        // The first devices have one sensor, as the short way wants it.
        let sensor = if *second && *device > 1 { "p" } else { "t" };
        let value = value.map_or("NaN".to_owned(), |v| v.to_string());
        format!("d{device} {sensor} {now} {value}")
    };
    steps.iter().map(row).collect()
}

proptest::proptest! {
    /// What [`super::plain`] does for most rows is what the general way, which a deviation asks for, does for all.
    #[test]
    fn the_short_way_gives_what_the_general_way_gives(
        steps in proptest::collection::vec((0_u8..4, proptest::bool::ANY, -6_i8..9, proptest::option::weighted(0.95, proptest::num::i8::ANY)), 1..120),
        batch in 1_usize..40,
        by in proptest::sample::select(vec!["series", "device"]),
    ) {
        let mut short = tumbling();
        short["by"] = by.into();
        let mut general = short.clone();
        general["aggregate"]["spread"] = json!({"stddev": "value"});
        let pick = ["device_id", "sensor_id", "ts", "window_start", "window_end", "avg", "high", "low", "n"];
        let [short, general] = [short, general].map(|options| {
            let mut rig = Rig::new(build(&options, &readings_edge(), &prompt()).unwrap());
            let feed = |rows: &[String]| rig.feed(&format!("device sensor ts value\n {}", rows.join("\n "))).picture(&pick);
            let mut seen: Vec<String> = made_up(&steps).chunks(batch).map(feed).collect();
            seen.push(rig.end().picture(&pick));
            seen
        });
        proptest::prop_assert_eq!(short, general);
    }
}
