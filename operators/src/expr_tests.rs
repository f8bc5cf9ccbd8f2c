//! Expressions: what is accepted, what is refused and in which words, and that failures stay with their rows.

use std::sync::Arc;

use arrow::array::{Float64Array, Int64Array, StringArray};
use arrow::util::display::array_value_to_string;
use expect_test::expect;
use fieldstream_schemas::readings_schema;
use fieldstream_testkit::text::readings;
use proptest::prelude::*;

use super::*;

fn shown(array: &ArrayRef) -> Vec<String> {
    (0..array.len()).map(|row| array_value_to_string(array, row).unwrap()).collect()
}

fn over_readings(sql: &str) -> Vec<String> {
    let batch = readings(
        "device sensor type ts value unit quality\n a t temperature 0 1.5 Cel good\n b t pressure 1 - bar bad\n c t - 2 -3 - uncertain",
    );
    shown(&Expr::parse(sql, &batch.schema()).unwrap().eval(&batch).unwrap())
}

#[test]
fn expressions_see_the_columns_of_a_row() {
    assert_eq!(over_readings("value * 2 + 1"), ["4.0", "", "-5.0"]);
    assert_eq!(over_readings("value > 0 AND quality = 'good'"), ["true", "false", "false"]);
    assert_eq!(over_readings("sensor_type = 'temperature'"), ["true", "false", ""]);
    assert_eq!(over_readings("CASE WHEN quality = 'good' THEN 1.0 ELSE 0.0 END"), ["1.0", "0.0", "0.0"]);
    assert_eq!(over_readings("value BETWEEN -60 AND 1"), ["false", "", "true"]);
    assert_eq!(over_readings("abs(value)"), ["1.5", "", "3.0"]);
    assert_eq!(over_readings("upper(device_id)"), ["A", "B", "C"]);
    assert_eq!(over_readings("coalesce(value, 0) + 1"), ["2.5", "1.0", "-2.0"]);
    assert_eq!(over_readings("ts >= '1970-01-01T00:00:01Z'"), ["false", "true", "true"]);
    assert_eq!(over_readings("unit IN ('Cel', 'bar')"), ["true", "true", ""]);
    assert_eq!(over_readings("device_id LIKE 'a%'"), ["true", "false", "false"]);
    assert_eq!(over_readings("1 + 1"), ["2", "2", "2"]);
    assert_eq!(over_readings("date_trunc('minute', ts) = '1970-01-01T00:00:00Z'"), ["true", "true", "true"]);
}

#[test]
fn mistakes_are_told_in_one_short_line() {
    let told = |sql: &str| Expr::predicate(sql, &readings_schema()).map_or_else(|e| e, |e| format!("accepted: {}", e.data_type()));
    let all: Vec<String> = [
        "valeu > 3",
        "Value > 3",
        "zzz > 3",
        "value >",
        "value > 3 4",
        "value > 3 AS x",
        "",
        "value",
        "value > 'abc'",
        "now() > ts",
        "random() > 0.5",
        "sum(value) > 3",
        "count(*) > 3",
        "value > (SELECT 1)",
        "value IN (SELECT value FROM t)",
        "nosuch(value) > 3",
        "abs(value, 1) > 3",
        "value > $1",
        "*",
        "row_number() OVER () > 1",
        "ts > 'yesterday'",
    ]
    .iter()
    .map(|sql| format!("{sql:32} {}", told(sql)))
    .collect();
    expect![[r#"
        valeu > 3                        there is no column `valeu` (did you mean `value`?)
        Value > 3                        there is no column `Value` (did you mean `value`?)
        zzz > 3                          there is no column `zzz` (columns: device_id, sensor_id, sensor_type, ts, ingest_ts, value, text, flag, unit, quality, score, id, tags, stamped)
        value >                          not an expression: Expected: an expression, found: EOF
        value > 3 4                      not an expression: Expected: end of expression, found: 4 at Line: 1, Column: 11
        value > 3 AS x                   a name after the expression means nothing here; remove it
                                         not an expression: Expected: an expression, found: EOF
        value                            a condition must be true or false, this gives a number; compare it with something
        value > 'abc'                    Cast error: Cannot cast string 'abc' to value of Float64 type
        now() > ts                       `now` gives another answer each time; use the row's `ts` or `ingest_ts`
        random() > 0.5                   `random` gives another answer each time; use the row's `ts` or `ingest_ts`
        sum(value) > 3                   `sum` works over many rows and an expression sees one; use `window` for it
        count(*) > 3                     `count` works over many rows and an expression sees one; use `window` for it
        value > (SELECT 1)               an expression sees one row; it has no subqueries
        value IN (SELECT value FROM t)   an expression sees one row; it has no tables and no subqueries
        nosuch(value) > 3                Invalid function 'nosuch'. Did you mean 'cosh'?
        abs(value, 1) > 3                Function 'abs' expects 1 arguments but received 2
        value > $1                       there are no parameters here; use ${var:name}
        *                                not an expression: Expected: an expression, found: * at Line: 1, Column: 1
        row_number() OVER () > 1         `row_number` works over many rows and an expression sees one; use `window` for it
        ts > 'yesterday'                 Parser error: Error parsing timestamp from 'yesterday': timestamp must contain at least 10 characters"#]].assert_eq(&all.join("\n"));
    for line in all {
        assert!(line.len() < 320 && !line.contains("accepted"), "{line}");
    }
}

#[test]
fn numbers_become_floats() {
    let schema = readings_schema();
    assert_eq!(Expr::number("CASE WHEN quality = 'good' THEN 1 ELSE 0 END", &schema).unwrap().data_type(), &DataType::Float64);
    assert_eq!(Expr::number("quality", &schema).unwrap_err(), "a number is needed, this gives text");
}

#[test]
fn only_the_rows_that_fail_are_named() {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("s", DataType::Utf8, true)]));
    let n = Int64Array::from(vec![Some(2), Some(0), None, Some(5), Some(0)]);
    let s = StringArray::from(vec!["1", "2", "x", "y", "5"]);
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(n), Arc::new(s)]).unwrap();

    let (values, failures) = Expr::parse("10 / n", &schema).unwrap().eval_rows(&batch);
    assert_eq!(shown(&values), ["5", "", "", "2", ""]);
    assert_eq!(failures.iter().map(|f| f.row).collect::<Vec<_>>(), [1, 4]);

    let (mask, failures) = Expr::predicate("CAST(s AS DOUBLE) > 1", &schema).unwrap().mask(&batch);
    assert_eq!(mask, BooleanArray::from(vec![false, true, false, false, true]));
    assert_eq!(failures.iter().map(|f| f.row).collect::<Vec<_>>(), [2, 3]);
    assert!(failures[0].message.contains("'x'"), "{}", failures[0].message);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// A guard before a division protects its row in every batch, and no other row.
    #[test]
    fn a_row_gives_the_same_in_every_batch(rows in prop::collection::vec((-2i64..3, prop::option::weighted(0.8, -2.0..2.0)), 1..60)) {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("x", DataType::Float64, true)]));
        let n = Int64Array::from_iter_values(rows.iter().map(|r| r.0));
        let x: Float64Array = rows.iter().map(|r| r.1).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(n), Arc::new(x)]).unwrap();
        for sql in ["x > 0 AND 4 / n > 1", "x > 1.8 AND 4 / n > 1", "x > 0 OR 4 / n > 1", "CASE WHEN n = 0 THEN x > 1 ELSE 4 / n > x END", "coalesce(x, 1 / n) > 0"] {
            let condition = Expr::predicate(sql, &schema).unwrap();
            let (whole, failures) = condition.mask(&batch);
            let mut failed = failures.iter().map(|f| f.row);
            let mut next = failed.next();
            for row in 0..batch.num_rows() {
                let (alone, failure) = condition.mask(&batch.slice(row, 1));
                prop_assert_eq!(whole.value(row), alone.value(0), "{} in row {}", sql, row);
                prop_assert_eq!(next == Some(row as u32), !failure.is_empty(), "{} in row {}", sql, row);
                if !failure.is_empty() {
                    next = failed.next();
                }
            }
        }
    }
}
