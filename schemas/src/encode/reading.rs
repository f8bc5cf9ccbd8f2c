//! The canonical JSON of one reading.

use arrow::array::Array;

use super::value::{push, push_json_text, push_key, push_time};
use crate::columns::{Readings, name_at};
use crate::quality::NAMES;

/// Appends row `row` as
/// `{"id","deviceId","sensorId","sensorType","timestamp","value","unit","quality","tags","ingestTimestamp","stamped"}`.
///
/// `value` is the number, text or boolean; `quality` is the class, or `{status, score}` where there is a score; what is null
/// (or not true, for `stamped`) is left out.
pub(super) fn push_reading(readings: &Readings<'_>, row: usize, out: &mut Vec<u8>) {
    let name = |key: &[u8], array: &dyn Array, out: &mut Vec<u8>| {
        if let Some(name) = name_at(array, row) {
            push_key(key, out);
            push(&name, out);
        }
    };
    out.push(b'{');
    if readings.id.is_valid(row) {
        push_key(b"\"id\":", out);
        push(&readings.id.value(row), out);
    }
    name(b"\"deviceId\":", readings.device_id, out);
    name(b"\"sensorId\":", readings.sensor_id, out);
    name(b"\"sensorType\":", readings.sensor_type, out);
    push_key(b"\"timestamp\":", out);
    push_time(readings.ts.value(row), out);
    push_value(readings, row, out);
    name(b"\"unit\":", readings.unit, out);
    push_quality(readings, row, out);
    if readings.tags.is_valid(row) {
        push_key(b"\"tags\":", out);
        push_json_text(readings.tags.value(row), out);
    }
    if readings.ingest_ts.is_valid(row) {
        push_key(b"\"ingestTimestamp\":", out);
        push_time(readings.ingest_ts.value(row), out);
    }
    if readings.stamped.is_valid(row) && readings.stamped.value(row) {
        push_key(b"\"stamped\":", out);
        out.extend_from_slice(b"true");
    }
    out.push(b'}');
}

fn push_value(readings: &Readings<'_>, row: usize, out: &mut Vec<u8>) {
    const KEY: &[u8] = b"\"value\":";
    if readings.value.is_valid(row) {
        let value = readings.value.value(row);
        if value.is_finite() {
            push_key(KEY, out);
            push(&value, out);
        }
    } else if readings.text.is_valid(row) {
        push_key(KEY, out);
        push(&readings.text.value(row), out);
    } else if readings.flag.is_valid(row) {
        push_key(KEY, out);
        push(&readings.flag.value(row), out);
    }
}

fn push_quality(readings: &Readings<'_>, row: usize, out: &mut Vec<u8>) {
    let Some(class) = readings.quality.key(row).and_then(|key| class_name(readings, key)) else { return };
    push_key(b"\"quality\":", out);
    let score = if readings.score.is_valid(row) { Some(readings.score.value(row)).filter(|s| s.is_finite()) } else { None };
    match score {
        Some(score) => {
            out.extend_from_slice(b"{\"status\":\"");
            out.extend_from_slice(class.as_bytes());
            out.extend_from_slice(b"\",\"score\":");
            push(&score, out);
            out.push(b'}');
        }
        None => push(&class, out),
    }
}

/// The class under `key`, whatever the order of the column's dictionary is (an expression may have made it).
fn class_name(readings: &Readings<'_>, key: usize) -> Option<&'static str> {
    use arrow::array::AsArray as _;
    let names = readings.quality.values().as_string_opt::<i32>()?;
    let name = if key < names.len() { names.value(key) } else { return None };
    NAMES.into_iter().find(|n| *n == name)
}
