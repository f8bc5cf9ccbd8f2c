//! One cell of a column as JSON.

use std::io::Write as _;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::array_value_to_string;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::decode::scan::{compact, is_json};
use crate::time::write_rfc3339;

/// Appends `value` as JSON: strings escaped, numbers in the shortest form that reads back to the same number.
pub(super) fn push(value: &impl Serialize, out: &mut Vec<u8>) {
    // Writing a scalar to a Vec cannot fail.
    let _ = serde_json::to_writer(out, value);
}

/// Appends `us` as an RFC 3339 string.
pub(super) fn push_time(us: i64, out: &mut Vec<u8>) {
    let mut text = String::with_capacity(27);
    write_rfc3339(&mut text, us);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Appends text that holds JSON as that JSON on one line, and any other text as a string.
pub(super) fn push_json_text(text: &str, out: &mut Vec<u8>) {
    if is_json(text) {
        compact(text.as_bytes(), out);
    } else {
        push(&text, out);
    }
}

/// The text of row `row`, which is not null, if the column holds text of any kind.
pub(crate) fn text_at(array: &dyn Array, row: usize) -> Option<&str> {
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string_opt::<i32>()?.value(row)),
        DataType::LargeUtf8 => Some(array.as_string_opt::<i64>()?.value(row)),
        DataType::Utf8View => Some(array.as_string_view_opt()?.value(row)),
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary_opt()?;
            let key = dictionary_key(array, row)?;
            if dictionary.values().is_null(key) { None } else { text_at(dictionary.values().as_ref(), key) }
        }
        _ => None,
    }
}

fn dictionary_key(array: &dyn Array, row: usize) -> Option<usize> {
    if let Some(names) = array.as_dictionary_opt::<UInt32Type>() {
        return names.key(row);
    }
    if let Some(classes) = array.as_dictionary_opt::<UInt8Type>() {
        return classes.key(row);
    }
    let keys = array.as_any_dictionary_opt()?.keys();
    let one = cast(&keys.slice(row, 1), &DataType::UInt64).ok()?;
    let key = one.as_primitive_opt::<UInt64Type>().filter(|k| k.is_valid(0))?.value(0);
    usize::try_from(key).ok()
}

/// The time of row `row`, which is not null, in microseconds, if the column holds times of any unit.
pub(crate) fn time_at(array: &dyn Array, row: usize) -> Option<i64> {
    if let Some(times) = array.as_primitive_opt::<TimestampMicrosecondType>() {
        return Some(times.value(row));
    }
    let DataType::Timestamp(unit, _) = array.data_type() else { return None };
    // By way of integers: a cast between zones would ask for the zone database.
    let one = cast(&array.slice(row, 1), &DataType::Int64).ok()?;
    let ticks = one.as_primitive_opt::<Int64Type>().filter(|t| t.is_valid(0))?.value(0);
    match unit {
        TimeUnit::Second => ticks.checked_mul(1_000_000),
        TimeUnit::Millisecond => ticks.checked_mul(1000),
        TimeUnit::Microsecond => Some(ticks),
        TimeUnit::Nanosecond => Some(ticks.div_euclid(1000)),
    }
}

/// The number in row `row`, which is not null, if the column holds numbers of any kind.
pub(crate) fn number_at(array: &dyn Array, row: usize) -> Option<f64> {
    if let Some(numbers) = array.as_primitive_opt::<Float64Type>() {
        return Some(numbers.value(row));
    }
    if !array.data_type().is_numeric() {
        return None;
    }
    let one = cast(&array.slice(row, 1), &DataType::Float64).ok()?;
    one.as_primitive_opt::<Float64Type>().filter(|n| n.is_valid(0)).map(|n| n.value(0))
}

/// Appends row `row` of `array` as JSON; false, and nothing is written, for null, NaN and infinities.
pub(super) fn push_cell(array: &dyn Array, row: usize, out: &mut Vec<u8>) -> bool {
    if array.is_null(row) {
        return false;
    }
    match array.data_type() {
        DataType::Float64 => push_float(array.as_primitive::<Float64Type>().value(row), out),
        DataType::Float32 => push_float(f64::from(array.as_primitive::<Float32Type>().value(row)), out),
        DataType::Int64 => push_number(array.as_primitive::<Int64Type>().value(row), out),
        DataType::Int32 => push_number(array.as_primitive::<Int32Type>().value(row), out),
        DataType::Int16 => push_number(array.as_primitive::<Int16Type>().value(row), out),
        DataType::Int8 => push_number(array.as_primitive::<Int8Type>().value(row), out),
        DataType::UInt64 => push_number(array.as_primitive::<UInt64Type>().value(row), out),
        DataType::UInt32 => push_number(array.as_primitive::<UInt32Type>().value(row), out),
        DataType::UInt16 => push_number(array.as_primitive::<UInt16Type>().value(row), out),
        DataType::UInt8 => push_number(array.as_primitive::<UInt8Type>().value(row), out),
        DataType::Boolean => push_number(array.as_boolean().value(row), out),
        DataType::Binary => push_number(STANDARD.encode(array.as_binary::<i32>().value(row)), out),
        DataType::LargeBinary => push_number(STANDARD.encode(array.as_binary::<i64>().value(row)), out),
        DataType::BinaryView => push_number(STANDARD.encode(array.as_binary_view().value(row)), out),
        DataType::Timestamp(..) => time_at(array, row).map(|us| push_time(us, out)).is_some(),
        _ => match text_at(array, row) {
            Some(text) => push_number(text, out),
            // Types that no operator makes by itself but an expression may: as text, rather than not at all.
            None => array_value_to_string(array, row).is_ok_and(|text| push_number(text, out)),
        },
    }
}

fn push_number(value: impl Serialize, out: &mut Vec<u8>) -> bool {
    push(&value, out);
    true
}

fn push_float(value: f64, out: &mut Vec<u8>) -> bool {
    value.is_finite() && push_number(value, out)
}

/// Appends a comma, unless the object has just been opened, and `key`, which is quoted and ends in a colon.
pub(super) fn push_key(key: &[u8], out: &mut Vec<u8>) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    // Writing to a Vec cannot fail.
    let _ = out.write_all(key);
}
