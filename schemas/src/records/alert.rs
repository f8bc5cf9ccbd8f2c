//! Builds batches of alerts.

use std::sync::Arc;

use arrow::array::builder::{Float64Builder, StringBuilder, TimestampMicrosecondBuilder};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::error::ArrowError;

use super::alert_schema;

/// One alert, without its device and sensor. Times are microseconds since the epoch; see [`alert_schema`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Alert<'a> {
    /// Deterministic id, see [`RecordIds`](super::RecordIds).
    pub id: &'a str,
    /// Event time.
    pub ts: i64,
    /// Name of the node that raised it.
    pub detector: &'a str,
    /// Its method, such as `ewma`.
    pub method: &'a str,
    /// `row`, `raised`, `updated` or `cleared`.
    pub state: &'a str,
    /// `low`, `medium`, `high` or `critical`.
    pub severity: &'a str,
    /// For a person.
    pub description: &'a str,
    /// Between 0 and 1.
    pub confidence: Option<f64>,
    /// The judged value.
    pub value: Option<f64>,
    /// The limit it passed.
    pub limit: Option<f64>,
    /// The method's centre.
    pub expected: Option<f64>,
    /// The method's scale.
    pub spread: Option<f64>,
    /// The method's score.
    pub deviation: Option<f64>,
    /// Event time at which the episode began.
    pub raised_ts: Option<i64>,
    /// Id of the reading that caused it.
    pub reading_id: Option<&'a str>,
}

/// Collects alerts and makes a batch with the columns of [`alert_schema`].
#[derive(Debug, Default)]
pub struct AlertBuilder {
    id: StringBuilder,
    ts: TimestampMicrosecondBuilder,
    /// detector, method, state, severity, description
    words: [StringBuilder; 5],
    /// confidence, value, limit, expected, spread, deviation
    numbers: [Float64Builder; 6],
    raised_ts: TimestampMicrosecondBuilder,
    reading_id: StringBuilder,
    rows: usize,
}

impl AlertBuilder {
    /// Appends one alert.
    pub fn append(&mut self, alert: &Alert<'_>) {
        self.id.append_value(alert.id);
        self.ts.append_value(alert.ts);
        let words = [alert.detector, alert.method, alert.state, alert.severity, alert.description];
        for (builder, word) in self.words.iter_mut().zip(words) {
            builder.append_value(word);
        }
        let numbers = [alert.confidence, alert.value, alert.limit, alert.expected, alert.spread, alert.deviation];
        for (builder, number) in self.numbers.iter_mut().zip(numbers) {
            builder.append_option(number);
        }
        self.raised_ts.append_option(alert.raised_ts);
        self.reading_id.append_option(alert.reading_id);
        self.rows += 1;
    }

    /// Number of alerts so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// True when there is no alert.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The batch; the builder is empty again. `device_id` and `sensor_id` are name columns with one entry per alert.
    ///
    /// # Errors
    /// If a given column has another length or type.
    pub fn finish(&mut self, device_id: ArrayRef, sensor_id: ArrayRef) -> Result<RecordBatch, ArrowError> {
        let mut done = std::mem::take(self);
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(done.id.finish()), device_id, sensor_id, Arc::new(done.ts.finish().with_timezone("UTC"))];
        columns.extend(done.words.iter_mut().map(|w| Arc::new(w.finish()) as ArrayRef));
        columns.extend(done.numbers.iter_mut().map(|n| Arc::new(n.finish()) as ArrayRef));
        columns.push(Arc::new(done.raised_ts.finish().with_timezone("UTC")));
        columns.push(Arc::new(done.reading_id.finish()));
        RecordBatch::try_new(alert_schema(), columns)
    }
}
