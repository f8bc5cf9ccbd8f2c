//! Pictures: text to record batches, record batches to aligned tables.
//!
//! The first line names the columns, every further line is a row. Cells are separated by spaces, or by `|` in a line that has
//! one. `-` is null. Times are seconds since the epoch (decimals allowed) or RFC 3339.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
    new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType, UInt8Type, UInt32Type, UInt64Type,
};
use fieldstream_schemas::time::{format_rfc3339, parse_rfc3339};
use fieldstream_schemas::{quality, readings_schema};

/// Reads a picture of readings. `device` and `sensor` may be written for `device_id` and `sensor_id`, `type` for `sensor_type`.
/// Columns left out are null, except `sensor` (`t`), `quality` (`good`) and `stamped` (`false`).
///
/// # Panics
/// If the text is no picture of readings.
#[must_use]
pub fn readings(text: &str) -> RecordBatch {
    rows(&readings_schema(), text)
}

/// Reads a picture of rows of `schema`; see [`readings`] for abbreviations and defaults.
///
/// # Panics
/// If a column is unknown, a cell does not fit its column, or a column that may not be null was left out.
#[must_use]
pub fn rows(schema: &SchemaRef, text: &str) -> RecordBatch {
    let mut lines = text.lines().map(cells).filter(|line| !line.is_empty());
    let header = lines.next().unwrap_or_default();
    let body: Vec<Vec<&str>> = lines.collect();
    for line in &body {
        assert_eq!(line.len(), header.len(), "cells of {line:?} under {header:?}");
    }
    let header: Vec<&str> = header.into_iter().map(full_name).collect();
    for name in &header {
        assert!(schema.column_with_name(name).is_some(), "no column {name}");
    }
    let columns = schema.fields().iter().map(|field| {
        let at = header.iter().position(|name| name == field.name());
        let default = match field.name().as_str() {
            "sensor_id" => "t",
            "quality" => "good",
            "stamped" => "false",
            _ => "-",
        };
        let column: Vec<Option<&str>> =
            body.iter().map(|line| at.map_or(default, |at| line[at])).map(|cell| (cell != "-").then_some(cell)).collect();
        parse_column(field.name(), field.data_type(), &column)
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap_or_else(|e| panic!("not a picture of these rows: {e}"))
}

fn cells(line: &str) -> Vec<&str> {
    if line.trim().is_empty() {
        Vec::new()
    } else if line.contains('|') {
        line.split('|').map(str::trim).collect()
    } else {
        line.split_whitespace().collect()
    }
}

fn full_name(name: &str) -> &str {
    match name {
        "device" => "device_id",
        "sensor" => "sensor_id",
        "type" => "sensor_type",
        other => other,
    }
}

/// Microseconds of a time cell.
fn parse_time(cell: &str) -> Option<i64> {
    parse_rfc3339(cell.as_bytes()).or_else(|| cell.parse::<f64>().ok().map(|s| (s * 1e6).round() as i64))
}

fn parse_column(name: &str, data_type: &DataType, column: &[Option<&str>]) -> ArrayRef {
    fn each<T>(name: &str, column: &[Option<&str>], parse: impl Fn(&str) -> Option<T>) -> Vec<Option<T>> {
        let bad = |cell: &str| panic!("column {name}: cannot read {cell:?}");
        column.iter().map(|cell| cell.map(|c| parse(c).unwrap_or_else(|| bad(c)))).collect()
    }
    match data_type {
        DataType::Float64 => Arc::new(Float64Array::from(each(name, column, |c| c.parse().ok()))),
        DataType::Int64 => Arc::new(Int64Array::from(each(name, column, |c| c.parse().ok()))),
        DataType::UInt64 => Arc::new(UInt64Array::from(each(name, column, |c| c.parse().ok()))),
        DataType::Boolean => Arc::new(BooleanArray::from(each(name, column, |c| c.parse().ok()))),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            Arc::new(TimestampMicrosecondArray::from(each(name, column, parse_time)).with_timezone_opt(zone.clone()))
        }
        DataType::Dictionary(key, _) if **key == DataType::UInt8 && column.iter().all(Option::is_some) => {
            quality::column(each(name, column, |c| quality::Quality::parse(c).map(|q| q as u8)).into_iter().flatten())
        }
        _ if column.iter().all(Option::is_none) => new_null_array(data_type, column.len()),
        _ => cast(&StringArray::from(column.to_vec()), data_type).unwrap_or_else(|e| panic!("column {name}: {e}")),
    }
}

/// One cell as text: null is `-`, times are seconds since the epoch (RFC 3339 from the year 2000 on), floats print shortest.
#[must_use]
pub fn cell(column: &dyn Array, row: usize) -> String {
    if column.is_null(row) {
        return "-".to_owned();
    }
    match column.data_type() {
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => show_time(column.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Dictionary(key, _) if **key == DataType::UInt32 => dictionary_cell(column.as_dictionary::<UInt32Type>(), row),
        DataType::Dictionary(key, _) if **key == DataType::UInt8 => dictionary_cell(column.as_dictionary::<UInt8Type>(), row),
        _ => {
            cast(&column.slice(row, 1), &DataType::Utf8).map_or_else(|_| "?".to_owned(), |text| text.as_string::<i32>().value(0).to_owned())
        }
    }
}

fn dictionary_cell<K: arrow::datatypes::ArrowDictionaryKeyType>(column: &arrow::array::DictionaryArray<K>, row: usize) -> String {
    column.key(row).map_or_else(|| "-".to_owned(), |key| cell(column.values(), key))
}

fn show_time(us: i64) -> String {
    const YEAR_2000: i64 = 946_684_800_000_000;
    const YEAR_10000: i64 = 253_402_300_800_000_000;
    if (YEAR_2000..YEAR_10000).contains(&us) {
        return format_rfc3339(us);
    }
    let (sign, us) = if us < 0 { ("-", us.unsigned_abs()) } else { ("", us.unsigned_abs()) };
    let (whole, part) = (us / 1_000_000, us % 1_000_000);
    if part == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part:06}").trim_end_matches('0').to_owned() }
}

/// An aligned table of the columns named in `pick`, or of all columns that are not wholly null when `pick` is empty.
#[must_use]
pub fn table(batch: &RecordBatch, pick: &[&str]) -> String {
    let schema: &Schema = batch.schema_ref();
    let chosen: Vec<usize> = if pick.is_empty() {
        (0..batch.num_columns()).filter(|c| (0..batch.num_rows()).any(|r| cell(batch.column(*c), r) != "-")).collect()
    } else {
        pick.iter().map(|name| schema.index_of(name).unwrap_or_else(|_| panic!("no column {name}"))).collect()
    };
    let mut grid = vec![chosen.iter().map(|c| schema.field(*c).name().clone()).collect::<Vec<_>>()];
    grid.extend((0..batch.num_rows()).map(|row| chosen.iter().map(|c| cell(batch.column(*c), row)).collect()));
    align(&grid)
}

/// Pads cells so that columns line up; no blanks at line ends.
#[must_use]
pub fn align(grid: &[Vec<String>]) -> String {
    let columns = grid.iter().map(Vec::len).max().unwrap_or_default();
    let width = |c: usize| grid.iter().filter_map(|line| line.get(c)).map(|cell| cell.chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in grid {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_round_trip() {
        let batch = readings(
            "device sensor ts value quality id\n a t 0 1.5 good -\n b p -0.25 NaN bad x1\n a t 2026-11-23T10:00:00Z - uncertain x2",
        );
        let expected = "\
device_id  sensor_id  ts                        value  quality    id
a          t          0                         1.5    good       -
b          p          -0.25                     NaN    bad        x1
a          t          2026-11-23T10:00:00.000Z  -      uncertain  x2
";
        assert_eq!(table(&batch, &["device_id", "sensor_id", "ts", "value", "quality", "id"]), expected);
        let piped = readings("device | ts | text\n a | 1 | two words");
        assert_eq!(table(&piped, &["device_id", "sensor_id", "text"]), "device_id  sensor_id  text\na          t          two words\n");
    }
}
