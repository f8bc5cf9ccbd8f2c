//! Builds batches of predictions.

use std::sync::Arc;

use arrow::array::builder::{Float64Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::error::ArrowError;

use super::prediction_schema;

/// One prediction, without its device and sensor. Times are microseconds since the epoch; see [`prediction_schema`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction<'a> {
    /// Deterministic id, see [`RecordIds`](super::RecordIds).
    pub id: &'a str,
    /// Event time.
    pub ts: i64,
    /// Name of the node that made it.
    pub predictor: &'a str,
    /// Its method, such as `trend_to_limit`.
    pub method: &'a str,
    /// `limit_crossing` or `health`.
    pub prediction_type: &'a str,
    /// Between 0 (failed) and 100.
    pub health: Option<f64>,
    /// `improving`, `stable` or `degrading`.
    pub trend: Option<&'a str>,
    /// What weighs on it, a JSON object in text.
    pub factors: Option<&'a str>,
    /// The value now.
    pub value: Option<f64>,
    /// The limit it is judged against.
    pub limit: Option<f64>,
    /// Milliseconds after `ts` until the event.
    pub time_to_event_ms: Option<i64>,
    /// Lower end of the interval.
    pub earliest_ms: Option<i64>,
    /// Upper end of the interval.
    pub latest_ms: Option<i64>,
    /// Between 0 and 1.
    pub confidence: Option<f64>,
    /// Recommended actions, a JSON array in text.
    pub actions: Option<&'a str>,
}

/// Collects predictions and makes a batch with the columns of [`prediction_schema`].
#[derive(Debug, Default)]
pub struct PredictionBuilder {
    id: StringBuilder,
    ts: TimestampMicrosecondBuilder,
    /// predictor, method, prediction_type
    words: [StringBuilder; 3],
    health: Float64Builder,
    /// trend, factors
    notes: [StringBuilder; 2],
    /// value, limit
    numbers: [Float64Builder; 2],
    /// time_to_event_ms, earliest_ms, latest_ms
    spans: [Int64Builder; 3],
    confidence: Float64Builder,
    actions: StringBuilder,
    rows: usize,
}

impl PredictionBuilder {
    /// Appends one prediction.
    pub fn append(&mut self, prediction: &Prediction<'_>) {
        self.id.append_value(prediction.id);
        self.ts.append_value(prediction.ts);
        let words = [prediction.predictor, prediction.method, prediction.prediction_type];
        for (builder, word) in self.words.iter_mut().zip(words) {
            builder.append_value(word);
        }
        self.health.append_option(prediction.health);
        for (builder, note) in self.notes.iter_mut().zip([prediction.trend, prediction.factors]) {
            builder.append_option(note);
        }
        for (builder, number) in self.numbers.iter_mut().zip([prediction.value, prediction.limit]) {
            builder.append_option(number);
        }
        let spans = [prediction.time_to_event_ms, prediction.earliest_ms, prediction.latest_ms];
        for (builder, span) in self.spans.iter_mut().zip(spans) {
            builder.append_option(span);
        }
        self.confidence.append_option(prediction.confidence);
        self.actions.append_option(prediction.actions);
        self.rows += 1;
    }

    /// Number of predictions so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// True when there is no prediction.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The batch; the builder is empty again. `device_id` and `sensor_id` are name columns with one entry per prediction.
    ///
    /// # Errors
    /// If a given column has another length or type.
    pub fn finish(&mut self, device_id: ArrayRef, sensor_id: ArrayRef) -> Result<RecordBatch, ArrowError> {
        let mut done = std::mem::take(self);
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(done.id.finish()), device_id, sensor_id, Arc::new(done.ts.finish().with_timezone("UTC"))];
        columns.extend(done.words.iter_mut().map(|w| Arc::new(w.finish()) as ArrayRef));
        columns.push(Arc::new(done.health.finish()));
        columns.extend(done.notes.iter_mut().map(|n| Arc::new(n.finish()) as ArrayRef));
        columns.extend(done.numbers.iter_mut().map(|n| Arc::new(n.finish()) as ArrayRef));
        columns.extend(done.spans.iter_mut().map(|s| Arc::new(s.finish()) as ArrayRef));
        columns.push(Arc::new(done.confidence.finish()));
        columns.push(Arc::new(done.actions.finish()));
        RecordBatch::try_new(prediction_schema(), columns)
    }
}
