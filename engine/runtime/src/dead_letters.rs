//! Rejected rows and undecodable payloads as dead letters, with the bytes they came as.

use std::sync::Arc;

use crate::tmp_json::JsonWriter;
use arrow::array::{
    ArrayRef, AsArray, BinaryBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::TimestampMicrosecondType;
use fieldstream_engine_api::{KeyedBatch, Keys, NO_SLOT, Rejected, SlotDirectory};
use fieldstream_schemas::columns::TS;
use fieldstream_schemas::records::{RecordIds, dead_letter_schema};
use fieldstream_schemas::{PayloadBlock, Position, Reject};

const RAW: &str = "raw";
const READING: &str = "reading";

/// Columns under construction.
struct Letters {
    ids: StringBuilder,
    messages: StringBuilder,
    devices: StringBuilder,
    sensors: StringBuilder,
    times: Vec<Option<i64>>,
    kinds: StringBuilder,
    payloads: BinaryBuilder,
    keys: Keys,
}

impl Letters {
    fn new(rows: usize) -> Self {
        Self {
            ids: StringBuilder::new(),
            messages: StringBuilder::new(),
            devices: StringBuilder::new(),
            sensors: StringBuilder::new(),
            times: Vec::with_capacity(rows),
            kinds: StringBuilder::new(),
            payloads: BinaryBuilder::new(),
            keys: Keys::with_capacity(rows),
        }
    }

    fn finish(mut self, node: &str, code: &str, partition: u32) -> KeyedBatch {
        let rows = self.keys.len();
        let positions = &self.keys.position;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.ids.finish()),
            Arc::new(StringArray::from(vec![code; rows])),
            Arc::new(StringArray::from(vec![node; rows])),
            Arc::new(self.messages.finish()),
            Arc::new(UInt32Array::from(vec![partition; rows])),
            Arc::new(UInt64Array::from_iter_values(positions.iter().map(|p| p.offset))),
            Arc::new(UInt32Array::from_iter_values(positions.iter().map(|p| p.row))),
            Arc::new(self.devices.finish()),
            Arc::new(self.sensors.finish()),
            Arc::new(TimestampMicrosecondArray::from(self.times).with_timezone("UTC")),
            Arc::new(self.kinds.finish()),
            Arc::new(self.payloads.finish()),
        ];
        let batch = RecordBatch::try_new(dead_letter_schema(), columns);
        KeyedBatch::new(batch.unwrap_or_else(|_| unreachable!("the columns are those of the schema")), self.keys)
    }
}

/// Dead letters of undecodable payloads, all of one code.
pub(crate) fn of_payloads(source: &str, rejects: &[Reject], ids: &RecordIds, partition: u32) -> KeyedBatch {
    let mut letters = Letters::new(rejects.len());
    for reject in rejects {
        letters.ids.append_value(ids.id(reject.position, source, 0));
        letters.messages.append_value(&reject.message);
        letters.devices.append_null();
        letters.sensors.append_null();
        letters.times.push(None);
        letters.kinds.append_value(RAW);
        letters.payloads.append_value(&reject.payload);
        letters.keys.push(NO_SLOT, NO_SLOT, reject.position);
    }
    letters.finish(source, rejects.first().map_or("", |r| r.code), partition)
}

/// Dead letters of rows that a node rejected. The payload is what the row came in, or the row as JSON where the bytes are gone.
pub(crate) fn of_rows(
    node: &str,
    rejected: &Rejected,
    ids: &RecordIds,
    partition: u32,
    slots: &SlotDirectory,
    block: Option<&PayloadBlock>,
) -> KeyedBatch {
    let batch = &rejected.batch;
    let times = batch.rows.column_by_name(TS).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    let writer = JsonWriter::new(&batch.rows.schema());
    let mut letters = Letters::new(rejected.rows.len());
    let mut json = Vec::new();
    for row in rejected.rows.iter().map(|r| *r as usize) {
        let keys = &batch.keys;
        let (device, series, position) = (keys.device[row], keys.series[row], keys.position[row]);
        letters.ids.append_value(ids.id(position, node, 0));
        letters.messages.append_value(&rejected.message);
        append_name(&mut letters.devices, slots.device_name(device));
        append_name(&mut letters.sensors, slots.sensor_name(series));
        letters.times.push(times.map(|t| t.value(row)));
        if let Some(payload) = block.and_then(|b| payload_of(b, position)) {
            letters.kinds.append_value(RAW);
            letters.payloads.append_value(&payload);
        } else {
            json.clear();
            writer.write_row(&batch.rows, row, &mut json);
            letters.kinds.append_value(READING);
            letters.payloads.append_value(&json);
        }
        letters.keys.push(device, series, position);
    }
    letters.finish(node, &rejected.code, partition)
}

fn append_name(builder: &mut StringBuilder, name: &str) {
    builder.append_option((!name.is_empty()).then_some(name));
}

/// Only what came in the log has bytes: a tick's emission has none.
fn payload_of(block: &PayloadBlock, position: Position) -> Option<bytes::Bytes> {
    (position.tick == 0).then(|| block.at_offset(position.offset)).flatten()
}
