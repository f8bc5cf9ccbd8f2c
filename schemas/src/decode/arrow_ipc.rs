//! Arrow IPC streams with the columns of readings, whatever text, number and time types they use.

use std::borrow::Cow;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};

use super::output::{Output, Payload};
use super::parts::{Checks, Fault, Parts, Role, Time};
use super::rows::Value;
use super::scan::is_json;
use super::time::representable;
use crate::columns::{DEVICE_ID, FLAG, ID, INGEST_TS, QUALITY, SCORE, SENSOR_ID, SENSOR_TYPE, STAMPED, TAGS, TEXT, TS, UNIT, VALUE};
use crate::encode::ipc::from_stream;
use crate::encode::value::{number_at, text_at, time_at};

/// Reads Arrow IPC streams. Columns are found by name, may be missing where a part may be, and others are ignored.
#[derive(Debug)]
pub(super) struct IpcReader {
    pub(super) checks: Checks,
}

impl IpcReader {
    pub(super) fn payload(&self, payload: &Payload<'_>, out: &mut Output<'_>) {
        let before = out.accounts.row;
        let Ok(batches) = from_stream(payload.bytes().to_vec()) else {
            return out.reject(payload, Fault::Syntax("not an Arrow IPC stream"), payload.start, payload.end);
        };
        for batch in &batches {
            for row in 0..batch.num_rows() {
                let outcome = self.parts(batch, row).and_then(|parts| self.checks.append(&parts.plain(), &payload.around, out.columns));
                out.accounts.settle(payload, outcome, payload.start, payload.end);
            }
        }
        if out.accounts.row == before {
            out.reject(payload, Fault::Syntax("the stream holds no reading"), payload.start, payload.end);
        }
    }

    fn parts<'a>(&self, batch: &'a RecordBatch, row: usize) -> Result<Parts<'a>, Fault> {
        let cell = |name: &str| batch.column_by_name(name).filter(|c| c.is_valid(row));
        let flag = |name: &str| cell(name).and_then(|c| c.as_boolean_opt()).map(|c| c.value(row));
        let time = |name: &str| cell(name).map(|c| time_at(c, row).and_then(representable));
        let value = match cell(VALUE) {
            Some(column) => {
                let value = number_at(column, row).ok_or(Fault::Part(Role::Value, "must be a number"))?;
                if !value.is_finite() {
                    return Err(Fault::Part(Role::Value, "must be a finite number"));
                }
                Some(Value::Number(value))
            }
            None if self.checks.numbers_only => None,
            None => text(cell(TEXT), row, Role::Value)?.map(Value::Text).or_else(|| flag(FLAG).map(Value::Flag)),
        };
        let tags = text(cell(TAGS), row, Role::Tags)?;
        if tags.as_deref().is_some_and(|t| !std::str::from_utf8(t).is_ok_and(is_json)) {
            return Err(Fault::Part(Role::Tags, "must be JSON"));
        }
        Ok(Parts {
            id: text(cell(ID), row, Role::Id)?,
            device: text(cell(DEVICE_ID), row, Role::Device)?,
            sensor: text(cell(SENSOR_ID), row, Role::Sensor)?,
            sensor_type: text(cell(SENSOR_TYPE), row, Role::SensorType)?,
            time: time(TS).map(|t| t.map_or(Time::Unreadable, Time::At)),
            value,
            unit: text(cell(UNIT), row, Role::Unit)?,
            quality: self.quality(cell(QUALITY), cell(SCORE), row)?,
            tags,
            ingest: time(INGEST_TS).flatten(),
            stamped: flag(STAMPED).unwrap_or(false),
        })
    }

    fn quality(
        &self,
        class: Option<&ArrayRef>,
        score: Option<&ArrayRef>,
        row: usize,
    ) -> Result<Option<(crate::Quality, Option<f64>)>, Fault> {
        let score = score.and_then(|c| number_at(c, row)).filter(|s| s.is_finite());
        let Some(column) = class else { return Ok(score.map(|s| self.checks.quality_score(s))) };
        match text_at(column, row) {
            Some(word) => Ok(Some((self.checks.quality_word(word.as_bytes())?, score))),
            None => {
                let bare = number_at(column, row).filter(|s| s.is_finite());
                bare.map(|s| Some(self.checks.quality_score(s))).ok_or(Fault::Part(Role::Quality, "must be a word or a number"))
            }
        }
    }
}

fn text(column: Option<&ArrayRef>, row: usize, role: Role) -> Result<Option<Cow<'_, [u8]>>, Fault> {
    let Some(column) = column else { return Ok(None) };
    let text = text_at(column, row).ok_or(Fault::Part(role, "must be a string"))?;
    Ok(Some(Cow::Borrowed(text.as_bytes())))
}
