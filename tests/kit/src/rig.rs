//! Drives one operator the way the runtime does: resolves names to slots, grows states, calls, and checks the account.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::concat_batches;
use arrow::datatypes::UInt32Type;
use fieldstream_engine_api::{
    BuildContext, Edge, Emitter, KeyedBatch, Keys, LogId, NO_SLOT, NodeCounts, Operator, Rejected, SlotDirectory, Space, Tick, TickTime,
    WindowTime,
};
use fieldstream_schemas::columns::{DEVICE_ID, SENSOR_ID, name_at};
use fieldstream_schemas::{Position, readings_schema};

use crate::text;

/// A context for operators under test: 5 s out of order, 10 s of allowed lateness.
#[must_use]
pub fn context() -> BuildContext {
    let time = WindowTime { out_of_orderness: Duration::from_secs(5), allowed_lateness: Duration::from_secs(10) };
    BuildContext { pipeline: "test".into(), node: "node".into(), log_id: LogId("log".into()), partition: 0, time }
}

/// The edge on which readings flow.
#[must_use]
pub fn readings_edge() -> Edge {
    Edge { schema: readings_schema(), key: Space::Series }
}

/// An operator with its slots, as a partition holds it.
pub struct Rig {
    operator: Box<dyn Operator>,
    ports: Vec<String>,
    slots: SlotDirectory,
    next_offset: u64,
    last: Position,
    total: NodeCounts,
}

/// What one call, or several, sent.
#[derive(Debug, Default)]
pub struct Turn {
    /// Rows by port number.
    pub sent: Vec<(usize, KeyedBatch)>,
    /// Refused rows.
    pub rejected: Vec<Rejected>,
    /// The account.
    pub counts: NodeCounts,
    ports: Vec<String>,
}

/// A device that was taken out of memory: its state, by names instead of slots.
#[derive(Debug)]
pub struct Parked {
    device: String,
    /// Sensor of each old series slot.
    sensors: BTreeMap<u32, String>,
    /// One snapshot per state, in the order of `Operator::states`.
    states: Vec<RecordBatch>,
}

impl Rig {
    /// A rig around a fresh operator.
    #[must_use]
    pub fn new(operator: Box<dyn Operator>) -> Self {
        let ports = operator.outputs().iter().map(|output| format!("{}", output.name)).collect();
        Self { operator, ports, slots: SlotDirectory::default(), next_offset: 0, last: Position::default(), total: NodeCounts::default() }
    }

    /// Feeds a picture of readings (see [`text::readings`]) as one batch.
    pub fn feed(&mut self, picture: &str) -> Turn {
        self.batch(&text::readings(picture))
    }

    /// Feeds one batch; its rows get the next offsets.
    pub fn batch(&mut self, rows: &RecordBatch) -> Turn {
        let first = self.next_offset;
        self.next_offset += rows.num_rows() as u64;
        let positions: Vec<Position> = (first..self.next_offset).map(|offset| Position::new(offset, 0)).collect();
        self.batch_at(rows, &positions)
    }

    /// Feeds one batch with explicit positions.
    ///
    /// # Panics
    /// If the batch has no `device_id` column of names, or the operator's account does not balance.
    pub fn batch_at(&mut self, rows: &RecordBatch, positions: &[Position]) -> Turn {
        if let Some(last) = positions.last() {
            self.last = *last;
        }
        let keys = self.resolve(rows, positions);
        self.grow();
        let mut out = Emitter::default();
        self.operator.on_batch(&KeyedBatch::new(rows.clone(), keys), &self.slots, &mut out);
        self.close(&mut out, rows.num_rows())
    }

    /// Ticks every active device.
    pub fn tick(&mut self, time: TickTime) -> Turn {
        let devices: Vec<u32> = self.slots.devices().collect();
        self.last.tick += 1;
        let tick = Tick { position: self.last, time };
        self.tick_slots(&tick, &devices)
    }

    /// Ticks the named devices (those that are active) at a given position.
    pub fn tick_at(&mut self, tick: &Tick, devices: &[&str]) -> Turn {
        let devices: Vec<u32> = devices.iter().filter_map(|name| self.slots.find_device(name)).collect();
        self.tick_slots(tick, &devices)
    }

    fn tick_slots(&mut self, tick: &Tick, devices: &[u32]) -> Turn {
        let mut out = Emitter::default();
        let (pending, calm): (Vec<u32>, Vec<u32>) = devices.iter().partition(|d| self.operator.pending(**d, &self.slots));
        if tick.time != TickTime::EndOfInput {
            self.operator.on_tick(tick, &calm, &self.slots, &mut out);
            let turn = self.close(&mut out, 0);
            assert!(turn.sent.is_empty(), "devices that were not pending emitted on a tick");
            self.operator.on_tick(tick, &pending, &self.slots, &mut out);
        } else {
            self.operator.on_tick(tick, devices, &self.slots, &mut out);
        }
        self.close(&mut out, 0)
    }

    /// Ends the input: everything closes.
    pub fn end(&mut self) -> Turn {
        self.tick(TickTime::EndOfInput)
    }

    fn close(&mut self, out: &mut Emitter, received: usize) -> Turn {
        let (sent, rejected, counts) = out.finish(received);
        assert!(counts.balanced(), "the account does not balance: {counts:?}");
        let rows: u64 = sent.iter().map(|(_, batch)| batch.len() as u64).sum();
        assert!(rows >= counts.emitted, "more rows counted as emitted than sent: {counts:?}");
        for (port, batch) in &sent {
            let declared = &self.operator.outputs()[*port].edge.schema;
            assert_eq!(batch.rows.schema_ref().fields(), declared.fields(), "columns of port {:?}", self.ports[*port]);
        }
        self.total.add(&counts);
        Turn { sent, rejected, counts, ports: self.ports.clone() }
    }

    fn resolve(&mut self, rows: &RecordBatch, positions: &[Position]) -> Keys {
        let devices = rows.column_by_name(DEVICE_ID).unwrap_or_else(|| panic!("rows have no {DEVICE_ID}"));
        let sensors = rows.column_by_name(SENSOR_ID);
        let mut keys = Keys::with_capacity(rows.num_rows());
        for (row, position) in positions.iter().enumerate() {
            let name = name_at(devices, row).unwrap_or_else(|| panic!("{DEVICE_ID} of row {row} is no name"));
            let (device, _) = self.slots.resolve_device(name);
            let series = sensors.and_then(|s| name_at(s, row)).map_or(NO_SLOT, |sensor| {
                let sensor = self.slots.resolve_sensor(sensor);
                self.slots.resolve_series(device, sensor)
            });
            keys.push(device, series, *position);
        }
        keys
    }

    fn grow(&mut self) {
        for state in self.operator.states() {
            state.grow_to(match state.space() {
                Space::Device => self.slots.device_slots(),
                Space::Series => self.slots.series_slots(),
                Space::Stateless => 0,
            });
        }
    }

    /// Account over all calls so far.
    #[must_use]
    pub fn total(&self) -> NodeCounts {
        self.total
    }

    /// Bytes of all states.
    pub fn state_bytes(&mut self) -> usize {
        self.operator.states().iter().map(|state| state.bytes()).sum()
    }

    /// The operator, for tests that look into it.
    pub fn operator(&mut self) -> &mut dyn Operator {
        &mut *self.operator
    }

    /// The directory of slots.
    #[must_use]
    pub fn slots(&self) -> &SlotDirectory {
        &self.slots
    }

    /// State of an active device, by names.
    fn copy_out(&mut self, device: u32) -> Parked {
        let series: Vec<u32> = self.slots.series_of(device).collect();
        let sensors = series.iter().map(|slot| (*slot, self.slots.sensor_name(*slot).to_owned())).collect();
        let states = self
            .operator
            .states()
            .iter()
            .map(|state| state.snapshot(if state.space() == Space::Series { &series } else { std::slice::from_ref(&device) }))
            .collect();
        Parked { device: self.slots.device_name(device).to_owned(), sensors, states }
    }

    /// Takes a device out of memory, as the runtime does with idle ones; its slots are free then. `None` if it is not active.
    pub fn passivate(&mut self, name: &str) -> Option<Parked> {
        let device = self.slots.find_device(name)?;
        let parked = self.copy_out(device);
        let series: Vec<u32> = parked.sensors.keys().copied().collect();
        for state in self.operator.states() {
            state.clear(if state.space() == Space::Series { &series } else { std::slice::from_ref(&device) });
        }
        self.slots.release_device(device);
        Some(parked)
    }

    /// Puts a device back, under whatever slots are free now.
    ///
    /// # Panics
    /// If a state does not take back what it wrote.
    pub fn activate(&mut self, parked: &Parked) {
        let (device, _) = self.slots.resolve_device(&parked.device);
        let series: BTreeMap<u32, u32> = parked
            .sensors
            .iter()
            .map(|(old, sensor)| {
                let sensor = self.slots.resolve_sensor(sensor);
                (*old, self.slots.resolve_series(device, sensor))
            })
            .collect();
        self.grow();
        for (state, rows) in self.operator.states().into_iter().zip(&parked.states) {
            let space = state.space();
            let rows = renumber(rows, |old| if space == Space::Series { series.get(&old).copied().unwrap_or(NO_SLOT) } else { device });
            state.restore(&rows).unwrap_or_else(|e| panic!("state of {}: {e}", parked.device));
        }
    }

    /// Moves everything into a rig around the fresh operator `operator`, through snapshots, as recovery does. Slots are numbered anew.
    #[must_use]
    pub fn recover(mut self, operator: Box<dyn Operator>) -> Self {
        let mut next = Self::new(operator);
        (next.next_offset, next.last, next.total) = (self.next_offset, self.last, self.total);
        let mut devices: Vec<u32> = self.slots.devices().collect();
        devices.reverse();
        for device in devices {
            next.activate(&self.copy_out(device));
        }
        next
    }
}

/// The same snapshot with other slot numbers.
fn renumber(rows: &RecordBatch, new: impl Fn(u32) -> u32) -> RecordBatch {
    let slots: &UInt32Array = rows.column(0).as_primitive::<UInt32Type>();
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    columns[0] = Arc::new(slots.iter().map(|slot| slot.map(&new)).collect::<UInt32Array>());
    RecordBatch::try_new(rows.schema(), columns).unwrap_or_else(|e| panic!("the first column of a snapshot is the slot: {e}"))
}

impl Turn {
    /// Rows sent by the port called `name` (`""` for the node itself), joined; `None` when there are none.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<RecordBatch> {
        let number = self.ports.iter().position(|port| port == name).unwrap_or_else(|| panic!("no port {name:?}"));
        let batches: Vec<&RecordBatch> = self.sent.iter().filter(|(port, _)| *port == number).map(|(_, batch)| &batch.rows).collect();
        let first = batches.first()?;
        Some(concat_batches(first.schema_ref(), batches.iter().copied()).unwrap_or_else(|e| panic!("batches of one port differ: {e}")))
    }

    /// Everything sent, as text: a table per port, then refused rows, then the account. `pick` names the columns wanted
    /// (of those a port has); empty for all that are not null.
    #[must_use]
    pub fn picture(&self, pick: &[&str]) -> String {
        let mut out = String::new();
        for name in &self.ports {
            if let Some(rows) = self.port(name) {
                let pick: Vec<&str> = pick.iter().copied().filter(|c| rows.schema_ref().column_with_name(c).is_some()).collect();
                let label = if name.is_empty() { "out" } else { name };
                // Writing to a String cannot fail.
                let _ = write!(out, "[{label}]\n{}", text::table(&rows, &pick));
            }
        }
        for rejected in &self.rejected {
            for row in &rejected.rows {
                let at = rejected.batch.keys.position[*row as usize].offset;
                let _ = writeln!(out, "[rejected] offset {at} {}: {}", rejected.code, rejected.message);
            }
        }
        out.push_str(&show_counts(&self.counts));
        out
    }

    /// Adds what a later call sent.
    #[must_use]
    pub fn then(mut self, later: Self) -> Self {
        self.sent.extend(later.sent);
        self.rejected.extend(later.rejected);
        self.counts.add(&later.counts);
        self
    }
}

/// The account in one line, without zeros.
fn show_counts(counts: &NodeCounts) -> String {
    let all = [
        ("received", counts.received),
        ("forwarded", counts.forwarded),
        ("absorbed", counts.absorbed),
        ("filtered", counts.filtered),
        ("rejected", counts.rejected),
        ("late", counts.late),
        ("deduplicated", counts.deduplicated),
        ("emitted", counts.emitted),
    ];
    let mut out = String::from("counts:");
    for (name, count) in all.iter().filter(|(_, count)| *count > 0) {
        let _ = write!(out, " {name} {count}");
    }
    out.push('\n');
    out
}
