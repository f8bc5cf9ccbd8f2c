//! The event-time clock of every device, as one operator has seen it.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt32Type};
use fieldstream_engine_api::{KeyedState, Space, StateError, prefetch};

/// One device's clock. Aligned so that it lies in one cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(16))]
pub(super) struct Clock {
    /// Highest event time seen minus the bound of disorder; never goes backwards. `i64::MIN` before the first row.
    pub(super) now: i64,
    /// When one of the device's windows must be closed or forgotten next; `i64::MAX` for never.
    pub(super) due: i64,
}

const BLANK: Clock = Clock { now: i64::MIN, due: i64::MAX };

/// Clocks by device slot.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    by_slot: Vec<Clock>,
}

impl Clocks {
    /// The clock of a device slot. The runtime grows state before it uses a slot.
    #[inline]
    pub(super) fn get(&mut self, device: u32) -> Option<&mut Clock> {
        self.by_slot.get_mut(device as usize)
    }

    /// All clocks, by device slot.
    pub(super) fn all(&mut self) -> &mut [Clock] {
        &mut self.by_slot
    }

    /// Asks for the clock of a device that a later row needs.
    #[inline]
    pub(super) fn prefetch(&self, device: u32) {
        prefetch(&self.by_slot, device as usize);
    }
}

fn schema() -> Schema {
    Schema::new(vec![
        Field::new("slot", DataType::UInt32, false),
        Field::new("now", DataType::Int64, false),
        Field::new("due", DataType::Int64, false),
    ])
}

impl KeyedState for Clocks {
    fn space(&self) -> Space {
        Space::Device
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        if slots > self.by_slot.len() {
            self.by_slot.resize(slots, BLANK);
        }
    }

    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let rows: Vec<(u32, Clock)> =
            slots.iter().filter_map(|s| self.by_slot.get(*s as usize).map(|c| (*s, *c))).filter(|(_, c)| *c != BLANK).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1.now))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1.due))),
        ];
        RecordBatch::try_new(Arc::new(schema()), columns).unwrap_or_else(|_| unreachable!("columns are made by the schema"))
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        if rows.schema_ref().fields() != schema().fields() {
            return Err(StateError::Columns(format!("clocks are slot, now, due; found {:?}", rows.schema_ref().fields())));
        }
        let slots = rows.column(0).as_primitive::<UInt32Type>();
        let (now, due) = (rows.column(1).as_primitive::<Int64Type>(), rows.column(2).as_primitive::<Int64Type>());
        for (row, slot) in slots.values().iter().enumerate() {
            let len = self.by_slot.len();
            let clock = self.by_slot.get_mut(*slot as usize).ok_or_else(|| StateError::Columns(format!("slot {slot} of {len}")))?;
            *clock = Clock { now: now.value(row), due: due.value(row) };
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        for slot in slots {
            if let Some(clock) = self.by_slot.get_mut(*slot as usize) {
                *clock = BLANK;
            }
        }
    }

    fn bytes(&self) -> usize {
        self.by_slot.capacity() * size_of::<Clock>()
    }
}
