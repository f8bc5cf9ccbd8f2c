//! One alarm per episode: raised after an on-delay, updated when it gets much worse, cleared after an off-delay (ISA-18.2).

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Float64Type, Int64Type, UInt32Type};
use fieldstream_engine_api::StateError;

use super::verdict::{Level, Verdict};
use crate::state::{Entry, numbers};

/// Delays in microseconds of event time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delays {
    /// How long it must be wrong before the alarm.
    pub(super) on: i64,
    /// How long it must be right before the alarm ends.
    pub(super) off: i64,
}

/// How far an episode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Quiet,
    /// Wrong since `since`, not told yet.
    Pending,
    /// Told.
    Raised,
    /// Right again since `since`.
    Clearing,
}

/// The episode of one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Episode {
    pub(super) phase: Phase,
    /// Event time at which the phase began that a delay measures.
    since: i64,
    /// Event time at which the episode began.
    began: i64,
    /// Deviation last told of.
    told: f64,
}

/// What to tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told {
    /// `raised`, `updated` or `cleared`.
    pub(super) state: &'static str,
    /// Event time at which the episode began.
    pub(super) raised_ts: i64,
}

/// An episode is told of again when the deviation is so many times what was last told.
const WORSE: f64 = 2.0;

impl Episode {
    /// Takes in a judgement made at event time `ts`.
    pub(super) fn step(&mut self, delays: Delays, verdict: &Verdict, ts: i64) -> Option<Told> {
        let waited = |since: i64, delay: i64| ts.saturating_sub(since) >= delay;
        match (self.phase, verdict.level) {
            (Phase::Quiet, Level::Bad) => {
                (self.phase, self.since, self.began) = (Phase::Pending, ts, ts);
                self.step(delays, verdict, ts)
            }
            (Phase::Pending, Level::Bad) if waited(self.since, delays.on) => {
                (self.phase, self.told) = (Phase::Raised, verdict.deviation.abs());
                Some(Told { state: "raised", raised_ts: self.began })
            }
            (Phase::Quiet, _) | (Phase::Pending, Level::Bad) | (Phase::Raised, Level::Between) => None,
            (Phase::Pending, _) => {
                *self = Self::BLANK;
                None
            }
            (Phase::Raised, Level::Bad) => {
                let worse = verdict.deviation.abs() >= self.told * WORSE;
                if worse {
                    self.told = verdict.deviation.abs();
                }
                worse.then_some(Told { state: "updated", raised_ts: self.began })
            }
            (Phase::Raised, Level::Normal) => {
                (self.phase, self.since) = (Phase::Clearing, ts);
                self.step(delays, verdict, ts)
            }
            (Phase::Clearing, Level::Bad | Level::Between) => {
                self.phase = Phase::Raised;
                None
            }
            (Phase::Clearing, Level::Normal) if !waited(self.since, delays.off) => None,
            (Phase::Clearing, Level::Normal) | (Phase::Raised | Phase::Clearing, Level::Shifted) => {
                let raised_ts = self.began;
                *self = Self::BLANK;
                Some(Told { state: "cleared", raised_ts })
            }
        }
    }
}

impl Entry for Episode {
    const BLANK: Self = Self { phase: Phase::Quiet, since: 0, began: 0, told: 0.0 };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.phase == Phase::Quiet
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        vec![
            ("phase", Arc::new(UInt32Array::from_iter_values(entries.iter().map(|e| e.phase as u32)))),
            ("since", Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.since)))),
            ("began", Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.began)))),
            ("told", Arc::new(Float64Array::from_iter_values(entries.iter().map(|e| e.told)))),
        ]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let (phase, told) = (numbers::<UInt32Type>(rows, "phase")?, numbers::<Float64Type>(rows, "told")?);
        let (since, began) = (numbers::<Int64Type>(rows, "since")?, numbers::<Int64Type>(rows, "began")?);
        let entry = |i: usize| {
            let phase = match phase[i] {
                1 => Phase::Pending,
                2 => Phase::Raised,
                3 => Phase::Clearing,
                other => return Err(StateError::Columns(format!("there is no phase {other}"))),
            };
            Ok(Self { phase, since: since[i], began: began[i], told: told[i] })
        };
        (0..phase.len()).map(entry).collect()
    }
}
