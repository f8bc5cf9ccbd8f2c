//! CloudEvents 1.0: the envelope in structured mode (JSON Event Format) and as headers in binary mode (Kafka Protocol Binding).

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;

use super::json::JsonWriter;
use super::value::{push, push_time, text_at, time_at};
use crate::columns::{DEVICE_ID, ID, SENSOR_ID, TS, readings_schema};
use crate::records::{alert_schema, dead_letter_schema, prediction_schema};
use crate::time::format_rfc3339;

/// Content type of a structured event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// The attributes of one event (CloudEvents 1.0.2, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloudEvent<'a> {
    /// Unique within `source`.
    pub id: &'a str,
    /// Who made it, a URI reference such as `/pipelines/cold-chain/too_warm`.
    pub source: &'a str,
    /// What happened, such as `fieldstream.alert`.
    pub event_type: &'a str,
    /// About what: device, or `device/sensor`.
    pub subject: Option<&'a str>,
    /// Event time, microseconds since the epoch.
    pub time: Option<i64>,
}

impl CloudEvent<'_> {
    /// Appends the event with `data`, which is JSON, as one JSON object.
    pub fn write(&self, data: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":");
        push(&self.id, out);
        out.extend_from_slice(b",\"source\":");
        push(&self.source, out);
        out.extend_from_slice(b",\"type\":");
        push(&self.event_type, out);
        if let Some(subject) = self.subject {
            out.extend_from_slice(b",\"subject\":");
            push(&subject, out);
        }
        if let Some(time) = self.time {
            out.extend_from_slice(b",\"time\":");
            push_time(time, out);
        }
        out.extend_from_slice(b",\"datacontenttype\":\"application/json\",\"data\":");
        out.extend_from_slice(data);
        out.push(b'}');
    }

    /// The attributes as Kafka record headers; the record's value is the data alone.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", self.id.to_owned()),
            ("ce_source", self.source.to_owned()),
            ("ce_type", self.event_type.to_owned()),
        ];
        headers.extend(self.subject.map(|s| ("ce_subject", s.to_owned())));
        headers.extend(self.time.map(|t| ("ce_time", format_rfc3339(t))));
        headers.push(("content-type", "application/json".to_owned()));
        headers
    }
}

/// All event types: of readings, alerts, predictions, dead letters and other rows.
pub const EVENT_TYPES: [&str; 5] =
    ["fieldstream.reading", "fieldstream.alert", "fieldstream.prediction", "fieldstream.dead-letter", "fieldstream.row"];

/// The event type of rows of `schema`: `fieldstream.reading`, `.alert`, `.prediction`, `.dead-letter`, or `.row` for others.
#[must_use]
pub fn event_type(schema: &SchemaRef) -> &'static str {
    let known = [readings_schema(), alert_schema(), prediction_schema(), dead_letter_schema()];
    let same = |other: &SchemaRef| {
        let names = |s: &SchemaRef| s.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
        names(other) == names(schema)
    };
    let [.., other] = EVENT_TYPES;
    known.iter().zip(EVENT_TYPES).find(|(schema, _)| same(schema)).map_or(other, |(_, name)| name)
}

/// Writes rows of one schema as events.
#[derive(Clone, Debug)]
pub struct EventWriter {
    json: JsonWriter,
    source: String,
    event_type: &'static str,
    id: Option<usize>,
    device: Option<usize>,
    sensor: Option<usize>,
    ts: Option<usize>,
}

impl EventWriter {
    /// A writer for rows of `schema` that come from `source`, a URI reference.
    #[must_use]
    pub fn new(schema: &SchemaRef, source: impl Into<String>) -> Self {
        let column = |name: &str| schema.index_of(name).ok();
        Self {
            json: JsonWriter::new(schema),
            source: source.into(),
            event_type: event_type(schema),
            id: column(ID),
            device: column(DEVICE_ID),
            sensor: column(SENSOR_ID),
            ts: column(TS),
        }
    }

    /// Appends row `row` in structured mode. `own_id` is the event's id where the row has none: deterministic, unique in the source.
    pub fn write_row(&self, batch: &RecordBatch, row: usize, own_id: &str, out: &mut Vec<u8>) {
        let mut data = Vec::with_capacity(512);
        self.json.write_row(batch, row, &mut data);
        let subject = self.subject(batch, row);
        self.event(batch, row, own_id, subject.as_deref()).write(&data, out);
    }

    /// The headers of row `row` in binary mode, and its data appended to `out`; `own_id` as for [`Self::write_row`].
    pub fn write_binary(&self, batch: &RecordBatch, row: usize, own_id: &str, out: &mut Vec<u8>) -> Vec<(&'static str, String)> {
        self.json.write_row(batch, row, out);
        let subject = self.subject(batch, row);
        self.event(batch, row, own_id, subject.as_deref()).headers()
    }

    fn event<'a>(&'a self, batch: &'a RecordBatch, row: usize, own_id: &'a str, subject: Option<&'a str>) -> CloudEvent<'a> {
        let time = cell(batch, self.ts, row).and_then(|array| time_at(array, row));
        let id = cell(batch, self.id, row).and_then(|array| text_at(array, row)).unwrap_or(own_id);
        CloudEvent { id, source: &self.source, event_type: self.event_type, subject, time }
    }

    fn subject(&self, batch: &RecordBatch, row: usize) -> Option<String> {
        let device = cell(batch, self.device, row).and_then(|array| text_at(array, row))?;
        let sensor = cell(batch, self.sensor, row).and_then(|array| text_at(array, row));
        Some(sensor.map_or_else(|| device.to_owned(), |sensor| format!("{device}/{sensor}")))
    }
}

/// The column, if there is one and row `row` of it is not null.
fn cell(batch: &RecordBatch, column: Option<usize>, row: usize) -> Option<&dyn Array> {
    let array = batch.columns().get(column?)?.as_ref();
    (row < array.len() && array.is_valid(row)).then_some(array)
}
