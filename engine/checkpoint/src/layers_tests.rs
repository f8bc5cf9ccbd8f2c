//! Layers over layers equal the whole: by picture, and as a property over random histories with failures and merges.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{Int64Type, UInt32Type};
use fieldstream_engine_api::{LogId, Mark, PartitionKey, SlotDirectory};
use object_store::memory::InMemory;
use proptest::prelude::*;

use super::*;
use crate::tables::slot_tables;
use crate::{CheckpointData, CheckpointStore, Layer};

/// Value of each (device, sensor).
type Model = BTreeMap<(String, String), i64>;

fn values(slots: Vec<u32>, values: Vec<i64>) -> RecordBatch {
    let slots: ArrayRef = Arc::new(UInt32Array::from(slots));
    RecordBatch::try_from_iter([("slot", slots), ("value", Arc::new(Int64Array::from(values)) as ArrayRef)]).unwrap()
}

/// A snapshot of `devices` (all of the model: whole): one state by series, one by device, which holds the sum.
fn snapshot(model: &Model, slots: &SlotDirectory, devices: &[u32], gone: Option<Vec<String>>, at: u64) -> CheckpointData {
    let series: Vec<u32> = devices.iter().flat_map(|d| slots.series_of(*d)).collect();
    let value = |s: &u32| model[&(slots.device_name(slots.device_of(*s)).to_owned(), slots.sensor_name(*s).to_owned())];
    let sum = |d: &u32| slots.series_of(*d).map(|s| value(&s)).sum();
    let state = |space, rows| StateTable { node: "n".into(), state: 0, space, layout: 1, rows };
    let mut tables = Vec::from(slot_tables(slots, devices, &series));
    let delta = gone.is_some();
    tables.extend(gone.map(|gone| gone_table(gone.iter().map(String::as_str))));
    tables.push(Table { name: "activity".into(), rows: values(devices.to_vec(), devices.iter().map(sum).collect()) });
    let states = vec![
        state(Space::Series, values(series.clone(), series.iter().map(value).collect())),
        state(Space::Device, values(devices.to_vec(), devices.iter().map(sum).collect())),
    ];
    let at = Mark { next_offset: at, next_decision: 0 };
    let extras = serde_json::Value::Null;
    CheckpointData { at, plan_digest: String::new(), tables, states, cold: Vec::new(), absent: 0, delta, extras }
}

fn pairs(rows: &RecordBatch) -> impl Iterator<Item = (u32, i64)> {
    let (slots, values) = (rows.column(0).as_primitive::<UInt32Type>(), rows.column(1).as_primitive::<Int64Type>());
    slots.values().iter().copied().zip(values.values().iter().copied()).collect::<Vec<_>>().into_iter()
}

/// What the tables say, by name; panics when activity, sums and series do not agree.
fn model_of(tables: &[Table], states: &[StateTable]) -> Model {
    let table = |name: &str| &tables.iter().find(|t| t.name == name).unwrap().rows;
    let mut slots = SlotDirectory::default();
    let moved = crate::tables::restore_slots(table(DEVICES), table(SERIES), &mut slots).unwrap();
    let now = |pairs: &[(u32, u32)], slot: u32| pairs[pairs.binary_search_by_key(&slot, |p| p.0).unwrap()].1;
    let (mut model, mut sums) = (Model::new(), BTreeMap::new());
    for state in states {
        for (slot, value) in pairs(&state.rows) {
            if state.space == Space::Series {
                let series = now(&moved.series, slot);
                let name = slots.device_name(slots.device_of(series)).to_owned();
                assert!(model.insert((name, slots.sensor_name(series).to_owned()), value).is_none(), "a series is there twice");
            } else {
                assert!(sums.insert(now(&moved.devices, slot), value).is_none(), "a device is there twice");
            }
        }
    }
    let active: BTreeMap<u32, i64> = pairs(table("activity")).map(|(slot, value)| (now(&moved.devices, slot), value)).collect();
    assert_eq!(active, sums);
    for (device, sum) in sums {
        let own: i64 = model.iter().filter(|((name, _), _)| name == slots.device_name(device)).map(|(_, value)| value).sum();
        assert_eq!(own, sum, "{}", slots.device_name(device));
    }
    model
}

#[derive(Clone, Debug)]
enum Op {
    Touch(u8, u8, i64),
    Leave(u8),
    /// A snapshot that becomes a checkpoint, or does not; whole or not.
    Snapshot {
        kept: bool,
        whole: bool,
    },
    Restore,
    Prune,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0..12_u8, 0..3_u8, any::<i32>()).prop_map(|(d, s, v)| Op::Touch(d, s, i64::from(v))),
        2 => (0..12_u8).prop_map(Op::Leave),
        5 => (prop::bool::weighted(0.8), prop::bool::weighted(0.1)).prop_map(|(kept, whole)| Op::Snapshot { kept, whole }),
        1 => Just(Op::Restore),
        1 => Just(Op::Prune),
    ];
    prop::collection::vec(op, 1..120)
}

/// A partition as the runtime would keep it, and what the newest checkpoint must give back.
#[derive(Default)]
struct Player {
    model: Model,
    slots: SlotDirectory,
    changed: BTreeSet<String>,
    gone: BTreeSet<String>,
    layers: Vec<Layer>,
    saved: Model,
}

impl Player {
    fn touch(&mut self, device: String, sensor: String, value: i64) {
        let (slot, _) = self.slots.resolve_device(&device);
        let number = self.slots.resolve_sensor(&sensor);
        self.slots.resolve_series(slot, number);
        self.changed.insert(device.clone());
        self.model.insert((device, sensor), value);
    }

    fn leave(&mut self, device: &str) {
        if let Some(slot) = self.slots.find_device(device) {
            self.slots.release_device(slot);
            self.model.retain(|(name, _), _| name != device);
            self.gone.insert(device.to_owned());
        }
    }

    fn snapshot(&self, whole: bool, at: u64) -> CheckpointData {
        let all = self.slots.devices();
        if whole || self.layers.is_empty() {
            return snapshot(&self.model, &self.slots, &all.collect::<Vec<_>>(), None, at);
        }
        let changed: Vec<u32> = all.filter(|d| self.changed.contains(self.slots.device_name(*d))).collect();
        let gone = self.gone.iter().filter(|name| self.slots.find_device(name).is_none()).cloned().collect();
        snapshot(&self.model, &self.slots, &changed, Some(gone), at)
    }

    /// Goes on from what was restored, under other slot numbers.
    fn restored(&mut self, data: &CheckpointData, layers: Vec<Layer>) {
        let model = model_of(&data.tables, &data.states);
        assert_eq!(model, self.saved);
        *self = Self { layers, saved: model.clone(), ..Self::default() };
        for ((device, sensor), value) in model.into_iter().rev() {
            self.touch(device, sensor, value);
        }
        self.changed.clear();
    }
}

async fn play(ops: Vec<Op>) {
    let key = PartitionKey { pipeline: "p".into(), log_id: LogId("l".into()), partition: 0 };
    let store = CheckpointStore::open_remote(Arc::new(InMemory::new())).await.unwrap().partition(&key);
    let mut generation = store.claim().await.unwrap().generation;
    store.adopt(generation, &store.lineage().await.unwrap(), None, 0).await.unwrap();
    let (mut player, mut number) = (Player::default(), 0);
    for op in ops.into_iter().chain([Op::Snapshot { kept: true, whole: false }, Op::Prune, Op::Restore]) {
        match op {
            Op::Touch(device, sensor, value) => player.touch(format!("d{device}"), format!("s{sensor}"), value),
            Op::Leave(device) => player.leave(&format!("d{device}")),
            Op::Snapshot { kept, whole } => {
                let data = player.snapshot(whole, number);
                let pending = store.write(generation, number, &data, &player.layers).await.unwrap();
                number += 1;
                if kept {
                    store.commit(&pending).await.unwrap();
                    player.layers = pending.layers().to_vec();
                    player.saved = player.model.clone();
                    player.changed.clear();
                    player.gone.clear();
                }
            }
            Op::Prune => store.prune(generation, 2).await.unwrap(),
            Op::Restore => {
                generation = store.claim().await.unwrap().generation;
                let restored = store.latest(None).await.unwrap();
                assert!(restored.notes.is_empty(), "{:?}", restored.notes);
                store.adopt(generation, &store.lineage().await.unwrap(), restored.checkpoint.as_ref().map(|c| c.id), 0).await.unwrap();
                match restored.checkpoint {
                    Some(checkpoint) => player.restored(&checkpoint.data, restored.layers),
                    None => player = Player::default(),
                }
                number = 0;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_layers_restores_the_whole(ops in ops()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(play(ops));
    }

    #[test]
    fn a_chain_stays_short_and_its_base_is_not_written_for_every_delta(deltas in prop::collection::vec(1..1000_u64, 1..300)) {
        let (mut chain, mut written, mut whole) = (vec![1_000_000_u64], 0, 0);
        for delta in &deltas {
            chain.push(*delta);
            if let Some(first) = merge_from(&chain) {
                let merged: u64 = chain.split_off(first).iter().sum();
                written += merged;
                whole += u32::from(first == 0);
                chain.push(merged);
            }
            prop_assert!(chain.len() <= MOST_LAYERS);
            prop_assert!(chain.iter().skip(1).sum::<u64>() < chain[0]);
        }
        prop_assert_eq!(whole, 0, "the deltas together are smaller than the base");
        prop_assert!(written <= deltas.iter().sum::<u64>() * 40, "{} written for {}", written, deltas.iter().sum::<u64>());
    }
}

#[test]
fn a_layer_that_merges_two_deltas_still_says_who_is_gone() {
    let mut player = Player::default();
    for name in ["a", "b", "c"] {
        player.touch(name.into(), "s".into(), 1);
    }
    let layer = |data: &CheckpointData| Tables { tables: data.tables.clone(), states: data.states.clone() };
    let base = layer(&player.snapshot(true, 0));
    let delta = |player: &Player, changed: &[&str], gone: &[&str]| {
        let slots: Vec<u32> = changed.iter().filter_map(|name| player.slots.find_device(name)).collect();
        layer(&snapshot(&player.model, &player.slots, &slots, Some(gone.iter().map(|g| (*g).to_owned()).collect()), 0))
    };
    player.leave("a");
    player.leave("b");
    let first = delta(&player, &[], &["a", "b"]);
    player.touch("b".into(), "t".into(), 7);
    let second = delta(&player, &["b"], &[]);
    let merged = overlay(&[first.clone(), second.clone()], false).unwrap();
    let gone = text(merged.table(GONE).unwrap(), "device_id").unwrap();
    assert_eq!(gone.iter().flatten().collect::<Vec<_>>(), ["a"]);
    let expected: Model = [(("b", "t"), 7), (("c", "s"), 1)].map(|((d, s), v)| ((d.to_owned(), s.to_owned()), v)).into();
    for layers in [vec![base.clone(), first, second], vec![base, merged]] {
        let whole = overlay(&layers, true).unwrap();
        assert!(whole.table(GONE).is_none());
        assert_eq!(model_of(&whole.tables, &whole.states), expected);
    }
}
