//! What happens to decoded rows before the graph: wrong partition, clock skew, and names to slots.

use std::collections::HashSet;
use std::time::Duration;

use arrow::array::{Array, AsArray, BooleanArray, DictionaryArray, StringArray};
use arrow::datatypes::UInt32Type;
use fieldstream_engine_api::{KeyedBatch, Keys, Rejected, SlotDirectory};
use fieldstream_schemas::{Decoded, PayloadBlock, Position, Readings};

/// Code of a row whose record key is not its device.
pub const CODE_PARTITION: &str = "partition";
/// Code of a row that made an operator panic.
pub const CODE_POISON: &str = "poison";
/// Code of a reading too far ahead of its ingest time.
pub const CODE_CLOCK_SKEW: &str = "clock_skew";

/// Resolves the devices and series of `decoded` to slots: one lookup per distinct name, then one per row. Gives the slots of
/// the devices that were not in memory, too.
pub fn address(decoded: Decoded, slots: &mut SlotDirectory) -> (KeyedBatch, Vec<u32>) {
    let rows = decoded.positions.len();
    let mut activated = Vec::new();
    let mut keys = Keys { device: Vec::with_capacity(rows), series: Vec::with_capacity(rows), position: decoded.positions };
    if let Some(readings) = Readings::new(&decoded.rows) {
        let devices = resolve(readings.device_id, |name| {
            let (slot, new) = slots.resolve_device(name);
            if new {
                activated.push(slot);
            }
            slot
        });
        let sensors = resolve(readings.sensor_id, |name| slots.resolve_sensor(name));
        let columns = readings.device_id.keys().values().iter().zip(readings.sensor_id.keys().values());
        for (device_key, sensor_key) in columns {
            let device = devices.get(*device_key as usize).copied().unwrap_or_default();
            let sensor = sensors.get(*sensor_key as usize).copied().unwrap_or_default();
            keys.device.push(device);
            keys.series.push(slots.resolve_series(device, sensor));
        }
    }
    (KeyedBatch::new(decoded.rows, keys), activated)
}

fn resolve(column: &DictionaryArray<UInt32Type>, mut slot: impl FnMut(&str) -> u32) -> Vec<u32> {
    let Some(names) = column.values().as_string_opt::<i32>() else { return Vec::new() };
    // A dictionary may hold names that no row uses any more (a slice); only used ones become actors.
    let mut used = vec![false; names.len()];
    column.keys().values().iter().for_each(|key| used[*key as usize] = true);
    names.iter().zip(used).map(|(name, used)| if used { slot(name.unwrap_or_default()) } else { u32::MAX }).collect()
}

/// Takes rows out whose record key is not their device; keyed logs only.
pub fn check_keys(batch: KeyedBatch, block: &PayloadBlock) -> (KeyedBatch, Option<Rejected>) {
    let Some(keys) = &block.keys else { return (batch, None) };
    let Some(readings) = Readings::new(&batch.rows) else { return (batch, None) };
    let Some(names) = readings.device_id.values().as_string_opt::<i32>() else { return (batch, None) };
    let device = |row: usize, names: &StringArray| readings.device_id.key(row).map(|k| names.value(k).as_bytes().to_vec());
    let mut entry = 0;
    let wrong: Vec<bool> = (0..batch.len())
        .map(|row| {
            while block.entries.get(entry).is_some_and(|e| e.offset < batch.keys.position[row].offset) {
                entry += 1;
            }
            keys.get(entry).and_then(Option::as_ref).is_some_and(|key| device(row, names).is_none_or(|d| d != key.as_ref()))
        })
        .collect();
    split(batch, &wrong, CODE_PARTITION, "the record's key is not the device id, so its device's rows may lie in several partitions")
}

/// Takes rows out that made a turn panic before.
pub fn take_out(batch: KeyedBatch, quarantined: &HashSet<Position>) -> (KeyedBatch, Option<Rejected>) {
    if quarantined.is_empty() {
        return (batch, None);
    }
    let wrong: Vec<bool> = batch.keys.position.iter().map(|p| quarantined.contains(p)).collect();
    split(batch, &wrong, CODE_POISON, "the row made an operator panic and was taken out; please report it with its payload")
}

/// Takes rows out that lie further ahead of their ingest time than `max_future`.
pub fn check_skew(batch: KeyedBatch, max_future: Option<Duration>) -> (KeyedBatch, Option<Rejected>) {
    let Some(max_future) = max_future else { return (batch, None) };
    let Some(readings) = Readings::new(&batch.rows) else { return (batch, None) };
    if readings.ingest_ts.null_count() == batch.len() {
        return (batch, None);
    }
    let ahead = i64::try_from(max_future.as_micros()).unwrap_or(i64::MAX);
    let (ts, ingest) = (readings.ts.values(), readings.ingest_ts);
    let wrong: Vec<bool> = (0..batch.len()).map(|row| ingest.is_valid(row) && ts[row] > ingest.value(row).saturating_add(ahead)).collect();
    split(batch, &wrong, CODE_CLOCK_SKEW, "the reading's time lies further ahead of its arrival than time.max_future allows")
}

fn split(batch: KeyedBatch, wrong: &[bool], code: &'static str, message: &str) -> (KeyedBatch, Option<Rejected>) {
    if !wrong.contains(&true) {
        return (batch, None);
    }
    let rows = (0..wrong.len()).filter(|row| wrong[*row]).map(|row| row as u32).collect();
    let right: BooleanArray = wrong.iter().map(|w| Some(!w)).collect();
    let rejected = Rejected { batch: batch.clone(), rows, code: code.into(), message: message.into() };
    // The mask has the batch's length, so filtering cannot fail.
    let kept = batch.filter(&right).unwrap_or(batch);
    (kept, Some(rejected))
}
