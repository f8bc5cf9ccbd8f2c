//! Records that leave a pipeline besides readings: alerts, predictions and dead letters.

mod alert;
mod dead_letter;
mod prediction;

pub use alert::{Alert, AlertBuilder};
pub use dead_letter::{KIND_RAW, KIND_READING, RefusedRows, Refuser, dead_letters_of_rejects, dead_letters_of_rows};
pub use prediction::{Prediction, PredictionBuilder};

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use uuid::Uuid;

use crate::Position;
use crate::columns::{DEVICE_ID, ID, SENSOR_ID, TS, VALUE, name_type, time_type};

fn text(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, nullable)
}

fn number(name: &str) -> Field {
    Field::new(name, DataType::Float64, true)
}

static ALERT: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text(ID, false),
        Field::new(DEVICE_ID, name_type(), false),
        Field::new(SENSOR_ID, name_type(), true),
        Field::new(TS, time_type(), false),
        text("detector", false),
        text("method", false),
        // row | raised | updated | cleared
        text("state", false),
        // low | medium | high | critical
        text("severity", false),
        text("description", false),
        number("confidence"),
        number(VALUE),
        number("limit"),
        number("expected"),
        number("spread"),
        number("deviation"),
        Field::new("raised_ts", time_type(), true),
        text("reading_id", true),
    ]))
});

static PREDICTION: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text(ID, false),
        Field::new(DEVICE_ID, name_type(), false),
        Field::new(SENSOR_ID, name_type(), true),
        Field::new(TS, time_type(), false),
        text("predictor", false),
        text("method", false),
        // limit_crossing | health
        text("prediction_type", false),
        number("health"),
        // improving | stable | degrading
        text("trend", true),
        text("factors", true),
        number(VALUE),
        number("limit"),
        Field::new("time_to_event_ms", DataType::Int64, true),
        Field::new("earliest_ms", DataType::Int64, true),
        Field::new("latest_ms", DataType::Int64, true),
        number("confidence"),
        text("actions", true),
    ]))
});

static DEAD_LETTER: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        text(ID, false),
        text("code", false),
        text("node", false),
        text("message", false),
        Field::new("partition", DataType::UInt32, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("row", DataType::UInt32, false),
        text(DEVICE_ID, true),
        text(SENSOR_ID, true),
        Field::new(TS, time_type(), true),
        // raw: the bytes as they came; reading: the row as canonical JSON, where the bytes are gone
        text("payload_kind", false),
        Field::new("payload", DataType::Binary, false),
    ]))
});

/// Columns of alerts, as every `detect` operator emits them. `expected`, `spread` and `deviation` are the method's centre,
/// scale and score (for EWMA: mean, standard deviation and z). `raised_ts` is the event time at which the episode began.
#[must_use]
pub fn alert_schema() -> SchemaRef {
    Arc::clone(&ALERT)
}

/// Columns of predictions, as every `predict` operator emits them. `factors` is a JSON object, `actions` a JSON array;
/// times to the event are milliseconds after `ts`.
#[must_use]
pub fn prediction_schema() -> SchemaRef {
    Arc::clone(&PREDICTION)
}

/// Columns of dead letters and of every `.rejected` port.
#[must_use]
pub fn dead_letter_schema() -> SchemaRef {
    Arc::clone(&DEAD_LETTER)
}

/// Deterministic ids for the records of one node: the same position in the same log gives the same id after any replay.
#[derive(Clone, Copy, Debug)]
pub struct RecordIds {
    namespace: Uuid,
}

impl RecordIds {
    /// Ids for `node` of `pipeline` reading partition `partition` of the log `log_id`.
    #[must_use]
    pub fn new(pipeline: &str, node: &str, log_id: &str, partition: u32) -> Self {
        let name = format!("{pipeline}\u{1f}{node}\u{1f}{log_id}\u{1f}{partition}");
        Self { namespace: Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()) }
    }

    /// The id of record number `index` emitted at `position` for `key` (the device, and the sensor where there is one).
    #[must_use]
    pub fn id(&self, position: Position, key: &str, index: u32) -> String {
        let mut name = Vec::with_capacity(20 + key.len());
        name.extend_from_slice(&position.offset.to_be_bytes());
        name.extend_from_slice(&position.row.to_be_bytes());
        name.extend_from_slice(&position.tick.to_be_bytes());
        name.extend_from_slice(&index.to_be_bytes());
        name.extend_from_slice(key.as_bytes());
        Uuid::new_v5(&self.namespace, &name).to_string()
    }
}
