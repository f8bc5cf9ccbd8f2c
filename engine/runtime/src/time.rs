//! The partition's time: the log's append time as a running maximum, and who has been quiet for how long.

use std::time::Duration;

use fieldstream_engine_api::SlotDirectory;

/// Ticks come this often within `idle_after`, so that a quiet device is closed at most a quarter late.
const TICKS_PER_IDLE: i64 = 4;

/// Append time and last activity of a partition's devices. Moves only by rows (or decisions), never by a clock.
#[derive(Debug)]
pub struct PartitionTime {
    idle_us: Option<i64>,
    granule_us: i64,
    now_us: Option<i64>,
    /// Append time of each device slot's newest row.
    last_seen: Vec<i64>,
}

impl PartitionTime {
    /// Time for a pipeline whose devices are ticked when quiet for `idle_after`; `None`: never.
    #[must_use]
    pub fn new(idle_after: Option<Duration>) -> Self {
        let idle_us = idle_after.map(|d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX).max(1));
        Self { idle_us, granule_us: idle_us.map_or(1, |i| (i / TICKS_PER_IDLE).max(1)), now_us: None, last_seen: Vec::new() }
    }

    /// Moves time to `append_us` if that is later. When it crosses a boundary, gives the boundary and the quiet devices in memory.
    pub fn advance(&mut self, append_us: i64, slots: &SlotDirectory) -> Option<(i64, Vec<u32>)> {
        let before = self.now_us.replace(self.now_us.map_or(append_us, |now| now.max(append_us)));
        let idle = self.idle_us?;
        let boundary = append_us.div_euclid(self.granule_us);
        if boundary <= before?.div_euclid(self.granule_us) {
            return None;
        }
        let time = boundary * self.granule_us;
        let quiet = |slot: &u32| (i64::MIN + 1..=time.saturating_sub(idle)).contains(&self.last_seen(*slot));
        Some((time, slots.devices().filter(quiet).collect()))
    }

    /// Whoever was seen last at this append time or before is quiet at the boundary `time`; `None` when nobody ever is.
    #[must_use]
    pub fn quiet_since(&self, time: i64) -> Option<i64> {
        self.idle_us.map(|idle| time.saturating_sub(idle))
    }

    /// The slot of `device` is free: whoever gets it next has not been seen.
    pub fn forget(&mut self, device: u32) {
        if let Some(seen) = self.last_seen.get_mut(device as usize) {
            *seen = i64::MIN;
        }
    }

    /// A row of `device` was appended at `append_us`.
    pub fn seen(&mut self, device: u32, append_us: i64) {
        let slot = device as usize;
        if slot >= self.last_seen.len() {
            self.last_seen.resize(slot + 1, i64::MIN);
        }
        self.last_seen[slot] = self.last_seen[slot].max(append_us);
    }

    /// The running maximum of append times.
    #[must_use]
    pub fn now_us(&self) -> Option<i64> {
        self.now_us
    }

    /// Sets time and a device's last activity back to what a checkpoint says.
    pub fn restore(&mut self, now_us: Option<i64>) {
        self.now_us = now_us;
    }

    /// Append time of the newest row of a device slot; `i64::MIN` if there was none.
    #[must_use]
    pub fn last_seen(&self, device: u32) -> i64 {
        self.last_seen.get(device as usize).copied().unwrap_or(i64::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_devices_are_ticked_at_boundaries_of_append_time() {
        let mut slots = SlotDirectory::default();
        let (a, _) = slots.resolve_device("a");
        let (b, _) = slots.resolve_device("b");
        let mut time = PartitionTime::new(Some(Duration::from_micros(40)));
        assert_eq!(time.advance(100, &slots), None);
        time.seen(a, 100);
        time.seen(b, 100);
        assert_eq!(time.advance(139, &slots), Some((130, vec![])), "nobody is quiet yet");
        time.seen(b, 139);
        assert_eq!(time.advance(141, &slots), Some((140, vec![a])));
        assert_eq!(time.advance(149, &slots), None, "no boundary");
        assert_eq!(time.advance(120, &slots), None, "time never runs backwards");
        assert_eq!(time.advance(300, &slots), Some((300, vec![a, b])));
    }
}
