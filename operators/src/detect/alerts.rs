//! Alerts on their way out: ids, descriptions, columns.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef, TimestampMicrosecondType, UInt8Type};
use fieldstream_engine_api::{BuildContext, ConfigError, KeyedBatch, Keys, NO_SLOT, Position, SlotDirectory, Space};
use fieldstream_schemas::columns::{DEVICE_ID, ID, SENSOR_ID, name_at};
use fieldstream_schemas::records::{Alert, AlertBuilder, RecordIds};
use fieldstream_schemas::time::write_rfc3339;

use super::verdict::Verdict;
use crate::options::{Severity, did_you_mean};

/// A piece of a description.
#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Device,
    Sensor,
    /// Column by number.
    Column(usize),
    Value,
    Limit,
    Expected,
    Deviation,
}

/// A description with places for columns: `{device_id} at {max_c} C`. Besides columns, `value` (the judged one), `limit`,
/// `expected` and `deviation` may be named.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template(Vec<Piece>);

impl Template {
    /// Reads a template over the columns of `schema`.
    pub(super) fn parse(text: &str, schema: &SchemaRef) -> Result<Self, ConfigError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(ConfigError::new("", "a `{` is not closed").hint("write `{column}`"));
            };
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(match name.trim() {
                DEVICE_ID => Piece::Device,
                SENSOR_ID => Piece::Sensor,
                "value" => Piece::Value,
                "limit" => Piece::Limit,
                "expected" => Piece::Expected,
                "deviation" => Piece::Deviation,
                column => Piece::Column(schema.index_of(column).map_err(|_| {
                    let error = ConfigError::new("", format!("there is no column `{column}`"));
                    let known = || schema.fields().iter().map(|f| f.name().as_str());
                    let hint =
                        did_you_mean(column, known()).unwrap_or_else(|| format!("known: {}", known().collect::<Vec<_>>().join(", ")));
                    error.hint(hint)
                })?),
            });
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    fn render(&self, out: &mut String, event: &Event<'_>, device: &str, sensor: &str) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Device => out.push_str(device),
                Piece::Sensor => out.push_str(sensor),
                Piece::Column(column) => match event.rows {
                    Some((rows, row)) => write_cell(out, rows.column(*column), row),
                    None => out.push('-'),
                },
                Piece::Value => write_number(out, event.value),
                Piece::Limit => write_number(out, event.verdict.limit),
                Piece::Expected => write_number(out, event.verdict.expected),
                Piece::Deviation => write_number(out, event.verdict.deviation),
            }
        }
    }
}

fn write_number(out: &mut String, value: f64) {
    if value.is_nan() {
        out.push('-');
    } else {
        // Three decimals say enough to a person; writing to a String cannot fail.
        let _ = write!(out, "{}", (value * 1000.0).round() / 1000.0);
    }
}

fn write_cell(out: &mut String, column: &dyn Array, row: usize) {
    if column.is_null(row) {
        out.push('-');
        return;
    }
    match column.data_type() {
        DataType::Float64 => write_number(out, column.as_primitive::<Float64Type>().value(row)),
        DataType::Int64 => {
            let _ = write!(out, "{}", column.as_primitive::<Int64Type>().value(row));
        }
        DataType::Boolean => out.push_str(if column.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Utf8 => out.push_str(column.as_string::<i32>().value(row)),
        DataType::Timestamp(_, _) => {
            if let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() {
                write_rfc3339(out, times.value(row));
            }
        }
        _ => {
            let quality = || {
                let dictionary = column.as_dictionary_opt::<UInt8Type>()?;
                Some(dictionary.values().as_string_opt::<i32>()?.value(dictionary.key(row)?))
            };
            out.push_str(name_at(column, row).or_else(quality).unwrap_or("-"));
        }
    }
}

/// Something to tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a> {
    pub(super) state: &'a str,
    pub(super) ts: i64,
    pub(super) raised_ts: Option<i64>,
    /// The judged value; NaN where there is none.
    pub(super) value: f64,
    pub(super) verdict: Verdict,
    /// The row that caused it; none at a tick.
    pub(super) rows: Option<(&'a RecordBatch, usize)>,
    /// Slot of the detector's space.
    pub(super) slot: u32,
    pub(super) device: u32,
    pub(super) position: Position,
    /// Number among the alerts of this position and slot.
    pub(super) index: u32,
}

/// Collects the alerts of one call.
#[derive(Debug)]
pub(super) struct Alerts {
    ids: RecordIds,
    node: Arc<str>,
    method: &'static str,
    severity: Severity,
    template: Template,
    /// What to say of an end when nothing was written for it.
    ended: Option<&'static str>,
    space: Space,
    /// Column of the readings' own ids.
    reading_id: Option<usize>,
    builder: AlertBuilder,
    keys: Keys,
    key: String,
    text: String,
}

impl Alerts {
    pub(super) fn new(
        context: &BuildContext,
        method: &'static str,
        severity: Severity,
        template: Template,
        space: Space,
        input: &SchemaRef,
    ) -> Self {
        let ids = RecordIds::new(&context.pipeline, &context.node, &context.log_id.0, context.partition);
        let reading_id = input.index_of(ID).ok().filter(|at| *input.field(*at).data_type() == DataType::Utf8);
        Self {
            ids,
            node: Arc::clone(&context.node),
            method,
            severity,
            template,
            ended: None,
            space,
            reading_id,
            builder: AlertBuilder::default(),
            keys: Keys::default(),
            key: String::new(),
            text: String::new(),
        }
    }

    /// The same, with words of its own for the end of an episode.
    pub(super) fn ended(mut self, words: Option<&'static str>) -> Self {
        self.ended = words;
        self
    }

    pub(super) fn push(&mut self, event: &Event<'_>, slots: &SlotDirectory) {
        let series = if self.space == Space::Series { event.slot } else { NO_SLOT };
        let (device, sensor) = (slots.device_name(event.device), slots.sensor_name(series));
        self.text.clear();
        match self.ended.filter(|_| event.state == "cleared") {
            Some(words) => self.text.push_str(words),
            None => self.template.render(&mut self.text, event, device, sensor),
        }
        let reading_id = self.reading_id.zip(event.rows).and_then(|(column, (rows, row))| {
            let ids = rows.column(column).as_string::<i32>();
            ids.is_valid(row).then(|| ids.value(row))
        });
        self.key.clear();
        self.key.push_str(device);
        if series != NO_SLOT {
            self.key.push('/');
            self.key.push_str(sensor);
        }
        let own = reading_id.filter(|_| event.state == "row");
        let id = own.map_or_else(|| self.ids.id(event.position, &self.key, event.index), str::to_owned);
        let number = |value: f64| Some(value).filter(|v| !v.is_nan());
        self.builder.append(&Alert {
            id: &id,
            ts: event.ts,
            detector: &self.node,
            method: self.method,
            state: event.state,
            severity: self.severity.name(),
            description: &self.text,
            confidence: number(event.verdict.confidence),
            value: number(event.value),
            limit: number(event.verdict.limit),
            expected: number(event.verdict.expected),
            spread: number(event.verdict.spread),
            deviation: number(event.verdict.deviation),
            raised_ts: event.raised_ts,
            reading_id,
        });
        self.keys.push(event.device, series, event.position);
    }

    /// The alerts collected; `None` when there are none.
    pub(super) fn take(&mut self, slots: &SlotDirectory) -> Option<KeyedBatch> {
        if self.keys.is_empty() {
            return None;
        }
        let keys = std::mem::take(&mut self.keys);
        let rows = self.builder.finish(slots.device_column(&keys.device), slots.sensor_column(&keys.series));
        rows.ok().map(|rows| KeyedBatch::new(rows, keys))
    }
}
