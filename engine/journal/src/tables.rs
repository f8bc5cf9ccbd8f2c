//! The Arrow tables inside a frame: readings, undecodable payloads, and payload bytes that are kept.
//!
//! A segment's header holds each table's IPC schema message once; a frame holds the messages after it. Both together are an
//! ordinary Arrow IPC stream (Arrow columnar format 1.5, "IPC Streaming Format").

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, DictionaryArray, Int64Array, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::ipc::MetadataVersion;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use fieldstream_schemas::columns::{INGEST_TS, readings_schema};
use fieldstream_schemas::payload::known_code;
use fieldstream_schemas::{Position, Reject};

static ROWS: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields: Vec<Arc<Field>> = readings_schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("offset", DataType::UInt64, false)));
    fields.push(Arc::new(Field::new("row", DataType::UInt32, false)));
    Arc::new(Schema::new(fields))
});

static REJECTS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("offset", DataType::UInt64, false),
        Field::new("row", DataType::UInt32, false),
        Field::new("code", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
        Field::new("payload", DataType::Binary, false),
    ]))
});

static RAWS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("offset", DataType::UInt64, false),
        Field::new("ingest_us", DataType::Int64, true),
        Field::new("payload", DataType::Binary, false),
    ]))
});

/// The tables of a frame, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    Rows,
    Rejects,
    Raws,
}

/// All kinds, in the order in which they lie in a frame.
pub(crate) const KINDS: [TableKind; 3] = [TableKind::Rows, TableKind::Rejects, TableKind::Raws];

impl TableKind {
    pub(crate) fn schema(self) -> SchemaRef {
        Arc::clone(match self {
            Self::Rows => &ROWS,
            Self::Rejects => &REJECTS,
            Self::Raws => &RAWS,
        })
    }

    /// The IPC schema message of this program's layout.
    pub(crate) fn schema_message(self) -> Result<Vec<u8>, ArrowError> {
        Ok(StreamWriter::try_new_with_options(Vec::new(), &self.schema(), write_options()?)?.get_ref().clone())
    }

    /// The messages of `rows` after the schema message.
    pub(crate) fn encode(self, rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        if rows.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let out = Vec::with_capacity(rows.get_array_memory_size() + 4096);
        let mut writer = StreamWriter::try_new_with_options(out, &self.schema(), write_options()?)?;
        let after_schema = writer.get_ref().len();
        writer.write(rows)?;
        let mut out = std::mem::take(writer.get_mut());
        out.drain(..after_schema);
        out.resize(out.len().next_multiple_of(8), 0);
        Ok(out)
    }

    /// Reads what [`Self::encode`] wrote, given the schema message of its segment.
    pub(crate) fn decode(self, schema: &Buffer, body: Buffer) -> Result<RecordBatch, ArrowError> {
        if body.is_empty() {
            return Ok(RecordBatch::new_empty(self.schema()));
        }
        let mut decoder = StreamDecoder::new();
        let none = decoder.decode(&mut schema.clone())?;
        let mut body = body;
        let rows = match none {
            None => decoder.decode(&mut body)?,
            some => some,
        };
        let rows = rows.ok_or_else(|| ArrowError::IpcError("the stream ends before its rows".to_owned()))?;
        // A segment of an older program may have other columns.
        if rows.schema() != self.schema() {
            return Err(ArrowError::SchemaError("the segment was written with other columns".to_owned()));
        }
        Ok(rows)
    }
}

/// Buffers are padded to 8 bytes: with the usual 64, a frame of one reading would be nearly twice as long.
fn write_options() -> Result<IpcWriteOptions, ArrowError> {
    IpcWriteOptions::try_new(8, false, MetadataVersion::V5)
}

/// Readings with the two position columns.
pub(crate) fn with_positions(readings: &RecordBatch, offsets: Vec<u64>, rows: Vec<u32>) -> Result<RecordBatch, ArrowError> {
    let mut columns = readings.columns().to_vec();
    columns.push(Arc::new(UInt64Array::from(offsets)));
    columns.push(Arc::new(UInt32Array::from(rows)));
    RecordBatch::try_new(Arc::clone(&ROWS), columns)
}

/// The inverse of [`with_positions`].
pub(crate) fn split_positions(rows: &RecordBatch) -> Result<(RecordBatch, Vec<Position>), ArrowError> {
    let width = readings_schema().fields().len();
    let wrong = || ArrowError::SchemaError("position columns are missing".to_owned());
    let offsets = rows.columns().get(width).and_then(|c| c.as_primitive_opt::<UInt64Type>()).ok_or_else(wrong)?;
    let numbers = rows.columns().get(width + 1).and_then(|c| c.as_primitive_opt::<UInt32Type>()).ok_or_else(wrong)?;
    let positions = offsets.values().iter().zip(numbers.values()).map(|(offset, row)| Position::new(*offset, *row)).collect();
    let readings = RecordBatch::try_new(readings_schema(), rows.columns().get(..width).ok_or_else(wrong)?.to_vec())?;
    Ok((readings, positions))
}

/// Undecodable payloads as a table.
pub(crate) fn rejects_table(rejects: &[Reject]) -> Result<RecordBatch, ArrowError> {
    let mut payloads = BinaryBuilder::with_capacity(rejects.len(), rejects.iter().map(|r| r.payload.len()).sum());
    rejects.iter().for_each(|r| payloads.append_value(&r.payload));
    RecordBatch::try_new(
        Arc::clone(&REJECTS),
        vec![
            Arc::new(UInt64Array::from_iter_values(rejects.iter().map(|r| r.position.offset))),
            Arc::new(UInt32Array::from_iter_values(rejects.iter().map(|r| r.position.row))),
            Arc::new(StringArray::from_iter_values(rejects.iter().map(|r| r.code))),
            Arc::new(StringArray::from_iter_values(rejects.iter().map(|r| r.message.as_str()))),
            Arc::new(payloads.finish()),
        ],
    )
}

/// The inverse of [`rejects_table`].
pub(crate) fn read_rejects(table: &RecordBatch) -> Vec<Reject> {
    let offsets = table.column(0).as_primitive::<UInt64Type>();
    let rows = table.column(1).as_primitive::<UInt32Type>();
    let (codes, messages) = (table.column(2).as_string::<i32>(), table.column(3).as_string::<i32>());
    let payloads = table.column(4).as_binary::<i32>();
    (0..table.num_rows())
        .map(|i| Reject {
            position: Position::new(offsets.value(i), rows.value(i)),
            code: known_code(codes.value(i)),
            message: messages.value(i).to_owned(),
            payload: slice_of(payloads, i),
        })
        .collect()
}

/// A kept payload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Raw {
    pub(crate) offset: u64,
    pub(crate) ingest_us: Option<i64>,
    pub(crate) payload: Bytes,
}

/// Kept payloads as a table.
pub(crate) fn raws_table(raws: &[Raw]) -> Result<RecordBatch, ArrowError> {
    let mut payloads = BinaryBuilder::with_capacity(raws.len(), raws.iter().map(|r| r.payload.len()).sum());
    raws.iter().for_each(|r| payloads.append_value(&r.payload));
    RecordBatch::try_new(
        Arc::clone(&RAWS),
        vec![
            Arc::new(UInt64Array::from_iter_values(raws.iter().map(|r| r.offset))),
            Arc::new(raws.iter().map(|r| r.ingest_us).collect::<Int64Array>()),
            Arc::new(payloads.finish()),
        ],
    )
}

/// The inverse of [`raws_table`].
pub(crate) fn read_raws(table: &RecordBatch) -> Vec<Raw> {
    let offsets = table.column(0).as_primitive::<UInt64Type>();
    let times = table.column(1).as_primitive::<Int64Type>();
    let payloads = table.column(2).as_binary::<i32>();
    let time = |i| times.is_valid(i).then(|| times.value(i));
    (0..table.num_rows()).map(|i| Raw { offset: offsets.value(i), ingest_us: time(i), payload: slice_of(payloads, i) }).collect()
}

fn slice_of(payloads: &BinaryArray, row: usize) -> Bytes {
    Bytes::copy_from_slice(payloads.value(row))
}

/// The same rows, with each name dictionary cut down to the names in use where it is longer than the rows are many.
pub(crate) fn compact(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = rows.columns().iter().map(|column| match column.as_dictionary_opt::<UInt32Type>() {
        Some(dictionary) if dictionary.values().len() > dictionary.len() => compact_names(dictionary),
        _ => Ok(Arc::clone(column)),
    });
    RecordBatch::try_new(rows.schema(), columns.collect::<Result<_, _>>()?)
}

fn compact_names(dictionary: &DictionaryArray<UInt32Type>) -> Result<ArrayRef, ArrowError> {
    let Some(names) = dictionary.values().as_string_opt::<i32>() else {
        return Ok(Arc::new(dictionary.clone()));
    };
    let mut moved: Vec<Option<u32>> = vec![None; names.len()];
    let mut kept = StringBuilder::new();
    let mut next = 0;
    let keys = dictionary.keys().iter().map(|key| {
        let entry = moved.get_mut(key? as usize)?;
        if entry.is_none() {
            kept.append_value(names.value(key? as usize));
            *entry = Some(next);
            next += 1;
        }
        *entry
    });
    let keys: UInt32Array = keys.collect();
    Ok(Arc::new(DictionaryArray::try_new(keys, Arc::new(kept.finish()))?))
}

/// The same rows, with `ingest_ts` set to `now_us` where it is null: every row has its append time.
pub(crate) fn stamp(rows: &RecordBatch, now_us: i64) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema();
    let index = schema.index_of(INGEST_TS)?;
    let times = rows.column(index).as_primitive::<TimestampMicrosecondType>();
    if times.null_count() == 0 {
        return Ok(rows.clone());
    }
    let stamped: TimestampMicrosecondArray = times.iter().map(|t| Some(t.unwrap_or(now_us))).collect();
    let mut columns = rows.columns().to_vec();
    columns[index] = Arc::new(stamped.with_timezone("UTC"));
    RecordBatch::try_new(schema, columns)
}
