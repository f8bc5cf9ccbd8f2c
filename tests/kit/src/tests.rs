//! The laws catch what they are for: one honest operator, and the same one broken in five ways.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Float64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, UInt32Type, UInt64Type};
use fieldstream_engine_api::{Edge, Emitter, KeyedBatch, KeyedState, Operator, Output, SlotDirectory, Space, StateError};
use fieldstream_schemas::columns::{DEVICE_ID, VALUE, name_type};

use crate::{Laws, Rig, laws, readings_edge};

#[derive(Clone, Copy, PartialEq)]
enum Defect {
    None,
    SumsBatches,
    ForgetsOnSnapshot,
    CountsOthers,
    KeepsOnClear,
    PanicsOnNan,
    LosesNulls,
}

/// Running count per device of rows with a value.
struct Tally {
    defect: Defect,
    counts: Counts,
    outputs: Vec<Output>,
}

struct Counts {
    defect: Defect,
    by_slot: Vec<u64>,
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(DEVICE_ID, name_type(), false), Field::new("sum", DataType::Float64, true)]))
}

fn tally(defect: Defect) -> Box<dyn Operator> {
    let edge = Edge { schema: schema(), key: Space::Device };
    let outputs = vec![Output { name: "".into(), edge }];
    Box::new(Tally { defect, counts: Counts { defect, by_slot: Vec::new() }, outputs })
}

impl Operator for Tally {
    fn space(&self) -> Space {
        Space::Device
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) {
        let values = batch.rows.column_by_name(VALUE).unwrap().as_primitive::<Float64Type>();
        let mut result = Vec::new();
        for (row, slot) in batch.keys.device.iter().enumerate() {
            if self.defect == Defect::PanicsOnNan {
                assert!(!values.value(row).is_nan());
            }
            self.counts.by_slot[*slot as usize] += 1;
            let others = if self.defect == Defect::CountsOthers { self.counts.by_slot[0] } else { 0 };
            let batches = if self.defect == Defect::SumsBatches { batch.len() as u64 } else { 0 };
            result.push((self.counts.by_slot[*slot as usize] + others + batches) as f64);
        }
        let columns = vec![slots.device_column(&batch.keys.device), Arc::new(Float64Array::from(result)) as _];
        let rows = batch.with_rows(RecordBatch::try_new(schema(), columns).unwrap());
        if self.defect == Defect::LosesNulls && values.null_count() > 0 {
            return;
        }
        out.forward(0, rows);
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.counts]
    }
}

impl KeyedState for Counts {
    fn space(&self) -> Space {
        Space::Device
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        self.by_slot.resize(slots.max(self.by_slot.len()), 0);
    }

    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let counts = slots.iter().map(|s| if self.defect == Defect::ForgetsOnSnapshot { 0 } else { self.by_slot[*s as usize] });
        let schema = Schema::new(vec![Field::new("slot", DataType::UInt32, false), Field::new("count", DataType::UInt64, false)]);
        let columns = vec![Arc::new(UInt32Array::from(slots.to_vec())) as _, Arc::new(counts.collect::<UInt64Array>()) as _];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let (slots, counts) = (rows.column(0).as_primitive::<UInt32Type>(), rows.column(1).as_primitive::<UInt64Type>());
        for (slot, count) in slots.values().iter().zip(counts.values()) {
            self.by_slot[*slot as usize] = *count;
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        if self.defect != Defect::KeepsOnClear {
            slots.iter().for_each(|slot| self.by_slot[*slot as usize] = 0);
        }
    }

    fn bytes(&self) -> usize {
        self.by_slot.capacity() * 8
    }
}

fn broken_law(defect: Defect) -> Option<String> {
    let result = std::panic::catch_unwind(|| laws(|| tally(defect), &Laws { cases: 16, ..Laws::default() }));
    result.err().map(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn an_honest_operator_passes() {
    assert_eq!(broken_law(Defect::None), None);
}

#[test]
fn every_defect_breaks_its_law() {
    for (defect, law) in [
        (Defect::SumsBatches, "split"),
        (Defect::ForgetsOnSnapshot, "replay"),
        (Defect::CountsOthers, "isolation"),
        (Defect::KeepsOnClear, "passivation"),
        (Defect::PanicsOnNan, "is_nan"),
        (Defect::LosesNulls, "balance"),
    ] {
        let told = broken_law(defect).unwrap_or_default();
        assert!(told.contains(law), "expected {law}, was told: {told}");
    }
}

#[test]
fn a_turn_is_a_picture() {
    let mut rig = Rig::new(tally(Defect::None));
    assert_eq!(readings_edge().key, Space::Series);
    let expected = "[out]\ndevice_id  sum\na          1\nb          1\na          2\ncounts: received 3 forwarded 3\n";
    assert_eq!(rig.feed("device ts\n a 0\n b 0\n a 1").picture(&[]), expected);
    let parked = rig.passivate("a").unwrap();
    assert!(rig.feed("device ts\n c 0").picture(&["sum"]).starts_with("[out]\nsum\n1\n"), "a reused slot is blank");
    rig.activate(&parked);
    assert!(rig.feed("device ts\n a 2").picture(&["sum"]).starts_with("[out]\nsum\n3\n"), "state comes back");
    assert_eq!(rig.total().received, 5);
}
