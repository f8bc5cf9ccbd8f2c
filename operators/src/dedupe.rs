//! `dedupe`: forgets rows it has seen lately. Each slot keeps a ring of 64-bit hashes of its last distinct rows, so memory is
//! bounded, and a repeat older than the ring passes. Two different rows of one ring are taken for one with a chance of about
//! `last` in 2^64.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType, UInt8Type, UInt32Type, UInt64Type};
use fieldstream_engine_api::{
    BuildContext, Built, ConfigError, ConfigErrors, Edge, Emitter, KeyedBatch, KeyedState, Operator, OperatorKind, Output, SlotDirectory,
    Space, StateError,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::expr::keep;
use crate::options::{self, column_called};
use crate::state::{numbers, slot_batch};

/// Its line in the catalogue.
pub const KIND: OperatorKind = OperatorKind {
    name: "dedupe",
    about: "Forgets rows that were seen lately.",
    rejects: false,
    schema: options::schema::<DedupeOptions>,
    build,
};

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DedupeSpace {
    /// Each series remembers by itself.
    Series,
    /// All rows of a device share one memory.
    Device,
}

/// Options of `dedupe`. Memory is `8 * last` bytes a series (or device) at most.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupeOptions {
    /// Columns that make two rows the same, by default `[sensor_id, ts]`. The device always counts.
    #[serde(default = "default_by")]
    pub by: Vec<String>,
    /// How many distinct rows are remembered, 1 to 65536.
    #[serde(default = "default_last")]
    pub last: usize,
    /// Whose memory it is; by default `series`, or `device` for rows that have no series.
    pub space: Option<DedupeSpace>,
}

fn default_by() -> Vec<String> {
    vec!["sensor_id".to_owned(), "ts".to_owned()]
}

fn default_last() -> usize {
    64
}

const LAST_MAX: usize = 65_536;

/// The last hashes of a slot; `next` is where the oldest lies once the ring is full.
#[derive(Clone, Debug, Default)]
struct Ring {
    hashes: Vec<u64>,
    next: usize,
}

impl Ring {
    /// True if `hash` is new; it is remembered then.
    fn insert(&mut self, hash: u64, last: usize) -> bool {
        if self.hashes.contains(&hash) {
            return false;
        }
        if self.hashes.len() < last {
            self.hashes.push(hash);
        } else {
            self.hashes[self.next] = hash;
            self.next = (self.next + 1) % last;
        }
        true
    }

    /// Oldest first.
    fn in_order(&self) -> impl Iterator<Item = u64> + '_ {
        let (newer, older) = self.hashes.split_at(self.next);
        older.iter().chain(newer).copied()
    }
}

struct Rings {
    space: Space,
    last: usize,
    rings: Vec<Ring>,
}

impl Rings {
    fn at(&mut self, slot: u32) -> &mut Ring {
        let index = slot as usize;
        if index >= self.rings.len() {
            self.rings.resize(index + 1, Ring::default());
        }
        &mut self.rings[index]
    }
}

impl KeyedState for Rings {
    fn space(&self) -> Space {
        self.space
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        if slots > self.rings.len() {
            self.rings.resize(slots, Ring::default());
        }
    }

    /// One row per hash, oldest first within a slot.
    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let kept = slots.iter().filter_map(|slot| self.rings.get(*slot as usize).map(|ring| (*slot, ring)));
        let (slots, hashes): (Vec<u32>, Vec<u64>) = kept.flat_map(|(slot, ring)| ring.in_order().map(move |hash| (slot, hash))).unzip();
        slot_batch(slots, vec![("hash", Arc::new(UInt64Array::from(hashes)) as ArrayRef)])
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let (slots, hashes) = (numbers::<UInt32Type>(rows, "slot")?, numbers::<UInt64Type>(rows, "hash")?);
        let last = self.last;
        for (slot, hash) in slots.iter().zip(hashes) {
            // Inserting in order also fits a ring whose `last` has shrunk since.
            self.at(*slot).insert(*hash, last);
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        for slot in slots {
            if let Some(ring) = self.rings.get_mut(*slot as usize) {
                *ring = Ring::default();
            }
        }
    }

    fn bytes(&self) -> usize {
        self.rings.capacity() * size_of::<Ring>() + self.rings.iter().map(|r| r.hashes.capacity() * 8).sum::<usize>()
    }
}

struct Dedupe {
    by: Vec<usize>,
    state: Rings,
    outputs: [Output; 1],
}

fn build(value: &Value, input: &Edge, _context: &BuildContext) -> Built<Box<dyn Operator>> {
    let options: DedupeOptions = options::parse(value)?;
    let mut errors = ConfigErrors::new();
    let mut by = Vec::new();
    for (number, name) in options.by.iter().enumerate() {
        let path = format!("/by/{number}");
        match column_called(&input.schema, name) {
            Ok(index) if hashable(input.schema.field(index).data_type()) => by.push(index),
            Ok(_) => errors.push(ConfigError::new(path, format!("rows cannot be compared by `{name}`"))),
            Err(error) => errors.push(error.under(&path)),
        }
    }
    if options.by.is_empty() {
        errors.push(ConfigError::new("/by", "there is no column").hint("for example [sensor_id, ts]"));
    }
    if options.last == 0 || options.last > LAST_MAX {
        errors.push(ConfigError::new("/last", format!("must be 1 to {LAST_MAX}")));
    }
    let space = match options.space {
        None => input.key,
        Some(DedupeSpace::Device) => Space::Device,
        Some(DedupeSpace::Series) => Space::Series,
    };
    if space == Space::Series && input.key != Space::Series {
        errors.push(ConfigError::new("/space", "these rows have no series").hint("write `space: device`"));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let state = Rings { space, last: options.last, rings: Vec::new() };
    Ok(Box::new(Dedupe { by, state, outputs: [Output { name: "".into(), edge: input.clone() }] }))
}

fn hashable(data_type: &DataType) -> bool {
    match data_type {
        DataType::Float64 | DataType::Int64 | DataType::Boolean | DataType::Utf8 | DataType::Timestamp(..) => true,
        DataType::Dictionary(key, values) => matches!(**key, DataType::UInt8 | DataType::UInt32) && **values == DataType::Utf8,
        _ => false,
    }
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). Ours, and not a
/// library's, because hashes live in snapshots and must never change.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash_text(text: &str) -> u64 {
    let (words, rest) = text.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let start = text.len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    words.iter().chain([&last]).fold(start, |hash, word| mix(hash.rotate_left(5) ^ u64::from_le_bytes(*word)))
}

fn hash_number(number: f64) -> u64 {
    // -0 equals 0, and every NaN is the same.
    mix(if number.is_nan() { f64::NAN.to_bits() } else { (number + 0.0).to_bits() })
}

/// Adds a column to the hashes of its rows.
fn add_column(column: &ArrayRef, hashes: &mut [u64]) {
    let mut add = |of: &dyn Fn(usize) -> u64| {
        for (row, hash) in hashes.iter_mut().enumerate() {
            let value = if column.is_null(row) { 1 } else { of(row) };
            *hash = mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ value);
        }
    };
    match column.data_type() {
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>();
            add(&|row| hash_number(values.value(row)));
        }
        DataType::Int64 => {
            let values = column.as_primitive::<Int64Type>();
            add(&|row| mix(values.value(row) as u64));
        }
        DataType::Timestamp(..) => {
            let Some(values) = column.as_primitive_opt::<TimestampMicrosecondType>() else { return };
            add(&|row| mix(values.value(row) as u64));
        }
        DataType::Boolean => {
            let values = column.as_boolean();
            add(&|row| mix(u64::from(values.value(row)) + 2));
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            add(&|row| hash_text(values.value(row)));
        }
        DataType::Dictionary(key, _) => {
            let dictionary = column.as_any_dictionary();
            let names: Vec<u64> = dictionary.values().as_string::<i32>().iter().map(|n| n.map_or(1, hash_text)).collect();
            if **key == DataType::UInt8 {
                let keys = column.as_dictionary::<UInt8Type>().keys();
                add(&|row| names[keys.value(row) as usize]);
            } else {
                let keys = column.as_dictionary::<UInt32Type>().keys();
                add(&|row| names[keys.value(row) as usize]);
            }
        }
        _ => {}
    }
}

impl Operator for Dedupe {
    fn space(&self) -> Space {
        self.state.space
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _slots: &SlotDirectory, out: &mut Emitter) {
        let mut hashes = vec![0; batch.len()];
        for column in &self.by {
            add_column(batch.rows.column(*column), &mut hashes);
        }
        let slots = if self.state.space == Space::Series { &batch.keys.series } else { &batch.keys.device };
        let last = self.state.last;
        let mask = BooleanBuffer::collect_bool(batch.len(), |row| self.state.at(slots[row]).insert(hashes[row], last));
        out.deduplicate(batch.len() - mask.count_set_bits());
        out.forward(0, keep(batch, &BooleanArray::new(mask, None)));
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.state]
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use fieldstream_testkit::{Rig, context, readings_edge};
    use serde_json::json;

    use super::*;

    fn rig(options: &Value) -> Rig {
        Rig::new(build(options, &readings_edge(), &context()).unwrap())
    }

    #[test]
    fn a_row_seen_lately_is_forgotten() {
        let mut rig = rig(&json!({"last": 2}));
        let turn =
            rig.feed("device sensor ts value\n a t 0 1\n a t 0 2\n a p 0 3\n b t 0 4\n a t 1 5\n a t 0 6\n a t 2 7\n a t 0 8\n a t 2 9");
        expect![[r#"
            [out]
            device_id  sensor_id  ts  value
            a          t          0   1
            a          p          0   3
            b          t          0   4
            a          t          1   5
            a          t          2   7
            a          t          0   8
            counts: received 9 forwarded 6 deduplicated 3
        "#]]
        .assert_eq(&turn.picture(&["device_id", "sensor_id", "ts", "value"]));
    }

    #[test]
    fn a_device_can_remember_for_all_its_sensors() {
        let mut rig = rig(&json!({"by": ["ts", "value"], "space": "device"}));
        let turn = rig.feed("device sensor ts value\n a t 0 -0.0\n a p 0 0\n a p 0 -\n a t 0 -\n a t 0 1\n b t 0 1");
        expect![[r#"
            [out]
            device_id  sensor_id  ts  value
            a          t          0   -0
            a          p          0   -
            a          t          0   1
            b          t          0   1
            counts: received 6 forwarded 4 deduplicated 2
        "#]]
        .assert_eq(&turn.picture(&["device_id", "sensor_id", "ts", "value"]));
    }

    #[test]
    fn memory_is_bounded() {
        let mut rig = rig(&json!({"last": 64}));
        let picture: String = (0..10_000).map(|n| format!("\n a {n} 1")).collect();
        rig.feed(&format!("device ts value{picture}"));
        assert_eq!(rig.total().forwarded, 10_000);
        assert!(rig.state_bytes() <= 64 * 8 + 4 * size_of::<Ring>(), "{}", rig.state_bytes());
    }

    #[test]
    fn hashes_never_change_because_snapshots_hold_them() {
        let mut hashes = [0];
        let rows = fieldstream_testkit::text::readings("device ts value\n a 0 1.5");
        rows.columns().iter().for_each(|c| add_column(c, &mut hashes));
        let all = [hash_text(""), hash_text("temperature"), hash_number(1.5), hashes[0]];
        expect!["[bcc9b8440aab3c68, af707bd5b0e83efc, e72b41d4576e3468, 2f6d165beb0f9980]"].assert_eq(&format!("{all:x?}"));
    }

    #[test]
    fn mistakes_have_a_place() {
        let told = |options| {
            let errors = build(&options, &readings_edge(), &context()).err().unwrap();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let all = [told(json!({"by": ["sensor", "ts"], "last": 0})), told(json!({"by": []})), told(json!({"space": "serie"}))].join("\n");
        expect![[r#"
            /by/0: there is no column `sensor` (did you mean `sensor_id`?)
            /last: must be 1 to 65536
            /by: there is no column (for example [sensor_id, ts])
            /space: unknown name `serie` (did you mean `series`?)"#]]
        .assert_eq(&all);
    }
}
