//! What each operator would be as a bare loop for one purpose: the same state, the same arithmetic, the same columns, slots as
//! indices, the next slots' state fetched ahead; no expressions, no nulls, no account, no ports.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use fieldstream_engine_api::{AHEAD, KeyedBatch};

/// A bare loop; gives how many rows it would tell of.
pub(crate) trait Bare {
    fn batch(&mut self, batch: &KeyedBatch) -> usize;
}

fn values(rows: &RecordBatch) -> &[f64] {
    rows.column(5).as_primitive::<Float64Type>().values()
}

fn times(rows: &RecordBatch) -> &[i64] {
    rows.column(3).as_primitive::<TimestampMicrosecondType>().values()
}

/// Fetches what row `row + AHEAD` will need.
#[inline(always)]
fn ahead<T>(state: &[T], slots: &[u32], row: usize) {
    if let Some(slot) = slots.get(row + AHEAD) {
        fieldstream_engine_api::prefetch(state, *slot as usize);
    }
}

/// An episode as the detectors keep it: phase, two times, a number.
#[derive(Clone, Copy, Default)]
pub(crate) struct Episode {
    phase: u8,
    since: i64,
    began: i64,
    told: f64,
}

/// Begins or ends an episode; true when there is something to tell.
#[inline]
fn episode(state: &mut Episode, bad: bool, ts: i64, deviation: f64) -> bool {
    match (state.phase, bad) {
        (0, false) => false,
        (0, true) => {
            *state = Episode { phase: 1, since: ts, began: ts, told: deviation.abs() };
            true
        }
        (_, true) => {
            let worse = deviation.abs() >= state.told * 2.0;
            if worse {
                state.told = deviation.abs();
            }
            worse
        }
        (_, false) => {
            let told = state.began <= state.since;
            *state = Episode::default();
            told
        }
    }
}

pub(crate) struct Threshold {
    pub(crate) above: f64,
    pub(crate) episodes: Vec<Episode>,
}

impl Bare for Threshold {
    fn batch(&mut self, batch: &KeyedBatch) -> usize {
        let (values, times, slots) = (values(&batch.rows), times(&batch.rows), &batch.keys.series[..]);
        let mut told = 0;
        for row in 0..slots.len() {
            ahead(&self.episodes, slots, row);
            let over = values[row] - self.above;
            told += usize::from(episode(&mut self.episodes[slots[row] as usize], over > 0.0, times[row], over));
        }
        told
    }
}

/// A threshold that tells of rows, not episodes: it has no state at all.
pub(crate) struct ThresholdRows {
    pub(crate) above: f64,
}

impl Bare for ThresholdRows {
    fn batch(&mut self, batch: &KeyedBatch) -> usize {
        values(&batch.rows).iter().filter(|value| **value > self.above).count()
    }
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Moments {
    mean: f64,
    variance: f64,
    count: u32,
}

pub(crate) struct Ewma {
    pub(crate) moments: Vec<Moments>,
    /// Empty where rows are told of.
    pub(crate) episodes: Vec<Episode>,
}

impl Bare for Ewma {
    fn batch(&mut self, batch: &KeyedBatch) -> usize {
        let (values, times, slots) = (values(&batch.rows), times(&batch.rows), &batch.keys.series[..]);
        let mut told = 0;
        for row in 0..slots.len() {
            ahead(&self.moments, slots, row);
            ahead(&self.episodes, slots, row);
            let state = &mut self.moments[slots[row] as usize];
            let before = *state;
            let delta = values[row] - before.mean;
            *state = if before.count == 0 {
                Moments { mean: values[row], variance: 0.0, count: 1 }
            } else {
                Moments {
                    mean: before.mean + 0.05 * delta,
                    variance: 0.95 * (before.variance + 0.05 * delta * delta),
                    count: before.count + 1,
                }
            };
            let score = if before.count >= 30 && before.variance > 1e-9 { delta / before.variance.sqrt() } else { 0.0 };
            let bad = score.abs() > 4.0;
            told += usize::from(match self.episodes.get_mut(slots[row] as usize) {
                Some(state) => episode(state, bad, times[row], score),
                None => bad,
            });
        }
        told
    }
}

/// A time and a value.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    ts: i64,
    value: f64,
}

impl Point {
    pub(crate) const NONE: Self = Self { ts: i64::MIN, value: 0.0 };
}

pub(crate) struct Rate {
    pub(crate) max_per_second: f64,
    pub(crate) newest: Vec<Point>,
    pub(crate) episodes: Vec<Episode>,
}

impl Bare for Rate {
    fn batch(&mut self, batch: &KeyedBatch) -> usize {
        let (values, times, slots) = (values(&batch.rows), times(&batch.rows), &batch.keys.series[..]);
        let mut told = 0;
        for row in 0..slots.len() {
            ahead(&self.newest, slots, row);
            ahead(&self.episodes, slots, row);
            let newest = &mut self.newest[slots[row] as usize];
            let before = *newest;
            if times[row] <= before.ts {
                continue;
            }
            *newest = Point { ts: times[row], value: values[row] };
            let rate = (values[row] - before.value) / (times[row].wrapping_sub(before.ts) as f64 / 1e6);
            let bad = before.ts != i64::MIN && rate.abs() > self.max_per_second;
            told += usize::from(match self.episodes.get_mut(slots[row] as usize) {
                Some(state) => episode(state, bad, times[row], rate),
                None => bad,
            });
        }
        told
    }
}

pub(crate) struct Flatline {
    pub(crate) duration_us: i64,
    pub(crate) still: Vec<Point>,
    pub(crate) episodes: Vec<Episode>,
}

impl Bare for Flatline {
    fn batch(&mut self, batch: &KeyedBatch) -> usize {
        let (values, times, slots) = (values(&batch.rows), times(&batch.rows), &batch.keys.series[..]);
        let mut told = 0;
        for row in 0..slots.len() {
            ahead(&self.still, slots, row);
            ahead(&self.episodes, slots, row);
            let still = &mut self.still[slots[row] as usize];
            let moved = still.ts == i64::MIN || (values[row] - still.value).abs() > 0.0;
            if moved {
                *still = Point { ts: times[row], value: values[row] };
            }
            let stood = times[row] - still.ts;
            let bad = !moved && stood >= self.duration_us;
            told += usize::from(match self.episodes.get_mut(slots[row] as usize) {
                Some(state) => episode(state, bad, times[row], stood as f64 / 1e6),
                None => bad,
            });
        }
        told
    }
}

/// A device's clock: now, and when something is due.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    now: i64,
    due: i64,
}

impl Clock {
    pub(crate) const NONE: Self = Self { now: i64::MIN, due: i64::MAX };
}

/// Seven cells, as the window operator keeps them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cells {
    start: i64,
    end: i64,
    open: u64,
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

/// What leaves.
#[derive(Default)]
pub(crate) struct Closed {
    slot: Vec<u32>,
    start: Vec<i64>,
    end: Vec<i64>,
    count: Vec<i64>,
    min: Vec<f64>,
    max: Vec<f64>,
    mean: Vec<f64>,
}

/// Tumbling windows with count, min, max and mean, one open and one waiting for its end.
pub(crate) struct Tumbling {
    pub(crate) size_us: i64,
    pub(crate) out_of_orderness_us: i64,
    pub(crate) clocks: Vec<Clock>,
    pub(crate) windows: Vec<Cells>,
    /// Windows that are no longer the newest and wait for the clock.
    pub(crate) waiting: Vec<Option<Box<Cells>>>,
    pub(crate) closed: Closed,
}

impl Tumbling {
    #[cold]
    #[inline(never)]
    fn close(&mut self, slot: usize, now: i64) {
        let mut due = i64::MAX;
        for window in [self.waiting[slot].as_deref().copied(), Some(self.windows[slot])].into_iter().flatten() {
            if window.open == 0 || window.end > now {
                due = if window.open == 1 { due.min(window.end) } else { due };
                continue;
            }
            self.closed.slot.push(slot as u32);
            self.closed.start.push(window.start);
            self.closed.end.push(window.end);
            self.closed.count.push(window.count as i64);
            self.closed.min.push(window.min);
            self.closed.max.push(window.max);
            self.closed.mean.push(window.sum / window.count as f64);
        }
        if self.waiting[slot].as_ref().is_some_and(|w| w.end <= now) {
            self.waiting[slot] = None;
        }
        if self.windows[slot].end <= now {
            self.windows[slot].open = 0;
        }
        self.clocks[slot].due = due;
    }

    #[cold]
    #[inline(never)]
    fn open(&mut self, slot: usize, start: i64) {
        if self.windows[slot].open == 1 {
            self.waiting[slot] = Some(Box::new(self.windows[slot]));
        }
        let end = start + self.size_us;
        self.windows[slot] = Cells { start, end, open: 1, count: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };
        self.clocks[slot].due = self.clocks[slot].due.min(end);
    }
}

impl Bare for Tumbling {
    fn batch(&mut self, batch: &KeyedBatch) -> usize {
        let (values, times, slots) = (values(&batch.rows), times(&batch.rows), &batch.keys.series[..]);
        for row in 0..slots.len() {
            ahead(&self.clocks, slots, row);
            ahead(&self.windows, slots, row);
            let (slot, ts, value) = (slots[row] as usize, times[row], values[row]);
            let (clock, now) = (&mut self.clocks[slot], ts - self.out_of_orderness_us);
            if now > clock.now {
                clock.now = now;
                if now >= clock.due {
                    self.close(slot, now);
                }
            }
            let start = ts - ts.rem_euclid(self.size_us);
            if self.windows[slot].start != start || self.windows[slot].open == 0 {
                self.open(slot, start);
            }
            let window = &mut self.windows[slot];
            window.count += 1;
            window.sum += value;
            window.min = window.min.min(value);
            window.max = window.max.max(value);
        }
        let told = std::hint::black_box(&self.closed).slot.len();
        self.closed = Closed::default();
        told
    }
}
