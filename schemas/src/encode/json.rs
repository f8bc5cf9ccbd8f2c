//! Rows of any schema as JSON objects, one a line.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, SchemaRef};

use super::reading::push_reading;
use super::value::{push, push_cell, push_json_text, push_key, text_at};
use crate::Readings;

/// Columns of readings and records whose member name differs. Columns a user made keep their names.
const MEMBER_NAMES: [(&str, &str); 12] = [
    ("device_id", "deviceId"),
    ("sensor_id", "sensorId"),
    ("sensor_type", "sensorType"),
    ("ts", "timestamp"),
    ("ingest_ts", "ingestTimestamp"),
    ("raised_ts", "raisedTimestamp"),
    ("reading_id", "readingId"),
    ("prediction_type", "predictionType"),
    ("time_to_event_ms", "timeToEventMs"),
    ("earliest_ms", "earliestMs"),
    ("latest_ms", "latestMs"),
    ("payload_kind", "payloadKind"),
];

/// Text columns of readings and records that hold JSON.
pub(crate) const JSON_COLUMNS: [&str; 3] = ["tags", "factors", "actions"];

/// The JSON member name of column `column`.
#[must_use]
pub fn member_name(column: &str) -> &str {
    MEMBER_NAMES.iter().find(|(name, _)| *name == column).map_or(column, |(_, member)| member)
}

/// What the value of a column is called: binary ones say that they are base64.
pub(super) fn column_member(field: &Field) -> String {
    let binary = matches!(field.data_type(), DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    format!("{}{}", member_name(field.name()), if binary { "_base64" } else { "" })
}

#[derive(Clone, Debug)]
struct Member {
    /// `"name":`
    key: Vec<u8>,
    json: bool,
}

/// Writes rows of one schema as JSON objects.
///
/// Readings are written in the canonical form, which `format: canonical` reads back to the same rows. Rows of any other
/// schema have one member per column, see [`member_name`]. Nulls, NaN and infinities are left out, times are RFC 3339 in UTC,
/// binary columns are base64 under `<name>_base64`.
#[derive(Clone, Debug)]
pub struct JsonWriter {
    members: Vec<Member>,
}

impl JsonWriter {
    /// A writer for rows of `schema`.
    #[must_use]
    pub fn new(schema: &SchemaRef) -> Self {
        let members = schema.fields().iter().map(|field| {
            let name = column_member(field);
            let mut key = Vec::with_capacity(name.len() + 3);
            push(&name, &mut key);
            key.push(b':');
            Member { key, json: JSON_COLUMNS.contains(&field.name().as_str()) }
        });
        Self { members: members.collect() }
    }

    /// Appends row `row` of `batch`, which has the writer's schema, as one object.
    pub fn write_row(&self, batch: &RecordBatch, row: usize, out: &mut Vec<u8>) {
        match Readings::new(batch) {
            Some(readings) => push_reading(&readings, row, out),
            None => self.write_members(batch, row, out),
        }
    }

    /// Appends all rows of `batch`, each with a line feed after it.
    pub fn write_rows(&self, batch: &RecordBatch, out: &mut Vec<u8>) {
        let readings = Readings::new(batch);
        for row in 0..batch.num_rows() {
            match &readings {
                Some(readings) => push_reading(readings, row, out),
                None => self.write_members(batch, row, out),
            }
            out.push(b'\n');
        }
    }

    fn write_members(&self, batch: &RecordBatch, row: usize, out: &mut Vec<u8>) {
        out.push(b'{');
        for (member, array) in self.members.iter().zip(batch.columns()) {
            let undo = out.len();
            push_key(&member.key, out);
            let json = if member.json && array.is_valid(row) { text_at(array, row) } else { None };
            let written = match json {
                Some(text) => {
                    push_json_text(text, out);
                    true
                }
                None => push_cell(array, row, out),
            };
            if !written {
                out.truncate(undo);
            }
        }
        out.push(b'}');
    }
}
