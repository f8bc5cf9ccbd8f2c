//! Passivation: the state of the device actors that were quiet for longest moves to disk, and back when a row or a tick comes
//! for them. Results do not show it.
//!
//! A device on disk is one row: `device_id`, `last_seen`, `pending`, `sensors`, then one list of structs per operator state.
//! Rows on disk are never deleted when a device comes back: what is in memory is newer.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, UInt32Type};
use arrow::error::ArrowError;
use fieldstream_checkpoint::StoreError;
use fieldstream_checkpoint::cold::{ColdCursor, ColdSegment, ColdStore};
use fieldstream_engine_api::{KeyedState, SlotDirectory, Space, TickTime};

use crate::changes::Changes;
use crate::graph::Graph;
use crate::losses::Losses;
use crate::time::PartitionTime;

/// Devices that leave memory, or come back for a tick, at once.
const CHUNK: usize = 8192;
/// After a failed write to disk, so many turns pass before the next try.
const RETRY_TURNS: u32 = 256;
/// Columns before the states.
const FIRST_STATE: usize = 4;
/// Field metadata: number of the state's column layout.
const LAYOUT: &str = "layout";
/// Field metadata: how many restores had left state out when it was written; 0 is left out.
const LOSSES: &str = "losses";

/// Why a device's state cannot be brought back.
#[derive(Debug, thiserror::Error)]
#[error("the state of passivated devices cannot be used: {0}")]
pub struct ColdError(String);

impl From<StoreError> for ColdError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

impl From<ArrowError> for ColdError {
    fn from(error: ArrowError) -> Self {
        Self(error.to_string())
    }
}

/// What belongs to the device actors of a partition.
pub(crate) struct Actors<'a> {
    pub(crate) graph: &'a mut Graph,
    pub(crate) slots: &'a mut SlotDirectory,
    pub(crate) time: &'a mut PartitionTime,
    pub(crate) changes: &'a mut Changes,
}

/// Keeps the number of devices in memory at its limit.
pub(crate) struct Passivation {
    cold: ColdStore,
    limit: usize,
    /// Turn of the newest row by device slot; kept only when memory is half full.
    touched: Vec<u32>,
    turn: u32,
    /// Devices on disk and not in memory.
    absent: u64,
    retry_at: u32,
    losses: Losses,
}

impl Passivation {
    pub(crate) fn new(cold: ColdStore, limit: usize) -> Self {
        Self { cold, limit: limit.max(1), touched: Vec::new(), turn: 0, absent: 0, retry_at: 0, losses: Losses::default() }
    }

    /// Devices on disk and not in memory.
    pub(crate) fn absent(&self) -> u64 {
        self.absent
    }

    /// The files that a checkpoint must keep, oldest first.
    pub(crate) fn segments(&mut self) -> Result<Vec<ColdSegment>, StoreError> {
        self.cold.segments()
    }

    /// Takes over the files of a checkpoint, which lie in the store's folder already. What `losses` voids stays there.
    pub(crate) fn attach(&mut self, segments: &[ColdSegment], absent: u64, losses: &Losses) -> Result<(), StoreError> {
        segments.iter().try_for_each(|segment| self.cold.attach(&segment.name))?;
        self.absent = absent;
        self.losses = losses.clone();
        Ok(())
    }

    /// A turn begins with rows of `devices`, of which `new` were not in memory: their state comes back.
    pub(crate) fn begin_turn(&mut self, devices: &[u32], new: &[u32], actors: &mut Actors<'_>) -> Result<(), ColdError> {
        self.turn = self.turn.saturating_add(1);
        if actors.slots.active_devices() > self.limit / 2 {
            self.touched.resize(actors.slots.device_slots().max(self.touched.len()), 0);
            devices.iter().for_each(|device| self.touched[*device as usize] = self.turn);
        }
        if new.is_empty() || self.absent == 0 {
            return Ok(());
        }
        let names: Vec<&str> = new.iter().map(|slot| actors.slots.device_name(*slot)).collect();
        let found = self.cold.find(&names)?;
        self.bring_back(&found, actors).map(|_| ())
    }

    /// Devices on disk that a tick concerns; [`Self::wake`] brings them in chunk by chunk.
    pub(crate) fn ticked(&self, time: TickTime, partition: &PartitionTime) -> Result<Option<ColdCursor>, ColdError> {
        Ok(match time {
            _ if self.absent == 0 => None,
            TickTime::EndOfInput => Some(self.cold.cursor()?),
            TickTime::Append(now) => partition.quiet_since(now).map(|since| self.cold.cursor_pending(since)),
        })
    }

    /// Brings the next devices of `cursor` into memory and gives the slots of those that the tick concerns; `None` at the end.
    pub(crate) fn wake(&mut self, cursor: &mut ColdCursor, tick: TickTime, actors: &mut Actors<'_>) -> Result<Option<Vec<u32>>, ColdError> {
        let Some(names) = cursor.next_names(CHUNK)? else { return Ok(None) };
        let absent: Vec<&str> = names.iter().map(String::as_str).filter(|name| actors.slots.find_device(name).is_none()).collect();
        let found = self.cold.find(&absent)?;
        let mut devices = self.bring_back(&found, actors)?;
        // One that left memory in this very tick is named for an old row of its own, and has been heard of since.
        if let TickTime::Append(now) = tick
            && let Some(since) = actors.time.quiet_since(now)
        {
            devices.retain(|device| actors.time.last_seen(*device) <= since);
        }
        Ok(Some(devices))
    }

    /// True when the device is on disk; it is in memory then.
    pub(crate) fn wake_one(&mut self, device: &str, actors: &mut Actors<'_>) -> Result<bool, ColdError> {
        let found = self.cold.find(&[device])?;
        Ok(!self.bring_back(&found, actors)?.is_empty())
    }

    /// Takes the quietest devices out of memory when there are more than the limit; in mid-turn not those that have rows in it.
    pub(crate) fn shrink(&mut self, in_turn: bool, actors: &mut Actors<'_>) -> Result<(), ColdError> {
        let active = actors.slots.active_devices();
        if active <= self.limit || self.turn < self.retry_at {
            return Ok(());
        }
        let turn_of = |slot: u32| self.touched.get(slot as usize).copied().unwrap_or_default();
        let devices = actors.slots.devices().filter(|slot| !in_turn || turn_of(*slot) < self.turn);
        let mut quietest: Vec<(u32, u32)> = devices.map(|slot| (turn_of(slot), slot)).collect();
        let wanted = (active - self.limit + (self.limit / 8).min(CHUNK)).min(quietest.len());
        if wanted == 0 {
            return Ok(());
        }
        quietest.select_nth_unstable(wanted - 1);
        quietest.truncate(wanted);
        for chunk in quietest.chunks(CHUNK) {
            let devices: Vec<u32> = chunk.iter().map(|(_, slot)| *slot).collect();
            let (rows, series) = rows_of(&devices, self.losses.count, actors)?;
            if let Err(error) = self.cold.put(&rows) {
                tracing::error!("devices stay in memory beyond limits.active_devices: {error}");
                self.retry_at = self.turn.saturating_add(RETRY_TURNS);
                return Ok(());
            }
            self.release(&devices, &series, actors);
        }
        Ok(())
    }

    fn release(&mut self, devices: &[u32], series: &[u32], actors: &mut Actors<'_>) {
        actors.graph.for_each_state(|_, _, state| state.clear(if state.space() == Space::Device { devices } else { series }));
        for device in devices {
            actors.changes.leave(*device, actors.slots.device_name(*device));
            actors.slots.release_device(*device);
            actors.time.forget(*device);
            if let Some(touched) = self.touched.get_mut(*device as usize) {
                *touched = 0;
            }
        }
        self.absent += devices.len() as u64;
    }

    fn bring_back(&mut self, found: &[RecordBatch], actors: &mut Actors<'_>) -> Result<Vec<u32>, ColdError> {
        let mut devices = Vec::new();
        for rows in found {
            let own = put_back(rows, &self.losses, actors)?;
            self.absent = self.absent.saturating_sub(own.len() as u64);
            devices.extend(own);
        }
        Ok(devices)
    }
}

/// One row per device with all of its state, and the series slots of these devices.
fn rows_of(devices: &[u32], losses: u32, actors: &mut Actors<'_>) -> Result<(RecordBatch, Vec<u32>), ColdError> {
    let Actors { graph, slots, time, .. } = actors;
    graph.grow(slots);
    let mut series = Vec::new();
    // Where a slot's rows belong: (row of the device, number of the sensor in its list).
    let mut device_rows = HashMap::with_capacity(devices.len());
    let mut series_rows = HashMap::with_capacity(devices.len() * 2);
    let (mut sensors, mut lengths) = (Vec::new(), Vec::with_capacity(devices.len()));
    for (row, device) in devices.iter().enumerate() {
        device_rows.insert(*device, (row as u32, 0));
        let first = series.len();
        series.extend(slots.series_of(*device));
        for (number, slot) in series[first..].iter().enumerate() {
            series_rows.insert(*slot, (row as u32, number as u32));
            sensors.push(slots.sensor_name(*slot));
        }
        lengths.push(series.len() - first);
    }
    let names = StringArray::from_iter_values(devices.iter().map(|d| slots.device_name(*d)));
    let seen = Int64Array::from_iter_values(devices.iter().map(|d| time.last_seen(*d)));
    let pending: BooleanArray = devices.iter().map(|d| Some(graph.pending(*d, slots))).collect();
    let item = Arc::new(Field::new_list_field(DataType::Utf8, false));
    let sensors = ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(StringArray::from(sensors)), None)?;
    let mut fields = vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("last_seen", DataType::Int64, false),
        Field::new("pending", DataType::Boolean, false),
        Field::new("sensors", sensors.data_type().clone(), false),
    ];
    let mut columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(seen), Arc::new(pending), Arc::new(sensors)];
    let mut failure = None;
    graph.for_each_state(|node, number, state| {
        let (own, rows) = if state.space() == Space::Device { (devices, &device_rows) } else { (series.as_slice(), &series_rows) };
        match list_of(&state.snapshot(own), devices.len(), rows) {
            Ok(list) => {
                let mut about = HashMap::from([(LAYOUT.to_owned(), state.layout().to_string())]);
                if losses > 0 {
                    about.insert(LOSSES.to_owned(), losses.to_string());
                }
                fields.push(Field::new(format!("{node}/{number}"), list.data_type().clone(), false).with_metadata(about));
                columns.push(Arc::new(list));
            }
            Err(error) => failure = Some(error),
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok((RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?, series)),
    }
}

/// A snapshot as one list per device. In each element the slot number gives way to the number of the sensor.
fn list_of(snapshot: &RecordBatch, devices: usize, rows: &HashMap<u32, (u32, u32)>) -> Result<ListArray, ColdError> {
    let slots = slot_column(snapshot)?;
    let places =
        slots.values().iter().map(|slot| rows.get(slot).copied().ok_or_else(|| ColdError(format!("slot {slot} was not asked for"))));
    let places: Vec<(u32, u32)> = places.collect::<Result<_, _>>()?;
    let mut order: Vec<u64> = (0..places.len() as u64).collect();
    order.sort_by_key(|at| places[*at as usize].0);
    let mut lengths = vec![0; devices];
    places.iter().for_each(|(row, _)| lengths[*row as usize] += 1);
    let sensors = UInt32Array::from_iter_values(order.iter().map(|at| places[*at as usize].1));
    let sorted = take_record_batch(snapshot, &UInt64Array::from(order))?;
    let mut fields: Vec<FieldRef> = sorted.schema().fields().iter().cloned().collect();
    fields[0] = Arc::new(Field::new("sensor", DataType::UInt32, false));
    let mut columns = sorted.columns().to_vec();
    columns[0] = Arc::new(sensors);
    let elements = StructArray::try_new(fields.into(), columns, None)?;
    let item = Arc::new(Field::new_list_field(elements.data_type().clone(), false));
    Ok(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(elements), None)?)
}

fn slot_column(rows: &RecordBatch) -> Result<&UInt32Array, ColdError> {
    let first = rows.columns().first().and_then(|column| column.as_primitive_opt::<UInt32Type>());
    first.ok_or_else(|| ColdError("the first column of a state is no slot number".to_owned()))
}

/// Gives the devices of `rows` slots and puts their state there; gives the device slots.
fn put_back(rows: &RecordBatch, losses: &Losses, actors: &mut Actors<'_>) -> Result<Vec<u32>, ColdError> {
    let Actors { graph, slots, time, changes } = actors;
    let unfit = || ColdError("a file has other columns than this program writes".to_owned());
    let names = rows.columns().first().and_then(|c| c.as_string_opt::<i32>()).ok_or_else(unfit)?;
    let seen = rows.columns().get(1).and_then(|c| c.as_primitive_opt::<Int64Type>()).ok_or_else(unfit)?;
    let sensors = rows.columns().get(FIRST_STATE - 1).and_then(|c| c.as_list_opt::<i32>()).ok_or_else(unfit)?;
    let mut devices = Vec::with_capacity(rows.num_rows());
    let mut series: Vec<Vec<u32>> = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        let (device, _) = slots.resolve_device(names.value(row));
        time.seen(device, seen.value(row));
        let own = sensors.value(row);
        let own = own.as_string_opt::<i32>().ok_or_else(unfit)?.iter().flatten();
        let resolve = |sensor: &str| {
            let sensor = slots.resolve_sensor(sensor);
            slots.resolve_series(device, sensor)
        };
        series.push(own.map(resolve).collect());
        devices.push(device);
    }
    changes.touch(&devices);
    graph.grow(slots);
    let voided = |field: &FieldRef| {
        let count = field.metadata().get(LOSSES).and_then(|count| count.parse().ok()).unwrap_or_default();
        losses.voids(field.name(), count)
    };
    let fields = rows.schema_ref().fields();
    let mut known = FIRST_STATE + fields.iter().skip(FIRST_STATE).filter(|field| voided(field)).count();
    let mut failure = None;
    graph.for_each_state(|node, number, state| {
        let Some((at, field)) = fields.find(&format!("{node}/{number}")) else { return };
        if voided(field) {
            return;
        }
        known += 1;
        let slot = |row: usize, sensor: u32| match state.space() {
            Space::Series => series[row].get(sensor as usize).copied(),
            _ => Some(devices[row]),
        };
        let outcome = state_rows(rows, at, state, slot).and_then(|rows| state.restore(&rows).map_err(|e| ColdError(e.to_string())));
        if let Err(ColdError(error)) = outcome {
            failure = Some(ColdError(format!("operator {node}: {error}")));
        }
    });
    if known < rows.num_columns() {
        failure = failure.or_else(|| Some(ColdError("there is state of operators that the pipeline no longer has".to_owned())));
    }
    failure.map_or(Ok(devices), Err)
}

/// The elements of column `at` as a snapshot again.
fn state_rows(
    rows: &RecordBatch,
    at: usize,
    state: &dyn KeyedState,
    slot: impl Fn(usize, u32) -> Option<u32>,
) -> Result<RecordBatch, ColdError> {
    let schema = rows.schema_ref();
    let layout = schema.field(at).metadata().get(LAYOUT).cloned().unwrap_or_default();
    if layout != state.layout().to_string() {
        return Err(ColdError(format!("its state has layout {layout}, this program reads layout {}", state.layout())));
    }
    let unfit = || ColdError("a column of state is no list".to_owned());
    let list = rows.column(at).as_list_opt::<i32>().ok_or_else(unfit)?;
    let (first, last) = (list.offsets()[0] as usize, list.offsets()[list.len()] as usize);
    let elements = list.values().slice(first, last - first);
    let elements = elements.as_struct_opt().ok_or_else(unfit)?;
    let sensors = elements.columns().first().and_then(|c| c.as_primitive_opt::<UInt32Type>()).ok_or_else(unfit)?;
    let mut slots = Vec::with_capacity(elements.len());
    for row in 0..list.len() {
        for _ in 0..list.value_length(row) {
            let found = slot(row, sensors.value(slots.len()));
            slots.push(found.ok_or_else(|| ColdError("a state belongs to a sensor that the device does not have".to_owned()))?);
        }
    }
    let mut fields: Vec<FieldRef> = elements.fields().iter().cloned().collect();
    fields[0] = Arc::new(Field::new("slot", DataType::UInt32, false));
    let mut columns = elements.columns().to_vec();
    columns[0] = Arc::new(UInt32Array::from(slots));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
