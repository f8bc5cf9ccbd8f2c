//! The `decode:` section of a source.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{QualityScale, Size};

/// The `decode:` section of a source: what its payloads are, and where in them the parts of a reading lie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeConfig {
    /// What a payload is.
    pub format: Format,
    /// Where the parts of a reading lie (formats `json` and `csv`).
    pub fields: Fields,
    /// Every member with a number or boolean is a reading, and its name is the sensor: `{"temperature": 22.5, "humidity": 65}`.
    /// Members named by `fields` for device, timestamp, quality and id keep their meaning.
    pub wide: bool,
    /// Where the device comes from, if not from the payload: `topic[1]` (level of the topic, from 0), `key` (the record's
    /// key) or `=name` (always this name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Where the sensor comes from, if not from the payload; as for `device`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensor: Option<String>,
    /// What becomes of members that are not part of a reading (format `json`).
    pub unknown: Unknown,
    /// Unit of timestamps that are numbers.
    pub timestamp_unit: TimestampUnit,
    /// What a value may be.
    pub value: ValueForm,
    /// Parts without which a payload is rejected with code `parse`. Device, sensor and value are always needed.
    pub required: Vec<Part>,
    /// How a quality that is a number falls into classes.
    pub quality: QualityConfig,
    /// Format `csv`: names of the columns, in order. Empty: the first record of each payload names them.
    pub columns: Vec<String>,
    /// Format `csv`: the separator, one ASCII character.
    pub delimiter: Delimiter,
    /// Format `csv` with `columns`: the payload at offset 0 of the log (a file's first line) is a header and no reading.
    pub header: bool,
    /// What one payload may hold.
    pub limits: PayloadLimits,
}

/// What one payload may hold. One that holds more is refused whole, before any reading of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PayloadLimits {
    /// Bytes; a larger payload is refused with code `payload_size`, and its dead letter holds the first 64 KiB. Default `4MiB`.
    pub bytes: Size,
    /// Readings; a payload with more is refused with code `payload_rows`. Default 100000.
    pub rows: usize,
}

impl Default for PayloadLimits {
    fn default() -> Self {
        Self { bytes: Size(4 << 20), rows: 100_000 }
    }
}

/// What a payload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object, an array of objects, or one object a line.
    #[default]
    Json,
    /// Readings as this product writes them, with ingest time and tags.
    Canonical,
    /// A SenML pack in JSON (RFC 8428).
    SenmlJson,
    /// Comma-separated values (RFC 4180).
    Csv,
    /// An Arrow IPC stream with the columns of readings.
    ArrowIpc,
}

/// Where the parts of a reading lie: member names, or paths such as `meta.device.id` (a leading `$.` is allowed).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// The producer's id of the reading.
    pub id: String,
    /// Who measures.
    pub device: String,
    /// What on the device measures.
    pub sensor: String,
    /// Kind of quantity.
    #[serde(rename = "type")]
    pub sensor_type: String,
    /// Event time: RFC 3339, or a number (see `timestamp_unit`).
    pub timestamp: String,
    /// The measured value.
    pub value: String,
    /// Unit of the value.
    pub unit: String,
    /// A number between 0 and 1, `good`, `uncertain` or `bad`, or `{status, score}`.
    pub quality: String,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            id: "id".into(),
            device: "deviceId".into(),
            sensor: "sensorId".into(),
            sensor_type: "sensorType".into(),
            timestamp: "timestamp".into(),
            value: "value".into(),
            unit: "unit".into(),
            quality: "quality".into(),
        }
    }
}

/// What becomes of members that are not part of a reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// They are checked to be JSON and left out.
    #[default]
    Ignore,
    /// They are kept as one JSON object in the column `tags`.
    Tags,
}

/// Unit of timestamps that are numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TimestampUnit {
    /// Seconds since the epoch.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since the epoch.
    #[default]
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds since the epoch.
    #[serde(rename = "us")]
    Microseconds,
    /// Nanoseconds since the epoch.
    #[serde(rename = "ns")]
    Nanoseconds,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueForm {
    /// A number, a string (column `text`) or a boolean (column `flag`).
    #[default]
    Any,
    /// A number only; a quality, where there is one, must be a number too.
    Number,
}

/// A part of a reading that may be demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// The producer's id.
    Id,
    /// Who measures.
    DeviceId,
    /// What measures.
    SensorId,
    /// Kind of quantity.
    SensorType,
    /// Event time.
    Timestamp,
    /// The value.
    Value,
    /// Its unit.
    Unit,
    /// Its quality.
    Quality,
}

/// How a quality that is a number falls into classes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QualityConfig {
    /// Lowest score that is still good.
    pub good: f64,
    /// Lowest score that is still uncertain.
    pub uncertain: f64,
}

impl Default for QualityConfig {
    fn default() -> Self {
        let scale = QualityScale::default();
        Self { good: scale.good, uncertain: scale.uncertain }
    }
}

/// The separator of CSV columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Delimiter(pub char);

impl Default for Delimiter {
    fn default() -> Self {
        Self(',')
    }
}
