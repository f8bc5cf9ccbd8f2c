//! The way of nearly every row of a tumbling window: it falls into the newest window of its slot, or is the first row of the next
//! one, or ends the one before.

use arrow::array::Array;
use fieldstream_engine_api::{AHEAD, Keys, SlotDirectory, Space, prefetch};

use super::cells::{FLAGS, START};
use super::clocks::Clock;
use super::options::{Plan, Shape};
use super::store::{EMITTED, OPEN, Place};
use super::{FARTHEST_US, Inputs, Window};

/// A batch whose rows can go the short way: one input of numbers without gaps or NaN, of which count, sum, least and most are kept.
pub(super) struct Plain<'a> {
    values: &'a [f64],
    times: &'a [i64],
    keys: &'a Keys,
    devices: &'a [u32],
    slots: &'a [u32],
    /// Length of a window, microseconds.
    size: i64,
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
        if values.iter().fold(false, |any, value| any | value.is_nan()) {
            return None;
        }
        let slots = if plan.space == Space::Series { &keys.series } else { &keys.device };
        let same = [values.len(), keys.device.len(), slots.len()].iter().all(|len| *len == times.len());
        same.then_some(Self { values, times, keys, devices: &keys.device, slots, size, at, rows_at })
    }
}

impl Window {
    /// Takes rows from number `from` on into their windows as long as they go the short way; gives the first that does not.
    pub(super) fn plain_rows(&mut self, plain: &Plain<'_>, slots: &SlotDirectory, mut from: usize) -> usize {
        loop {
            from = self.inner_rows(plain, from);
            if from == plain.times.len() || !self.turn_over(plain, from, slots) {
                return from;
            }
            from += 1;
        }
    }

    /// Takes rows that fall into the newest window of their slot while nothing is due; gives the first that does not.
    #[inline(never)]
    fn inner_rows(&mut self, plain: &Plain<'_>, from: usize) -> usize {
        let (stride, out_of_orderness) = (self.plan.layout.stride, self.plan.out_of_orderness);
        let (clocks, cells) = (self.clocks.all(), self.windows.slot_cells());
        let rows = plain.times.len();
        let (times, values, devices, own) = (&plain.times[..rows], &plain.values[..rows], &plain.devices[..rows], &plain.slots[..rows]);
        for row in from..rows {
            if row + AHEAD < rows {
                prefetch(clocks, devices[row + AHEAD] as usize);
                let later = own[row + AHEAD] as usize * stride;
                prefetch(cells, later);
                prefetch(cells, later + stride - 1);
            }
            let first = own[row] as usize * stride;
            let (Some(window), Some(clock)) = (cells.get_mut(first..first + stride), clocks.get_mut(devices[row] as usize)) else {
                return row;
            };
            if !take(window, clock, (times[row], values[row]), out_of_orderness, plain) {
                return row;
            }
        }
        rows
    }

    /// The row after which a window of its slot is over, or the first of the next window. False: nothing was done, since more than
    /// that slot's own window and one before it are concerned.
    #[inline(never)]
    fn turn_over(&mut self, plain: &Plain<'_>, number: usize, slots: &SlotDirectory) -> bool {
        let (ts, value, device, slot) = (plain.times[number], plain.values[number], plain.devices[number], plain.slots[number]);
        if !(-FARTHEST_US..=FARTHEST_US).contains(&ts) || self.plan.allowed_lateness > 0 {
            return false;
        }
        if !(self.newest..self.newest + plain.size).contains(&ts) {
            self.newest = ts.div_euclid(plain.size) * plain.size;
        }
        let (now, start) = (ts - self.plan.out_of_orderness, self.newest);
        // A third window is open at the most.
        let Some(before) = self.windows.one_before(slot).filter(|_| self.plan.max_open > 2) else { return false };
        let alone = self.plan.space == Space::Device || slots.is_only_series(device, slot);
        let Some(clock) = self.clocks.get(device).filter(|clock| alone && start + plain.size > clock.now) else { return false };
        let own = Place::Slot(slot);
        let newest = if self.windows.is_open(own) { start >= self.windows.start(own) } else { before.is_none() };
        if !newest || self.windows.emitted(own) || before.is_some_and(|place| self.windows.emitted(place)) {
            return false;
        }
        clock.now = clock.now.max(now);
        if now >= clock.due {
            clock.due = i64::MAX;
            for place in before.into_iter().chain([own]) {
                let end = self.windows.end(place);
                if !self.windows.is_open(place) {
                    continue;
                }
                if end <= now {
                    self.finished.push(&self.plan, &mut self.windows, slot, device, place, plain.keys.position[number]);
                    self.windows.remove(slot, place);
                } else {
                    clock.due = clock.due.min(end);
                }
            }
        }
        if !self.windows.is_open(own) || self.windows.start(own) != start {
            self.windows.open(slot, start, start + plain.size);
        }
        clock.due = clock.due.min(start + plain.size);
        add(self.windows.window(own).cells, value, plain);
        true
    }
}

/// Adds a value to a window if it belongs there and nothing has to be closed before.
#[inline(always)]
fn take(window: &mut [u64], clock: &mut Clock, (ts, value): (i64, f64), out_of_orderness: i64, plain: &Plain<'_>) -> bool {
    // From its start to its end, in one comparison.
    let inside = (ts.wrapping_sub(window[START] as i64) as u64) < plain.size as u64;
    if !inside || window[FLAGS] & (OPEN | EMITTED) != OPEN || ts - out_of_orderness >= clock.due {
        return false;
    }
    clock.now = clock.now.max(ts - out_of_orderness);
    add(window, value, plain);
    true
}

/// Adds a value to a window.
#[inline(always)]
fn add(window: &mut [u64], value: f64, plain: &Plain<'_>) {
    if let Some(rows_at) = plain.rows_at {
        window[rows_at] += 1;
    }
    let [count, sum, min, max] = &mut window[plain.at..plain.at + 4] else { return };
    let (least, most) = (f64::from_bits(*min), f64::from_bits(*max));
    *count += 1;
    *sum = (f64::from_bits(*sum) + value).to_bits();
    // Neither is NaN, so that a comparison is all there is to it.
    *min = if value < least { value } else { least }.to_bits();
    *max = if value > most { value } else { most }.to_bits();
}
