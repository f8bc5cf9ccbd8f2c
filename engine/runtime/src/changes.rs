//! Which device actors have changed since the snapshot before: what a delta has to hold.
//!
//! State changes only where a row or a tick names the device, where it comes back from disk, and where it leaves memory. So
//! that is where it is noted. A snapshot that came to nothing leaves its devices changed.

use std::collections::HashSet;
use std::sync::Arc;

use fieldstream_engine_api::SlotDirectory;

/// The device has changed since the last snapshot.
const CHANGED: u8 = 1;
/// A snapshot has held this device under this slot, so some layer may.
const SAVED: u8 = 2;

/// Devices that changed, by slot, and those that left memory, by name.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    marks: Vec<u8>,
    changed: Vec<u32>,
    gone: HashSet<Arc<str>>,
    /// What the last snapshot took, until it is known what became of it.
    taken: Taken,
}

#[derive(Debug, Default)]
struct Taken {
    changed: Vec<u32>,
    gone: HashSet<Arc<str>>,
}

/// What a snapshot has to hold.
#[derive(Debug)]
pub(crate) struct Scope {
    /// Device slots, ascending.
    pub(crate) devices: Vec<u32>,
    /// Names of the devices that left memory; `None`: all devices are in it, so nobody needs to be told.
    pub(crate) gone: Option<Vec<Arc<str>>>,
}

impl Changes {
    /// Rows or a tick came for `devices`, or they came back from disk.
    pub(crate) fn touch(&mut self, devices: &[u32]) {
        for device in devices {
            let slot = *device as usize;
            if slot >= self.marks.len() {
                self.marks.resize(slot + 1, 0);
            }
            if let Some(mark) = self.marks.get_mut(slot).filter(|mark| **mark & CHANGED == 0) {
                *mark |= CHANGED;
                self.changed.push(*device);
            }
        }
    }

    /// The device leaves memory, and its slot becomes free.
    pub(crate) fn leave(&mut self, device: u32, name: &str) {
        let mark = self.marks.get_mut(device as usize).map(std::mem::take).unwrap_or_default();
        if mark & SAVED != 0 {
            self.gone.insert(name.into());
        }
    }

    /// All devices of `slots` are as a checkpoint holds them.
    pub(crate) fn restored(&mut self, slots: &SlotDirectory) {
        *self = Self { marks: vec![0; slots.device_slots()], ..Self::default() };
        slots.devices().for_each(|device| self.mark_saved(device));
    }

    fn mark_saved(&mut self, device: u32) {
        let slot = device as usize;
        if slot >= self.marks.len() {
            self.marks.resize(slot + 1, 0);
        }
        if let Some(mark) = self.marks.get_mut(slot) {
            *mark = SAVED;
        }
    }

    /// What the next snapshot holds, and begins anew. `retake`: the snapshot before came to nothing. `whole`: nothing lies below
    /// it; a delta of more than half of all devices becomes whole, too, since that costs little more and ends the chain.
    pub(crate) fn take(&mut self, slots: &SlotDirectory, retake: bool, whole: bool) -> Scope {
        if retake {
            let Taken { changed, gone } = std::mem::take(&mut self.taken);
            self.touch(&changed);
            self.gone.extend(gone);
        }
        let marks = &mut self.marks;
        // A slot may have been given up and used again, so it is in the list twice; or it is free, and must not look changed to
        // whoever gets it next.
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed.retain(|slot| match marks.get_mut(*slot as usize) {
            Some(mark) if slots.device_name(*slot).is_empty() => {
                *mark = 0;
                false
            }
            mark => mark.is_some_and(|mark| *mark & CHANGED != 0),
        });
        let gone = std::mem::take(&mut self.gone);
        let whole = whole || changed.len() * 2 > slots.active_devices();
        let devices: Vec<u32> = if whole { slots.devices().collect() } else { changed.clone() };
        devices.iter().chain(&changed).for_each(|device| self.mark_saved(*device));
        let names = (!whole).then(|| gone.iter().filter(|name| slots.find_device(name).is_none()).cloned().collect());
        self.taken = Taken { changed, gone };
        Scope { devices, gone: names }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(slots: &mut SlotDirectory, changes: &mut Changes, name: &str) -> u32 {
        let (slot, _) = slots.resolve_device(name);
        changes.touch(&[slot]);
        slot
    }

    fn taken(changes: &mut Changes, slots: &SlotDirectory, retake: bool) -> (Vec<String>, Option<Vec<String>>) {
        let scope = changes.take(slots, retake, false);
        let names = scope.devices.iter().map(|slot| slots.device_name(*slot).to_owned()).collect();
        let sorted = |mut gone: Vec<String>| {
            gone.sort();
            gone
        };
        (names, scope.gone.map(|gone| sorted(gone.iter().map(ToString::to_string).collect())))
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_snapshot_that_failed_leaves_its_devices_changed() {
        let (mut slots, mut changes) = (SlotDirectory::default(), Changes::default());
        for name in ["a", "b", "c", "d", "e", "f", "g"] {
            device(&mut slots, &mut changes, name);
        }
        assert_eq!(taken(&mut changes, &slots, false).1, None, "everybody is new, so it is whole");
        device(&mut slots, &mut changes, "b");
        assert_eq!(taken(&mut changes, &slots, false), (strings(&["b"]), Some(Vec::new())));
        device(&mut slots, &mut changes, "c");
        assert_eq!(taken(&mut changes, &slots, true).0, strings(&["b", "c"]));
        assert_eq!(taken(&mut changes, &slots, false).0, strings(&[]));
    }

    #[test]
    fn who_left_is_named_once_some_layer_may_hold_him() {
        let (mut slots, mut changes) = (SlotDirectory::default(), Changes::default());
        let all: Vec<u32> = ["a", "b", "c", "d", "e", "f", "g"].iter().map(|n| device(&mut slots, &mut changes, n)).collect();
        taken(&mut changes, &slots, false);
        for slot in &all[..2] {
            changes.leave(*slot, slots.device_name(*slot));
            slots.release_device(*slot);
        }
        // One comes back under another's slot, and a new one comes and leaves.
        device(&mut slots, &mut changes, "a");
        let brief = device(&mut slots, &mut changes, "brief");
        changes.leave(brief, "brief");
        slots.release_device(brief);
        assert_eq!(taken(&mut changes, &slots, false), (strings(&["a"]), Some(strings(&["b"]))));
        assert_eq!(taken(&mut changes, &slots, true), (strings(&["a"]), Some(strings(&["b"]))), "it failed");
    }
}
