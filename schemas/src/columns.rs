//! The columns of a reading, their Arrow types, and a typed view over a batch that has them.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, AsArray, BooleanArray, DictionaryArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType, UInt8Type, UInt32Type};

use crate::quality;

/// Who measures. Never null.
pub const DEVICE_ID: &str = "device_id";
/// What on the device measures. Never null in a reading; absent in rows keyed by device.
pub const SENSOR_ID: &str = "sensor_id";
/// Kind of quantity, such as `temperature`.
pub const SENSOR_TYPE: &str = "sensor_type";
/// Event time, microseconds since the epoch, UTC. Never null.
pub const TS: &str = "ts";
/// Ingest (or append) time recorded with the row; null where the input has none, such as a finite file.
pub const INGEST_TS: &str = "ingest_ts";
/// Numeric value; null for text and boolean readings.
pub const VALUE: &str = "value";
/// Text value.
pub const TEXT: &str = "text";
/// Boolean value.
pub const FLAG: &str = "flag";
/// Unit of `value` as sent, such as `Cel`.
pub const UNIT: &str = "unit";
/// Quality class: `good`, `uncertain` or `bad`. Never null.
pub const QUALITY: &str = "quality";
/// Quality score between 0 and 1, where one was sent.
pub const SCORE: &str = "score";
/// The producer's id of the reading.
pub const ID: &str = "id";
/// Further fields of the payload as one JSON object in text.
pub const TAGS: &str = "tags";
/// True where `ts` was missing and took the ingest time.
pub const STAMPED: &str = "stamped";

/// Arrow type of name columns: `device_id`, `sensor_id`, `sensor_type`, `unit`.
#[must_use]
pub fn name_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8))
}

/// Arrow type of times: microseconds since the epoch, UTC.
#[must_use]
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new(DEVICE_ID, name_type(), false),
        Field::new(SENSOR_ID, name_type(), false),
        Field::new(SENSOR_TYPE, name_type(), true),
        Field::new(TS, time_type(), false),
        Field::new(INGEST_TS, time_type(), true),
        Field::new(VALUE, DataType::Float64, true),
        Field::new(TEXT, DataType::Utf8, true),
        Field::new(FLAG, DataType::Boolean, true),
        Field::new(UNIT, name_type(), true),
        Field::new(QUALITY, quality::data_type(), false),
        Field::new(SCORE, DataType::Float64, true),
        Field::new(ID, DataType::Utf8, true),
        Field::new(TAGS, DataType::Utf8, true),
        Field::new(STAMPED, DataType::Boolean, false),
    ]))
});

/// The schema of readings, in column order.
#[must_use]
pub fn readings_schema() -> SchemaRef {
    Arc::clone(&SCHEMA)
}

/// Typed, borrowed columns of a batch of readings. Every accessor is one pointer: build it once per batch.
#[derive(Clone, Copy, Debug)]
pub struct Readings<'a> {
    /// `device_id`
    pub device_id: &'a DictionaryArray<UInt32Type>,
    /// `sensor_id`
    pub sensor_id: &'a DictionaryArray<UInt32Type>,
    /// `sensor_type`
    pub sensor_type: &'a DictionaryArray<UInt32Type>,
    /// `ts`
    pub ts: &'a TimestampMicrosecondArray,
    /// `ingest_ts`
    pub ingest_ts: &'a TimestampMicrosecondArray,
    /// `value`
    pub value: &'a Float64Array,
    /// `text`
    pub text: &'a StringArray,
    /// `flag`
    pub flag: &'a BooleanArray,
    /// `unit`
    pub unit: &'a DictionaryArray<UInt32Type>,
    /// `quality`
    pub quality: &'a DictionaryArray<UInt8Type>,
    /// `score`
    pub score: &'a Float64Array,
    /// `id`
    pub id: &'a StringArray,
    /// `tags`
    pub tags: &'a StringArray,
    /// `stamped`
    pub stamped: &'a BooleanArray,
}

impl<'a> Readings<'a> {
    /// Views `batch`; `None` unless it has exactly the columns of [`readings_schema`].
    #[must_use]
    pub fn new(batch: &'a RecordBatch) -> Option<Self> {
        if batch.num_columns() != SCHEMA.fields().len() {
            return None;
        }
        Some(Self {
            device_id: batch.column(0).as_dictionary_opt()?,
            sensor_id: batch.column(1).as_dictionary_opt()?,
            sensor_type: batch.column(2).as_dictionary_opt()?,
            ts: batch.column(3).as_primitive_opt::<TimestampMicrosecondType>()?,
            ingest_ts: batch.column(4).as_primitive_opt::<TimestampMicrosecondType>()?,
            value: batch.column(5).as_primitive_opt()?,
            text: batch.column(6).as_string_opt()?,
            flag: batch.column(7).as_boolean_opt()?,
            unit: batch.column(8).as_dictionary_opt()?,
            quality: batch.column(9).as_dictionary_opt()?,
            score: batch.column(10).as_primitive_opt()?,
            id: batch.column(11).as_string_opt()?,
            tags: batch.column(12).as_string_opt()?,
            stamped: batch.column(13).as_boolean_opt()?,
        })
    }
}

/// The string that row `row` of a name column (see [`name_type`]) holds; `None` for null or another type.
#[must_use]
pub fn name_at(array: &dyn Array, row: usize) -> Option<&str> {
    let dictionary = array.as_dictionary_opt::<UInt32Type>()?;
    let key = dictionary.key(row)?;
    Some(dictionary.values().as_string_opt::<i32>()?.value(key))
}
