//! The way of nearly every row of a tumbling window: it falls into the newest window of its slot, and nothing is due.

use arrow::array::Array;
use fieldstream_engine_api::{AHEAD, Keys, Space, prefetch};

use super::cells::{END, FLAGS, START};
use super::clocks::Clock;
use super::options::{Plan, Shape};
use super::store::{EMITTED, OPEN};
use super::{Inputs, Window};

/// A batch whose rows can go the short way: one input of numbers without gaps, of which count, sum, least and most are kept.
pub(super) struct Plain<'a> {
    values: &'a [f64],
    times: &'a [i64],
    devices: &'a [u32],
    slots: &'a [u32],
    /// The input's first cell.
    at: usize,
    /// The cell that counts rows, where somebody asks.
    rows_at: Option<usize>,
}

impl<'a> Plain<'a> {
    /// `None` when rows have to be looked at by themselves. `times` has no nulls.
    pub(super) fn of(plan: &Plan, inputs: &'a Inputs, times: &'a [i64], keys: &'a Keys) -> Option<Self> {
        let Shape::Aligned { size, every } = plan.shape else { return None };
        let simple = |cells: &super::cells::InputCells| cells.moments.is_none() && cells.ends.is_none() && cells.sketch.is_none();
        let (mut at, mut rows_at) = (None, None);
        for (cells, input) in plan.layout.inputs.iter().zip(inputs) {
            match input {
                None if rows_at.is_none() => rows_at = Some(cells.at),
                Some(values) if at.is_none() && simple(cells) && values.nulls().is_none() => at = Some((cells.at, &values.values()[..])),
                _ => return None,
            }
        }
        let (at, values) = at.filter(|_| size == every)?;
        let slots = if plan.space == Space::Series { &keys.series } else { &keys.device };
        let same = [values.len(), keys.device.len(), slots.len()].iter().all(|len| *len == times.len());
        same.then_some(Self { values, times, devices: &keys.device, slots, at, rows_at })
    }
}

impl Window {
    /// Takes rows from number `from` on into their windows as long as they go the short way; gives the first that does not.
    #[inline(never)]
    pub(super) fn plain_rows(&mut self, plain: &Plain<'_>, from: usize) -> usize {
        let (stride, out_of_orderness) = (self.plan.layout.stride, self.plan.out_of_orderness);
        let (clocks, cells) = (self.clocks.all(), self.windows.slot_cells());
        let rows = plain.times.iter().zip(plain.values).zip(plain.devices).zip(plain.slots).enumerate().skip(from);
        for (number, (((ts, value), device), slot)) in rows {
            if let (Some(device), Some(slot)) = (plain.devices.get(number + AHEAD), plain.slots.get(number + AHEAD)) {
                prefetch(clocks, *device as usize);
                prefetch(cells, *slot as usize * stride);
            }
            let first = *slot as usize * stride;
            let (Some(window), Some(clock)) = (cells.get_mut(first..first + stride), clocks.get_mut(*device as usize)) else {
                return number;
            };
            if !take(window, clock, (*ts, *value), out_of_orderness, plain) {
                return number;
            }
        }
        plain.times.len()
    }
}

/// Adds a value to a window if it belongs there and nothing has to be closed before.
#[inline(always)]
fn take(window: &mut [u64], clock: &mut Clock, (ts, value): (i64, f64), out_of_orderness: i64, plain: &Plain<'_>) -> bool {
    let inside = window[FLAGS] & (OPEN | EMITTED) == OPEN && window[START] as i64 <= ts && ts < window[END] as i64;
    if !inside || value.is_nan() || ts - out_of_orderness >= clock.due {
        return false;
    }
    clock.now = clock.now.max(ts - out_of_orderness);
    if let Some(rows_at) = plain.rows_at {
        window[rows_at] += 1;
    }
    let [count, sum, min, max] = &mut window[plain.at..plain.at + 4] else { return false };
    *count += 1;
    *sum = (f64::from_bits(*sum) + value).to_bits();
    *min = f64::from_bits(*min).min(value).to_bits();
    *max = f64::from_bits(*max).max(value).to_bits();
    true
}
