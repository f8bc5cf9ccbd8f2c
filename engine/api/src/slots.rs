//! The directory of device actors in memory: names to dense slots and back.
//!
//! A device slot is the address of an active device actor, a series slot that of one of its sensors. Slots are reused after
//! passivation; results never depend on their numbers.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, StringBuilder, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::UInt32Type;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::{AHEAD, NO_SLOT, prefetch};

/// Series of a device that are looked for in its list before the hash table is asked.
const SHORT_LIST: usize = 4;

/// Names of devices and sensors, and who belongs to whom. Owned by a partition, read by operators.
#[derive(Debug)]
pub struct SlotDirectory {
    hasher: FixedState,
    device_names: Vec<Option<Arc<str>>>,
    device_index: HashTable<u32>,
    free_devices: Vec<u32>,
    /// First series slot of each device, then along `next_series`.
    first_series: Vec<u32>,
    next_series: Vec<u32>,
    device_of: Vec<u32>,
    sensor_of: Vec<u32>,
    series_index: HashTable<u32>,
    free_series: Vec<u32>,
    sensor_names: Vec<Arc<str>>,
    sensor_uses: Vec<u32>,
    sensor_index: HashTable<u32>,
    free_sensors: Vec<u32>,
}

impl Default for SlotDirectory {
    fn default() -> Self {
        Self {
            hasher: FixedState::with_seed(0),
            device_names: Vec::new(),
            device_index: HashTable::new(),
            free_devices: Vec::new(),
            first_series: Vec::new(),
            next_series: Vec::new(),
            device_of: Vec::new(),
            sensor_of: Vec::new(),
            series_index: HashTable::new(),
            free_series: Vec::new(),
            sensor_names: Vec::new(),
            sensor_uses: Vec::new(),
            sensor_index: HashTable::new(),
            free_sensors: Vec::new(),
        }
    }
}

fn series_hash(hasher: &FixedState, device: u32, sensor: u32) -> u64 {
    hasher.hash_one((u64::from(device) << 32) | u64::from(sensor))
}

impl SlotDirectory {
    /// Number of device slots ever in use at once: operators size their device state by it.
    #[must_use]
    pub fn device_slots(&self) -> usize {
        self.device_names.len()
    }

    /// Number of series slots ever in use at once: operators size their series state by it.
    #[must_use]
    pub fn series_slots(&self) -> usize {
        self.device_of.len()
    }

    /// Number of active devices.
    #[must_use]
    pub fn active_devices(&self) -> usize {
        self.device_names.len() - self.free_devices.len()
    }

    /// The slot of an active device.
    #[must_use]
    pub fn find_device(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.device_index.find(hash, |slot| self.device_names[*slot as usize].as_deref() == Some(name)).copied()
    }

    /// The slot of a device, and whether this call activated it.
    pub fn resolve_device(&mut self, name: &str) -> (u32, bool) {
        if let Some(slot) = self.find_device(name) {
            return (slot, false);
        }
        let slot = self.free_devices.pop().unwrap_or_else(|| {
            self.device_names.push(None);
            self.first_series.push(NO_SLOT);
            (self.device_names.len() - 1) as u32
        });
        self.device_names[slot as usize] = Some(Arc::from(name));
        let (hasher, names) = (&self.hasher, &self.device_names);
        self.device_index
            .insert_unique(hasher.hash_one(name), slot, |s| hasher.hash_one(names[*s as usize].as_deref().unwrap_or_default()));
        (slot, true)
    }

    /// The number of a sensor name. It stays valid while a series uses it.
    pub fn resolve_sensor(&mut self, name: &str) -> u32 {
        let hash = self.hasher.hash_one(name);
        if let Some(id) = self.sensor_index.find(hash, |id| &*self.sensor_names[*id as usize] == name) {
            return *id;
        }
        let id = if let Some(id) = self.free_sensors.pop() {
            self.sensor_names[id as usize] = Arc::from(name);
            id
        } else {
            self.sensor_names.push(Arc::from(name));
            self.sensor_uses.push(0);
            (self.sensor_names.len() - 1) as u32
        };
        let (hasher, names) = (&self.hasher, &self.sensor_names);
        self.sensor_index.insert_unique(hash, id, |i| hasher.hash_one(&*names[*i as usize]));
        id
    }

    /// The slot of the series (device slot, sensor number), made if need be.
    pub fn resolve_series(&mut self, device: u32, sensor: u32) -> u32 {
        let mut slot = self.first_series[device as usize];
        for _ in 0..SHORT_LIST {
            if slot == NO_SLOT {
                return self.add_series(device, sensor);
            }
            if self.sensor_of[slot as usize] == sensor {
                return slot;
            }
            slot = self.next_series[slot as usize];
        }
        let hash = series_hash(&self.hasher, device, sensor);
        let found = self.series_index.find(hash, |s| self.device_of[*s as usize] == device && self.sensor_of[*s as usize] == sensor);
        found.copied().unwrap_or_else(|| self.add_series(device, sensor))
    }

    fn add_series(&mut self, device: u32, sensor: u32) -> u32 {
        let slot = self.free_series.pop().unwrap_or_else(|| {
            self.device_of.push(NO_SLOT);
            self.sensor_of.push(0);
            self.next_series.push(NO_SLOT);
            (self.device_of.len() - 1) as u32
        });
        self.device_of[slot as usize] = device;
        self.sensor_of[slot as usize] = sensor;
        self.sensor_uses[sensor as usize] += 1;
        self.next_series[slot as usize] = self.first_series[device as usize];
        self.first_series[device as usize] = slot;
        let (hasher, devices, sensors) = (&self.hasher, &self.device_of, &self.sensor_of);
        let rehash = |s: &u32| series_hash(hasher, devices[*s as usize], sensors[*s as usize]);
        self.series_index.insert_unique(series_hash(hasher, device, sensor), slot, rehash);
        slot
    }

    /// Frees the slots of a device and of its series. The caller has cleared their state.
    pub fn release_device(&mut self, device: u32) {
        let Some(name) = self.device_names[device as usize].take() else { return };
        let mut slot = self.first_series[device as usize];
        while slot != NO_SLOT {
            let sensor = self.sensor_of[slot as usize];
            let hash = series_hash(&self.hasher, device, sensor);
            if let Ok(entry) = self.series_index.find_entry(hash, |s| *s == slot) {
                entry.remove();
            }
            self.release_sensor(sensor);
            self.device_of[slot as usize] = NO_SLOT;
            self.free_series.push(slot);
            slot = std::mem::replace(&mut self.next_series[slot as usize], NO_SLOT);
        }
        self.first_series[device as usize] = NO_SLOT;
        if let Ok(entry) = self.device_index.find_entry(self.hasher.hash_one(&*name), |s| *s == device) {
            entry.remove();
        }
        self.free_devices.push(device);
    }

    fn release_sensor(&mut self, sensor: u32) {
        self.sensor_uses[sensor as usize] -= 1;
        if self.sensor_uses[sensor as usize] > 0 {
            return;
        }
        let hash = self.hasher.hash_one(&*self.sensor_names[sensor as usize]);
        if let Ok(entry) = self.sensor_index.find_entry(hash, |i| *i == sensor) {
            entry.remove();
        }
        self.free_sensors.push(sensor);
    }

    /// Name of an active device; empty for a free slot.
    #[must_use]
    pub fn device_name(&self, device: u32) -> &str {
        self.device_names.get(device as usize).and_then(|n| n.as_deref()).unwrap_or_default()
    }

    /// Sensor name of a series; empty for [`NO_SLOT`] and free slots.
    #[must_use]
    pub fn sensor_name(&self, series: u32) -> &str {
        let active = self.device_of.get(series as usize).is_some_and(|d| *d != NO_SLOT);
        if active { &self.sensor_names[self.sensor_of[series as usize] as usize] } else { "" }
    }

    /// Device slot of a series.
    #[must_use]
    pub fn device_of(&self, series: u32) -> u32 {
        self.device_of.get(series as usize).copied().unwrap_or(NO_SLOT)
    }

    /// Series slots of a device, newest first. Sort by [`Self::sensor_name`] where the order could show in results.
    pub fn series_of(&self, device: u32) -> impl Iterator<Item = u32> + '_ {
        let first = self.first_series.get(device as usize).copied().filter(|s| *s != NO_SLOT);
        std::iter::successors(first, |s| Some(self.next_series[*s as usize]).filter(|n| *n != NO_SLOT))
    }

    /// True when `series` is the one series of `device`.
    #[must_use]
    #[inline]
    pub fn is_only_series(&self, device: u32, series: u32) -> bool {
        let only = self.first_series.get(device as usize) == Some(&series);
        only && self.next_series.get(series as usize) == Some(&NO_SLOT)
    }

    /// Slots of all active devices.
    pub fn devices(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.device_names.len() as u32).filter(|slot| self.device_names[*slot as usize].is_some())
    }

    /// A `device_id` column for the given device slots.
    #[must_use]
    pub fn device_column(&self, devices: &[u32]) -> ArrayRef {
        let ahead = |slot: u32| prefetch(&self.device_names, slot as usize);
        name_column(devices, ahead, |slot| slot, |slot| self.device_name(slot))
    }

    /// A `sensor_id` column for the given series slots; null for [`NO_SLOT`].
    #[must_use]
    pub fn sensor_column(&self, series: &[u32]) -> ArrayRef {
        let ahead = |slot: u32| {
            prefetch(&self.sensor_of, slot as usize);
            prefetch(&self.device_of, slot as usize);
        };
        let sensor = |slot: u32| if self.device_of(slot) == NO_SLOT { NO_SLOT } else { self.sensor_of[slot as usize] };
        name_column(series, ahead, sensor, |slot| self.sensor_name(slot))
    }
}

/// A dictionary column over `slots`; runs of slots with one `entry` share a name. [`NO_SLOT`] is null.
fn name_column<'a>(slots: &[u32], ahead: impl Fn(u32), entry: impl Fn(u32) -> u32, name: impl Fn(u32) -> &'a str) -> ArrayRef {
    let mut values = StringBuilder::with_capacity(slots.len(), slots.len() * 16);
    let mut keys = Vec::with_capacity(slots.len());
    let (mut entries, mut last) = (0, NO_SLOT);
    for (row, slot) in slots.iter().enumerate() {
        if let Some(slot) = slots.get(row + AHEAD) {
            ahead(*slot);
        }
        if *slot != NO_SLOT && (entries == 0 || entry(*slot) != last) {
            values.append_value(name(*slot));
            entries += 1;
            last = entry(*slot);
        }
        keys.push(entries.max(1) - 1);
    }
    let nulls = slots.contains(&NO_SLOT).then(|| NullBuffer::from_iter(slots.iter().map(|slot| *slot != NO_SLOT)));
    let column = DictionaryArray::<UInt32Type>::try_new(UInt32Array::new(keys.into(), nulls), Arc::new(values.finish()));
    Arc::new(column.unwrap_or_else(|_| unreachable!("keys count the values")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_dense_stable_and_reused_blank() {
        let mut slots = SlotDirectory::default();
        let (a, new) = slots.resolve_device("a");
        assert!(new);
        let (b, _) = slots.resolve_device("b");
        assert_eq!((a, b, slots.resolve_device("a")), (0, 1, (0, false)));
        let (t, p) = (slots.resolve_sensor("t"), slots.resolve_sensor("p"));
        let at = slots.resolve_series(a, t);
        let bt = slots.resolve_series(b, t);
        let ap = slots.resolve_series(a, p);
        assert_eq!(slots.resolve_series(a, t), at);
        assert_eq!(slots.series_of(a).collect::<Vec<_>>(), [ap, at]);
        assert_eq!((slots.sensor_name(bt), slots.device_of(bt)), ("t", b));

        slots.release_device(a);
        assert_eq!((slots.device_name(a), slots.sensor_name(at), slots.find_device("a")), ("", "", None));
        assert_eq!(slots.active_devices(), 1);
        let (c, new) = slots.resolve_device("c");
        assert_eq!((c, new), (a, true), "the slot is reused");
        assert_eq!(slots.series_of(c).count(), 0, "and blank");
    }

    #[test]
    fn many_sensors_on_one_device_are_found_by_hash() {
        let mut slots = SlotDirectory::default();
        let (d, _) = slots.resolve_device("d");
        let first: Vec<u32> = (0..1000)
            .map(|i| {
                let s = slots.resolve_sensor(&format!("s{i}"));
                slots.resolve_series(d, s)
            })
            .collect();
        let again: Vec<u32> = (0..1000)
            .map(|i| {
                let s = slots.resolve_sensor(&format!("s{i}"));
                slots.resolve_series(d, s)
            })
            .collect();
        assert_eq!(first, again);
        assert_eq!(slots.series_of(d).count(), 1000);
    }

    #[test]
    fn many_names_through_one_slot_leave_nothing_behind() {
        let mut slots = SlotDirectory::default();
        for i in 0..100_000 {
            let (d, _) = slots.resolve_device(&format!("d{i}"));
            let s = slots.resolve_sensor(&format!("s{i}"));
            slots.resolve_series(d, s);
            slots.release_device(d);
        }
        assert_eq!((slots.device_slots(), slots.series_slots(), slots.sensor_names.len(), slots.series_index.len()), (1, 1, 1, 0));
    }
}
