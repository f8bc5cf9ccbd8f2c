//! `window`: aggregates over event time, per series or per device.
//!
//! Time is each device's own: its clock is the highest event time this operator has seen from it, minus `out_of_orderness`. A row
//! that moves the clock closes every window of the device that ends at or before it, of all its series, in order of start and
//! sensor; whether a row is late is decided row by row. A window is emitted once. It is kept for `allowed_lateness`; a row that comes
//! for it then is added and the corrected window leaves by `revised`; a row that comes after that leaves by `late`. A late row
//! whose window was never opened opens it, and the window leaves as any other does. Sessions have no allowed lateness.
//!
//! `ts` of a result is its `window_end`, so that operators after it have an event time. Null and NaN are no values: aggregates
//! skip them, `count` of a column does not count them. Infinite values take part. Sums run in row order.

mod cells;
mod clocks;
mod options;
mod output;
mod plain;
mod store;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{Array, AsArray, Float64Array};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use fieldstream_engine_api::{
    AHEAD, BuildContext, ConfigErrors, Edge, Emitter, KeyedBatch, KeyedState, Operator, OperatorKind, Output, Position, SlotDirectory,
    Space, Tick, TickTime,
};
use serde_json::Value;

pub use options::{WINDOW_END, WINDOW_START, WindowOptions};

use self::cells::Layout;
use self::clocks::Clocks;
use self::options::{Plan, Shape};
use self::output::Finished;
use self::plain::Plain;
use self::store::{Place, Windows};
use crate::expr::CODE as EXPRESSION;
use crate::options::{parse, schema};

/// The catalogue line.
pub const KIND: OperatorKind = OperatorKind {
    name: "window",
    about: "Aggregates over tumbling, hopping or session windows of event time, per series or per device",
    rejects: true,
    schema: schema::<WindowOptions>,
    build,
};

/// Code of rows that need more open windows than allowed.
pub const WINDOW_LIMIT: &str = "window_limit";
/// Code of rows whose event time is too far from the epoch to be put into a window.
pub const WINDOW_TIME: &str = "window_time";

/// Event times are accepted within about 36 000 years around the epoch, so that adding sizes cannot overflow.
const FARTHEST_US: i64 = 1 << 60;

/// The operator.
pub struct Window {
    plan: Plan,
    outputs: Vec<Output>,
    clocks: Clocks,
    windows: Windows,
    finished: Finished,
    revised: Finished,
    /// Windows being closed: start, sensor, slot, place. Kept for its memory.
    closing: Vec<(i64, u32, Place)>,
    /// Slots of a device. Kept for its memory.
    own: Vec<u32>,
    /// Start of the window the last row fell into: the next row most likely falls into the same.
    newest: i64,
}

/// Builds `window`.
///
/// # Errors
/// Everything wrong with the options.
pub fn build(options: &Value, input: &Edge, context: &BuildContext) -> Result<Box<dyn Operator>, ConfigErrors> {
    let plan = Plan::new(&parse::<WindowOptions>(options)?, input, context)?;
    let edge = Edge { schema: Arc::clone(&plan.schema), key: plan.space };
    let mut outputs = vec![Output { name: "".into(), edge: edge.clone() }];
    if !matches!(plan.shape, Shape::Session { .. }) {
        outputs.push(Output { name: "revised".into(), edge });
    }
    outputs.push(Output { name: "late".into(), edge: input.clone() });
    let windows = Windows::new(Arc::clone(&plan.layout), plan.space, plan.meaning());
    Ok(Box::new(Window {
        plan,
        outputs,
        clocks: Clocks::default(),
        windows,
        finished: Finished::default(),
        revised: Finished::default(),
        closing: Vec::new(),
        own: Vec::new(),
        newest: 0,
    }))
}

/// What became of a row.
enum Fate {
    Absorbed,
    Late,
    NoRoom,
}

/// One row, resolved.
#[derive(Clone, Copy)]
struct Row {
    number: usize,
    ts: i64,
    device: u32,
    slot: u32,
    position: Position,
}

/// The batch's evaluated inputs; `None` counts rows.
type Inputs = Vec<Option<Float64Array>>;

/// Adds row `row` to a window.
#[inline(always)]
fn add(layout: &Layout, inputs: &Inputs, window: &mut cells::Window<'_>, row: &Row) {
    for (cells, input) in layout.inputs.iter().zip(inputs) {
        match input {
            None => window.cells[cells.at] += 1,
            Some(values) => {
                let value = values.values()[row.number];
                if !value.is_nan() && values.nulls().is_none_or(|nulls| nulls.is_valid(row.number)) {
                    cells::add(cells, window.cells, window.sketches, row.ts, value);
                }
            }
        }
    }
}

impl Window {
    #[inline(always)]
    fn row(&mut self, row: &Row, inputs: &Inputs, slots: &SlotDirectory) -> Fate {
        let now = row.ts - self.plan.out_of_orderness;
        let Some(clock) = self.clocks.get(row.device) else { return Fate::NoRoom };
        if now > clock.now {
            clock.now = now;
            if now >= clock.due {
                self.close_until(row.device, row.position, slots, |end| end <= now);
            }
        }
        match self.plan.shape {
            Shape::Aligned { size, every } => {
                if !(self.newest..self.newest + every).contains(&row.ts) {
                    self.newest = row.ts.div_euclid(every) * every;
                }
                let newest = self.newest;
                if size == every
                    && let Some(mut window) = self.windows.current(row.slot, newest)
                {
                    add(&self.plan.layout, inputs, &mut window, row);
                    return Fate::Absorbed;
                }
                self.aligned(row, inputs, newest, size, every)
            }
            Shape::Session { gap } => self.session(row, inputs, gap),
        }
    }

    fn aligned(&mut self, row: &Row, inputs: &Inputs, newest: i64, size: i64, every: i64) -> Fate {
        let Some(clock) = self.clocks.get(row.device).copied() else { return Fate::NoRoom };
        let lateness = self.plan.allowed_lateness;
        if size == every && newest + size > clock.now {
            return self.tumbling(row, inputs, newest, newest + size);
        }
        let starts = std::iter::successors(Some(newest), |start| Some(start - every)).take_while(|start| start + size > row.ts);
        let taken: Vec<(i64, Option<Place>)> = starts
            .filter(|start| start + size > clock.now || start + size + lateness > clock.now)
            .map(|start| (start, self.windows.find(row.slot, start)))
            .collect();
        if taken.is_empty() {
            return Fate::Late;
        }
        let new = taken.iter().filter(|(_, place)| place.is_none()).count();
        if new > 0 && self.windows.places(row.slot).count() + new > self.plan.max_open {
            return Fate::NoRoom;
        }
        for (start, _) in taken.into_iter().rev() {
            let end = start + size;
            // Opening one window may move another.
            let place = self.windows.find(row.slot, start).unwrap_or_else(|| self.windows.open(row.slot, start, end));
            add(&self.plan.layout, inputs, &mut self.windows.window(place), row);
            if end > clock.now {
                self.due(row.device, end);
            } else if self.windows.emitted(place) {
                self.revised.push(&self.plan, &mut self.windows, row.slot, row.device, place, row.position);
            } else {
                self.windows.mark_emitted(place);
                self.finished.push(&self.plan, &mut self.windows, row.slot, row.device, place, row.position);
                self.due(row.device, end + lateness);
            }
        }
        Fate::Absorbed
    }

    /// A row in time for its one window, which is not the slot's newest, or not there yet.
    fn tumbling(&mut self, row: &Row, inputs: &Inputs, start: i64, end: i64) -> Fate {
        let place = match self.windows.find(row.slot, start) {
            Some(place) => place,
            None if self.windows.places(row.slot).count() >= self.plan.max_open => return Fate::NoRoom,
            None => self.windows.open(row.slot, start, end),
        };
        add(&self.plan.layout, inputs, &mut self.windows.window(place), row);
        self.due(row.device, end);
        Fate::Absorbed
    }

    fn session(&mut self, row: &Row, inputs: &Inputs, gap: i64) -> Fate {
        let (start, end) = (row.ts, row.ts + gap);
        let mut near: Vec<i64> = self
            .windows
            .places(row.slot)
            .filter(|place| start < self.windows.end(*place) && self.windows.start(*place) < end)
            .map(|place| self.windows.start(place))
            .collect();
        near.sort_unstable();
        let Some(first) = near.first().copied() else {
            if self.clocks.get(row.device).is_none_or(|clock| end <= clock.now) {
                return Fate::Late;
            }
            if self.windows.places(row.slot).count() >= self.plan.max_open {
                return Fate::NoRoom;
            }
            let place = self.windows.open(row.slot, start, end);
            add(&self.plan.layout, inputs, &mut self.windows.window(place), row);
            self.due(row.device, end);
            return Fate::Absorbed;
        };
        let Some(into) = self.windows.find(row.slot, first) else { return Fate::NoRoom };
        let mut last = self.windows.end(into).max(end);
        for other in near.into_iter().skip(1) {
            if let Some(from) = self.windows.find(row.slot, other) {
                last = last.max(self.windows.end(from));
                self.windows.join(into, from);
                self.windows.drop_where(row.slot, |windows, place| place != into && windows.start(place) == other);
            }
        }
        add(&self.plan.layout, inputs, &mut self.windows.window(into), row);
        self.windows.set_start(into, first.min(start));
        self.windows.set_end(into, last);
        Fate::Absorbed
    }

    /// Remembers that something of `device` must happen when its clock reaches `at`.
    fn due(&mut self, device: u32, at: i64) {
        if let Some(clock) = self.clocks.get(device) {
            clock.due = clock.due.min(at);
        }
    }

    /// Emits the open windows of `device` whose end `ends` accepts, in order of start and sensor, forgets those that no row can
    /// reach any more, and finds out when the device is due again.
    #[inline(never)]
    fn close_until(&mut self, device: u32, position: Position, slots: &SlotDirectory, ends: impl Fn(i64) -> bool) {
        let (mut own, mut closing) = (std::mem::take(&mut self.own), std::mem::take(&mut self.closing));
        own.clear();
        closing.clear();
        if self.plan.space == Space::Series {
            own.extend(slots.series_of(device).filter(|slot| (*slot as usize) < self.windows.len()));
        } else if (device as usize) < self.windows.len() {
            own.push(device);
        }
        // Where no row may come late, a window goes when it is emitted, and what stays is due at its end.
        let keeps = self.plan.allowed_lateness > 0 && !matches!(self.plan.shape, Shape::Session { .. });
        let mut due = i64::MAX;
        for slot in &own {
            for place in self.windows.places(*slot) {
                let end = self.windows.end(place);
                if !self.windows.emitted(place) && ends(end) {
                    closing.push((self.windows.start(place), *slot, place));
                } else {
                    due = due.min(end);
                }
            }
        }
        if closing.len() > 1 {
            // Windows of one start are of several sensors only where series have windows of their own.
            closing.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| slots.sensor_name(a.1).cmp(slots.sensor_name(b.1))));
        }
        let mut highest = i64::MIN;
        for (_, slot, place) in &closing {
            highest = highest.max(self.windows.end(*place));
            self.finished.push(&self.plan, &mut self.windows, *slot, device, *place, position);
            if keeps {
                self.windows.mark_emitted(*place);
            } else {
                self.windows.remove(*slot, *place);
            }
        }
        if let Some(clock) = self.clocks.get(device) {
            clock.now = clock.now.max(highest);
            clock.due = due;
            let now = clock.now;
            if keeps {
                self.forget(device, &own, now);
            }
        }
        (self.own, self.closing) = (own, closing);
    }

    /// Drops windows that are past their lateness, and sets the device's due time.
    fn forget(&mut self, device: u32, own: &[u32], now: i64) {
        let lateness = self.plan.allowed_lateness;
        let mut due = i64::MAX;
        for slot in own {
            self.windows.drop_where(*slot, |windows, place| windows.emitted(place) && windows.end(place) + lateness <= now);
            for place in self.windows.places(*slot) {
                let keep = if self.windows.emitted(place) { lateness } else { 0 };
                due = due.min(self.windows.end(place) + keep);
            }
        }
        if let Some(clock) = self.clocks.get(device) {
            clock.due = due;
        }
    }

    fn send(&mut self, slots: &SlotDirectory, out: &mut Emitter) {
        if let Some(rows) = self.finished.take(&self.plan, slots) {
            out.emit(0, rows);
        }
        if let Some(rows) = self.revised.take(&self.plan, slots) {
            out.emit(1, rows);
        }
    }

    /// Evaluates the inputs; rows for which that fails are rejected and named in the mask.
    fn inputs(&self, batch: &KeyedBatch, out: &mut Emitter) -> (Inputs, Vec<bool>) {
        let mut refused = Vec::new();
        let mut inputs = Inputs::new();
        for expr in &self.plan.inputs {
            let Some(expr) = expr else {
                inputs.push(None);
                continue;
            };
            let (values, failures) = expr.eval_rows(&batch.rows);
            if refused.is_empty() && !failures.is_empty() {
                refused.resize(batch.len(), false);
            }
            for failure in failures {
                let known = std::mem::replace(&mut refused[failure.row as usize], true);
                if !known {
                    out.reject(batch, vec![failure.row], EXPRESSION, failure.message);
                }
            }
            inputs.push(values.as_primitive_opt::<Float64Type>().cloned());
        }
        (inputs, refused)
    }
}

impl Operator for Window {
    fn space(&self) -> Space {
        self.plan.space
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) {
        let times = batch.rows.column(self.plan.ts).as_primitive::<TimestampMicrosecondType>();
        let (inputs, refused) = self.inputs(batch, out);
        let own = if self.plan.space == Space::Series { &batch.keys.series } else { &batch.keys.device };
        let (mut absorbed, mut late, mut no_room, mut far) = (0, Vec::new(), Vec::new(), Vec::new());
        let plain =
            if refused.is_empty() && times.nulls().is_none() { Plain::of(&self.plan, &inputs, times.values(), &batch.keys) } else { None };
        let mut next = 0;
        while next < batch.len() {
            if let Some(plain) = &plain {
                let until = self.plain_rows(plain, slots, next);
                absorbed += until - next;
                next = until;
                if next == batch.len() {
                    break;
                }
            }
            let (number, ts) = (next, times.values()[next]);
            next += 1;
            if let (Some(device), Some(slot)) = (batch.keys.device.get(number + AHEAD), own.get(number + AHEAD)) {
                self.clocks.prefetch(*device);
                self.windows.prefetch(*slot);
            }
            if !refused.is_empty() && refused[number] {
                continue;
            }
            if times.nulls().is_some_and(|nulls| nulls.is_null(number)) || !(-FARTHEST_US..=FARTHEST_US).contains(&ts) {
                far.push(number as u32);
                continue;
            }
            let row = Row { number, ts, device: batch.keys.device[number], slot: own[number], position: batch.keys.position[number] };
            if row.slot as usize >= self.windows.len() {
                no_room.push(number as u32);
                continue;
            }
            match self.row(&row, &inputs, slots) {
                Fate::Absorbed => absorbed += 1,
                Fate::Late => late.push(number as u32),
                Fate::NoRoom => no_room.push(number as u32),
            }
        }
        out.absorb(absorbed);
        out.reject(batch, far, WINDOW_TIME, "event time is missing or too far from the epoch for a window");
        out.reject(batch, no_room, WINDOW_LIMIT, format!("more than {} windows would be open", self.plan.max_open));
        if !late.is_empty() {
            match batch.take(&late) {
                Ok(rows) => out.late(self.outputs.len() - 1, rows),
                Err(why) => out.reject(batch, late, "late", why.to_string()),
            }
        }
        self.send(slots, out);
    }

    fn on_tick(&mut self, tick: &Tick, devices: &[u32], slots: &SlotDirectory, out: &mut Emitter) {
        for device in devices {
            self.close_until(*device, tick.position, slots, |end| match tick.time {
                TickTime::Append(now) => end <= now,
                TickTime::EndOfInput => true,
            });
        }
        self.send(slots, out);
    }

    fn pending(&self, device: u32, slots: &SlotDirectory) -> bool {
        let open = |slot: u32| (slot as usize) < self.windows.len() && self.windows.places(slot).any(|place| !self.windows.emitted(place));
        if self.plan.space == Space::Series { slots.series_of(device).any(open) } else { open(device) }
    }

    fn reject_codes(&self) -> Vec<Arc<str>> {
        [WINDOW_LIMIT, WINDOW_TIME, EXPRESSION].map(Arc::from).to_vec()
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.clocks, &mut self.windows]
    }
}
