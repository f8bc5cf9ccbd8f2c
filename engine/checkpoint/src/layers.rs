//! Incremental checkpoints: layers laid over each other, and when to make one of several.
//!
//! A delta holds the devices that changed since the snapshot before, whole: name, series, every operator's state, activity. A
//! table [`GONE`] names those that left memory. Of each device the newest layer that mentions it counts, so nothing
//! is ever patched inside a device, and the order of slots means nothing across layers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{concat, concat_batches, filter, filter_record_batch};
use fieldstream_engine_api::{NO_SLOT, Space};

use crate::snapshot::Tables;
use crate::tables::{DEVICES, GONE, SERIES, device_table, gone_table, number, sensor_column, series_table, text};
use crate::{StateTable, Table};

/// With more layers than this some are merged: each costs a few files to read at a restore.
const MOST_LAYERS: usize = 8;

/// From which layer on all are to be merged into one, given their sizes, the oldest first; `None`: not yet.
///
/// When the deltas are as large as the base, all of them. When there are too many, the longest run at the end in which no
/// layer is more than twice as large as what lies over it: a large base is not written again for the sake of small deltas, and
/// each byte is rewritten about as often as the chain's length has doubled.
pub(crate) fn merge_from(bytes: &[u64]) -> Option<usize> {
    let above = |layer: usize| bytes.iter().skip(layer + 1).sum::<u64>();
    let base = bytes.first()?;
    if bytes.len() > 1 && above(0) >= *base {
        return Some(0);
    }
    if bytes.len() <= MOST_LAYERS {
        return None;
    }
    let small = |layer: &usize| bytes.get(*layer).is_some_and(|own| *own <= 2 * above(*layer));
    let first = (1..bytes.len() - 1).rev().take_while(small).last();
    // Sizes that fall steeply leave nothing to choose but the smaller half.
    Some(first.unwrap_or(bytes.len() / 2).min(bytes.len() / 2))
}

/// Where the rows of a layer go: new slots by saved slot, [`NO_SLOT`] for those that a newer layer replaces.
#[derive(Default)]
struct Moved {
    devices: Vec<u32>,
    series: Vec<u32>,
}

fn moved(map: &[u32], slot: u32) -> u32 {
    map.get(slot as usize).copied().unwrap_or(NO_SLOT)
}

fn note(map: &mut Vec<u32>, slot: u32, now: u32) {
    let slot = slot as usize;
    if slot >= map.len() {
        map.resize(slot + 1, NO_SLOT);
    }
    if let Some(entry) = map.get_mut(slot) {
        *entry = now;
    }
}

/// Lays `layers`, the oldest first, over each other. `whole`: nothing lies below them, so nobody needs to be told who is gone.
///
/// # Errors
/// What does not fit, in words.
pub(crate) fn overlay(layers: &[Tables], whole: bool) -> Result<Tables, String> {
    let keys = layers.iter().map(Keys::of).collect::<Result<Vec<Keys>, String>>()?;
    let kept = newest(&keys);
    let (mut places, mut devices) = (Vec::with_capacity(layers.len()), 0);
    for (keys, kept) in keys.iter().zip(&kept) {
        let mut place = Moved::default();
        for (slot, _) in keys.slots.values().iter().zip(kept).filter(|(_, kept)| **kept) {
            note(&mut place.devices, *slot, devices);
            devices += 1;
        }
        places.push(place);
    }
    let mut out = Tables::default();
    out.tables.push(join_devices(&keys, &kept)?);
    out.tables.push(join_series(layers, &mut places)?);
    if !whole {
        out.tables.push(still_gone(&keys));
    }
    for (layer, place) in layers.iter().zip(&places) {
        for table in layer.tables.iter().filter(|t| ![DEVICES, SERIES, GONE].contains(&t.name.as_str())) {
            out.tables.push(Table { name: table.name.clone(), rows: rewrite(&table.rows, &place.devices)? });
        }
        for state in &layer.states {
            let map = if state.space == Space::Series { &place.series } else { &place.devices };
            out.states.push(StateTable { rows: rewrite(&state.rows, map)?, ..state.clone() });
        }
    }
    join_rest(&mut out)?;
    Ok(out)
}

/// Who is in a layer.
struct Keys {
    slots: UInt32Array,
    names: StringArray,
    gone: StringArray,
}

impl Keys {
    fn of(layer: &Tables) -> Result<Self, String> {
        let devices = layer.table(DEVICES).ok_or("table devices is missing")?;
        let gone = layer.table(GONE).map(|gone| text(gone, "device_id")).transpose()?;
        let none = || StringArray::from_iter_values(std::iter::empty::<&str>());
        Ok(Self { slots: number(devices, "slot")?, names: text(devices, "device_id")?, gone: gone.unwrap_or_else(none) })
    }
}

/// For each layer and each of its devices, whether no newer layer mentions it.
fn newest(layers: &[Keys]) -> Vec<Vec<bool>> {
    let mut kept = Vec::with_capacity(layers.len());
    let mut newer: HashSet<&str> = HashSet::new();
    for (number, layer) in layers.iter().enumerate().rev() {
        kept.push(layer.names.iter().flatten().map(|name| !newer.contains(name)).collect());
        // The oldest layer is by far the largest, and nobody looks below it.
        if number > 0 {
            newer.extend(layer.names.iter().flatten());
            newer.extend(layer.gone.iter().flatten());
        }
    }
    kept.reverse();
    kept
}

fn join_devices(layers: &[Keys], kept: &[Vec<bool>]) -> Result<Table, String> {
    let mut parts = Vec::with_capacity(layers.len());
    for (layer, kept) in layers.iter().zip(kept) {
        parts.push(filter(&layer.names, &BooleanArray::from(kept.clone())).map_err(|e| e.to_string())?);
    }
    let names = concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>()).map_err(|e| e.to_string())?;
    let names = names.as_any().downcast_ref::<StringArray>().cloned().ok_or("device_id is no text")?;
    Ok(device_table((0..names.len() as u32).collect(), names))
}

/// Joins the series of the kept devices, and notes where they go.
fn join_series(layers: &[Tables], places: &mut [Moved]) -> Result<Table, String> {
    let (mut parents, mut sensors, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let mut known: HashMap<String, usize> = HashMap::new();
    for (layer, place) in layers.iter().zip(places) {
        let rows = layer.table(SERIES).ok_or("table series is missing")?;
        let (slots, devices, own) = (number(rows, "slot")?, number(rows, "device_slot")?, text(rows, "sensor_id")?);
        for (row, (slot, device)) in slots.values().iter().zip(devices.values()).enumerate() {
            let parent = moved(&place.devices, *device);
            if parent != NO_SLOT {
                note(&mut place.series, *slot, parents.len() as u32);
                parents.push(parent);
                let name = own.value(row);
                let number = known.get(name).copied().unwrap_or_else(|| {
                    known.insert(name.to_owned(), names.len());
                    names.push(name.to_owned());
                    names.len() - 1
                });
                sensors.push(number);
            }
        }
    }
    let sensors = sensor_column(sensors.into_iter().filter_map(|number| names.get(number).map(String::as_str)));
    Ok(series_table((0..parents.len() as u32).collect(), parents, sensors))
}

/// Devices whose newest mention says that they are gone.
fn still_gone(layers: &[Keys]) -> Table {
    let (mut seen, mut gone) = (HashSet::new(), Vec::new());
    for layer in layers.iter().rev() {
        seen.extend(layer.names.iter().flatten());
        gone.extend(layer.gone.iter().flatten().filter(|name| seen.insert(*name)));
    }
    gone_table(gone.into_iter())
}

/// The rows whose slot goes somewhere, under the new numbers.
fn rewrite(rows: &RecordBatch, map: &[u32]) -> Result<RecordBatch, String> {
    if rows.num_columns() == 0 {
        return Ok(rows.clone());
    }
    let saved = number(rows, "slot")?;
    let now: Vec<u32> = saved.values().iter().map(|slot| moved(map, *slot)).collect();
    let stay: BooleanArray = now.iter().map(|slot| Some(*slot != NO_SLOT)).collect();
    let all = stay.true_count() == now.len();
    let kept = if all { rows.clone() } else { filter_record_batch(rows, &stay).map_err(|e| e.to_string())? };
    let now = UInt32Array::from_iter_values(now.into_iter().filter(|slot| *slot != NO_SLOT));
    let mut columns = kept.columns().to_vec();
    match columns.first_mut() {
        Some(first) => *first = Arc::new(now),
        None => return Err("a table has no columns".to_owned()),
    }
    RecordBatch::try_new(kept.schema(), columns).map_err(|e| e.to_string())
}

/// Makes one table of those that say the same, so that layers do not add up to ever more files.
fn join_rest(out: &mut Tables) -> Result<(), String> {
    let tables = out.tables.drain(..).map(|t| (t.name, t.rows)).collect();
    out.tables = join_alike(tables)?.into_iter().map(|(name, rows)| Table { name, rows }).collect();
    let states = out.states.drain(..).map(|s| ((s.node, s.state, s.space, s.layout), s.rows)).collect();
    let whole = |((node, state, space, layout), rows)| StateTable { node, state, space, layout, rows };
    out.states = join_alike(states)?.into_iter().map(whole).collect();
    Ok(())
}

/// Joins rows of one key and schema, in the order of the first of each.
fn join_alike<K: PartialEq>(parts: Vec<(K, RecordBatch)>) -> Result<Vec<(K, RecordBatch)>, String> {
    let mut groups: Vec<(K, Vec<RecordBatch>)> = Vec::new();
    for (key, rows) in parts {
        let alike = |(other, group): &&mut (K, Vec<RecordBatch>)| {
            *other == key && group.first().is_some_and(|first| first.schema_ref() == rows.schema_ref())
        };
        match groups.iter_mut().find(alike) {
            Some((_, group)) => group.push(rows),
            None => groups.push((key, vec![rows])),
        }
    }
    let mut joined = Vec::with_capacity(groups.len());
    for (key, group) in groups {
        let Some(first) = group.first() else { continue };
        let rows = if group.len() == 1 { first.clone() } else { concat_batches(first.schema_ref(), &group).map_err(|e| e.to_string())? };
        joined.push((key, rows));
    }
    Ok(joined)
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
