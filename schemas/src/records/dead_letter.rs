//! Builds batches of dead letters.

use std::sync::Arc;

use arrow::array::builder::{BinaryBuilder, StringBuilder, TimestampMicrosecondBuilder, UInt32Builder, UInt64Builder};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::error::ArrowError;
use bytes::Bytes;

use super::{RecordIds, dead_letter_schema};
use crate::columns::{DEVICE_ID, SENSOR_ID, TS, name_at};
use crate::encode::JsonWriter;
use crate::{Position, Reject};

/// `payload_kind` of bytes as they came.
pub const KIND_RAW: &str = "raw";
/// `payload_kind` of a row as canonical JSON.
pub const KIND_READING: &str = "reading";

/// Whose dead letters they are.
#[derive(Clone, Copy, Debug)]
pub struct Refuser<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// Number of the partition.
    pub partition: u32,
    /// Ids of the node's records.
    pub ids: &'a RecordIds,
}

/// Rows refused by one rule.
#[derive(Clone, Copy, Debug)]
pub struct RefusedRows<'a> {
    /// The batch they lie in, of any schema.
    pub batch: &'a RecordBatch,
    /// Their numbers in it.
    pub rows: &'a [u32],
    /// One position per row of the batch.
    pub positions: &'a [Position],
    /// The rule's id.
    pub code: &'a str,
    /// For a person.
    pub message: &'a str,
}

/// Dead letters for payloads that could not be decoded.
///
/// # Errors
/// If the payloads together pass 2 GiB.
pub fn dead_letters_of_rejects(refuser: Refuser<'_>, rejects: &[Reject]) -> Result<RecordBatch, ArrowError> {
    let mut builder = Builder::default();
    for reject in rejects {
        let id = refuser.ids.id(reject.position, "", 0);
        builder.append(refuser, &id, reject.position, reject.code, &reject.message);
        builder.subject(None, None, None);
        builder.payload(KIND_RAW, &reject.payload)?;
    }
    builder.finish()
}

/// Dead letters for rows that a node refused. `payload` gives the bytes a row came from, if they are still there and hold
/// nothing else; otherwise the row itself is kept as JSON.
///
/// # Errors
/// If the payloads together pass 2 GiB.
pub fn dead_letters_of_rows(
    refuser: Refuser<'_>,
    refused: RefusedRows<'_>,
    payload: impl Fn(Position) -> Option<Bytes>,
) -> Result<RecordBatch, ArrowError> {
    let mut builder = Builder::default();
    let json = JsonWriter::new(&refused.batch.schema());
    let column = |name: &str| refused.batch.column_by_name(name);
    let (devices, sensors) = (column(DEVICE_ID), column(SENSOR_ID));
    let times = column(TS).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    let mut text = Vec::new();
    for row in refused.rows.iter().map(|r| *r as usize).filter(|r| *r < refused.batch.num_rows()) {
        let position = refused.positions.get(row).copied().unwrap_or_default();
        let device = devices.and_then(|c| name_at(c, row));
        let sensor = sensors.and_then(|c| name_at(c, row));
        let ts = times.filter(|t| t.is_valid(row)).map(|t| t.value(row));
        // A tick may emit several rows at one position, even of one series.
        let key = format!("{}\u{1f}{}\u{1f}{}", device.unwrap_or_default(), sensor.unwrap_or_default(), ts.unwrap_or_default());
        let id = refuser.ids.id(position, &key, 0);
        builder.append(refuser, &id, position, refused.code, refused.message);
        builder.subject(device, sensor, ts);
        match payload(position) {
            Some(bytes) => builder.payload(KIND_RAW, &bytes)?,
            None => {
                text.clear();
                json.write_row(refused.batch, row, &mut text);
                builder.payload(KIND_READING, &text)?;
            }
        }
    }
    builder.finish()
}

#[derive(Default)]
struct Builder {
    id: StringBuilder,
    code: StringBuilder,
    node: StringBuilder,
    message: StringBuilder,
    partition: UInt32Builder,
    offset: UInt64Builder,
    row: UInt32Builder,
    device: StringBuilder,
    sensor: StringBuilder,
    ts: TimestampMicrosecondBuilder,
    kind: StringBuilder,
    payload: BinaryBuilder,
    payload_bytes: usize,
}

impl Builder {
    fn append(&mut self, refuser: Refuser<'_>, id: &str, position: Position, code: &str, message: &str) {
        self.id.append_value(id);
        self.code.append_value(code);
        self.node.append_value(refuser.node);
        self.message.append_value(message);
        self.partition.append_value(refuser.partition);
        self.offset.append_value(position.offset);
        self.row.append_value(position.row);
    }

    fn subject(&mut self, device: Option<&str>, sensor: Option<&str>, ts: Option<i64>) {
        self.device.append_option(device);
        self.sensor.append_option(sensor);
        self.ts.append_option(ts);
    }

    fn payload(&mut self, kind: &str, bytes: &[u8]) -> Result<(), ArrowError> {
        self.payload_bytes += bytes.len();
        if self.payload_bytes > i32::MAX as usize {
            return Err(ArrowError::InvalidArgumentError("dead letters of one batch pass 2 GiB; use smaller batches".into()));
        }
        self.kind.append_value(kind);
        self.payload.append_value(bytes);
        Ok(())
    }

    fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.id.finish()),
            Arc::new(self.code.finish()),
            Arc::new(self.node.finish()),
            Arc::new(self.message.finish()),
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.row.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.sensor.finish()),
            Arc::new(self.ts.finish().with_timezone("UTC")),
            Arc::new(self.kind.finish()),
            Arc::new(self.payload.finish()),
        ];
        RecordBatch::try_new(dead_letter_schema(), columns)
    }
}
