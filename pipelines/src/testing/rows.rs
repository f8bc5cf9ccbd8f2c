//! Rows of a port as JSON, and the comparison with what a test expects.

use std::fmt::Write as _;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType, UInt64Type};
use fieldstream_schemas::time::{format_rfc3339, parse_rfc3339};
use serde_json::{Map, Value};

/// How many rows a failure shows.
const SHOWN: usize = 20;

/// Rows with their columns' own names.
pub(crate) fn to_json(batch: &RecordBatch) -> Vec<Map<String, Value>> {
    let mut rows = vec![Map::new(); batch.num_rows()];
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let plain = match column.data_type() {
            DataType::Dictionary(_, values) => cast(column, values).ok(),
            _ => None,
        };
        let column = plain.as_ref().unwrap_or(column);
        for (i, row) in rows.iter_mut().enumerate() {
            row.insert(field.name().clone(), cell(column, i));
        }
    }
    rows
}

fn cell(column: &dyn Array, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Utf8 => column.as_string_opt::<i32>().map(|a| a.value(row).into()),
        DataType::Boolean => column.as_boolean_opt().map(|a| a.value(row).into()),
        DataType::Float64 => column.as_primitive_opt::<Float64Type>().map(|a| a.value(row).into()),
        DataType::Timestamp(..) => column.as_primitive_opt::<TimestampMicrosecondType>().map(|a| format_rfc3339(a.value(row)).into()),
        DataType::Binary => column.as_binary_opt::<i32>().map(|a| String::from_utf8_lossy(a.value(row)).into_owned().into()),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => number::<UInt64Type>(column, row, &DataType::UInt64),
        _ => number::<Int64Type>(column, row, &DataType::Int64),
    }
    .unwrap_or_else(|| Value::from(format!("({})", column.data_type())))
}

fn number<T: arrow::datatypes::ArrowPrimitiveType>(column: &dyn Array, row: usize, to: &DataType) -> Option<Value>
where
    Value: From<T::Native>,
{
    let one = cast(&column.slice(row, 1), to).ok()?;
    one.as_primitive_opt::<T>().map(|a| a.value(0).into())
}

/// The number of the first expected row that does not come after the ones before it; others may lie between.
pub(crate) fn first_missing(wanted: &[Map<String, Value>], actual: &[Map<String, Value>]) -> Option<usize> {
    let mut rest = actual.iter();
    wanted
        .iter()
        .position(|row| !rest.any(|candidate| row.iter().all(|(column, value)| candidate.get(column).is_some_and(|c| same(value, c)))))
}

fn same(wanted: &Value, actual: &Value) -> bool {
    match (wanted, actual) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()),
            _ => a == b,
        },
        (Value::String(a), Value::String(b)) if a != b => {
            let times = (parse_rfc3339(a.as_bytes()), parse_rfc3339(b.as_bytes()));
            matches!(times, (Some(a), Some(b)) if a == b)
        }
        _ => wanted == actual,
    }
}

/// The rows that did come, one a line, with only `columns` where any are named.
pub(crate) fn listing(actual: &[Map<String, Value>], columns: &[&str]) -> String {
    let mut out = String::new();
    for row in actual.iter().take(SHOWN) {
        let shown: Map<String, Value> = row
            .iter()
            .filter(|(k, v)| if columns.is_empty() { !v.is_null() } else { columns.contains(&k.as_str()) })
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        // Writing to a String cannot fail.
        let _ = write!(out, "\n  got {}", Value::Object(shown));
    }
    if actual.len() > SHOWN {
        let _ = write!(out, "\n  and {} more", actual.len() - SHOWN);
    }
    if actual.is_empty() {
        out.push_str("\n  got nothing");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(value: &Value) -> Vec<Map<String, Value>> {
        value.as_array().map(|a| a.iter().filter_map(|v| v.as_object().cloned()).collect()).unwrap_or_default()
    }

    #[test]
    fn expected_rows_are_a_subsequence_by_the_named_columns() {
        let actual = rows(&json!([{"a": 1, "b": "x"}, {"a": 2.0000000001, "b": "2026-01-01T00:00:00.000Z"}, {"a": 3, "b": null}]));
        assert_eq!(first_missing(&rows(&json!([{"a": 1}, {"b": null}])), &actual), None);
        assert_eq!(first_missing(&rows(&json!([{"a": 2, "b": "2026-01-01T00:00:00Z"}])), &actual), None);
        assert_eq!(first_missing(&rows(&json!([{"a": 3}, {"a": 1}])), &actual), Some(1), "order counts");
        assert_eq!(first_missing(&rows(&json!([{"a": 1}, {"a": 1}])), &actual), Some(1), "each row is used once");
    }
}
