//! `gap`: a device or series that has fallen silent. Decided at ticks, and at the next row where no tick came between.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use fieldstream_engine_api::{
    ConfigError, ConfigErrors, Emitter, KeyedBatch, KeyedState, Operator, Output, Position, SlotDirectory, Space, StateError, Tick,
    TickTime,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::alerts::{Alerts, Event};
use super::verdict::{Level, Verdict};
use crate::options::TimeSpan;
use crate::state::{Dense, Entry, numbers};

/// Options of `gap`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GapOptions {
    /// Silence longer than this is told of. Ticks come at the pipeline's `idle_after`, so it cannot be noticed sooner than that.
    pub after: TimeSpan,
}

impl GapOptions {
    /// Its length in microseconds.
    pub(super) fn check(&self) -> Result<i64, ConfigErrors> {
        if self.after.us() == 0 {
            return Err(vec![ConfigError::new("/after", "must be longer than nothing")]);
        }
        Ok(self.after.us())
    }
}

/// Highest event time seen, and whether its silence has been told of.
#[derive(Clone, Copy, Debug)]
struct Heard {
    last: i64,
    raised: bool,
}

const NEVER: i64 = i64::MIN;

impl Entry for Heard {
    const BLANK: Self = Self { last: NEVER, raised: false };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.last == NEVER
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        let raised: BooleanArray = entries.iter().map(|e| Some(e.raised)).collect();
        vec![("last", Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.last)))), ("raised", Arc::new(raised))]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let last = numbers::<Int64Type>(rows, "last")?;
        let raised = rows.column_by_name("raised").and_then(|c| c.as_boolean_opt());
        let raised = raised.ok_or_else(|| StateError::Columns("`raised` is missing or of another type".into()))?;
        Ok(last.iter().enumerate().map(|(row, last)| Self { last: *last, raised: raised.value(row) }).collect())
    }
}

/// The operator.
pub(super) struct Gap {
    pub(super) after: i64,
    pub(super) space: Space,
    pub(super) ts: usize,
    /// Tell once per gap, without an end.
    pub(super) rows_only: bool,
    pub(super) alerts: Alerts,
    pub(super) outputs: Vec<Output>,
    state: Dense<Heard>,
}

/// Who, where, and by which row.
#[derive(Clone, Copy)]
struct At<'a> {
    slot: u32,
    device: u32,
    position: Position,
    rows: Option<(&'a RecordBatch, usize)>,
}

impl Gap {
    pub(super) fn new(after: i64, space: Space, ts: usize, rows_only: bool, alerts: Alerts, outputs: Vec<Output>) -> Self {
        Self { after, space, ts, rows_only, alerts, outputs, state: Dense::new(space) }
    }

    fn tell(&mut self, state: &str, at: At<'_>, (began, ts): (i64, i64), index: u32, slots: &SlotDirectory) {
        let silent = ts.saturating_sub(began) as f64 / 1e6;
        let verdict = Verdict { level: Level::Bad, limit: self.after as f64 / 1e6, deviation: silent, confidence: 1.0, ..Verdict::NORMAL };
        let At { slot, device, position, rows } = at;
        let raised_ts = (!self.rows_only).then_some(began);
        let state = if self.rows_only { "row" } else { state };
        self.alerts.push(&Event { state, ts, raised_ts, value: f64::NAN, verdict, rows, slot, device, position, index }, slots);
    }

    fn row(&mut self, at: At<'_>, ts: i64, slots: &SlotDirectory) {
        let before = *self.state.at(at.slot);
        *self.state.at(at.slot) = Heard { last: before.last.max(ts), raised: false };
        let silent = before.last != NEVER && ts.saturating_sub(before.last) > self.after;
        if silent && !before.raised {
            self.tell("raised", at, (before.last, ts), 0, slots);
        }
        if (silent || before.raised) && !self.rows_only {
            self.tell("cleared", at, (before.last, ts), 1, slots);
        }
    }
}

impl Operator for Gap {
    fn space(&self) -> Space {
        self.space
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) {
        out.absorb(batch.len());
        let Some(times) = batch.rows.column(self.ts).as_primitive_opt::<TimestampMicrosecondType>() else { return };
        let own = if self.space == Space::Series { &batch.keys.series } else { &batch.keys.device };
        for (row, ts) in times.values().iter().enumerate() {
            if times.is_valid(row) {
                let at = At {
                    slot: own[row],
                    device: batch.keys.device[row],
                    position: batch.keys.position[row],
                    rows: Some((&batch.rows, row)),
                };
                self.row(at, *ts, slots);
            }
        }
        if let Some(alerts) = self.alerts.take(slots) {
            out.emit(0, alerts);
        }
    }

    fn on_tick(&mut self, tick: &Tick, devices: &[u32], slots: &SlotDirectory, out: &mut Emitter) {
        // The end of a file is no silence.
        let TickTime::Append(now) = tick.time else { return };
        for device in devices {
            let mut own: Vec<u32> = if self.space == Space::Series { slots.series_of(*device).collect() } else { vec![*device] };
            own.sort_by_key(|slot| slots.sensor_name(*slot));
            for slot in own {
                let heard = *self.state.at(slot);
                if heard.last != NEVER && !heard.raised && now.saturating_sub(heard.last) > self.after {
                    self.state.at(slot).raised = true;
                    let at = At { slot, device: *device, position: tick.position, rows: None };
                    self.tell("raised", at, (heard.last, now), 0, slots);
                }
            }
        }
        if let Some(alerts) = self.alerts.take(slots) {
            out.emit(0, alerts);
        }
    }

    fn pending(&self, device: u32, slots: &SlotDirectory) -> bool {
        let waits = |slot: u32| {
            let heard = self.state.get(slot);
            heard.last != NEVER && !heard.raised
        };
        if self.space == Space::Series { slots.series_of(device).any(waits) } else { waits(device) }
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.state]
    }
}
