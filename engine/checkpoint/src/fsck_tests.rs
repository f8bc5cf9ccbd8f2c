//! Tests of fsck: every file that is damaged is named, what is garbage goes, and afterwards the partition starts.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use fieldstream_engine_api::{Generation, LogId, Mark, PartitionKey, Position, SlotDirectory, Space};
use tempfile::TempDir;

use super::*;
use crate::tables::{gone_table, slot_tables};
use crate::{CheckpointData, Decision, StateTable};

fn key() -> PartitionKey {
    PartitionKey { pipeline: "p".into(), log_id: LogId("l".into()), partition: 0 }
}

/// Devices `names`, each with a number; a delta when `gone` is given.
fn data(at: u64, names: &[&str], gone: Option<&[&str]>) -> CheckpointData {
    let mut slots = SlotDirectory::default();
    let devices: Vec<u32> = names.iter().map(|name| slots.resolve_device(name).0).collect();
    let mut tables = Vec::from(slot_tables(&slots, &devices, &[]));
    tables.extend(gone.map(|gone| gone_table(gone.iter().copied())));
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(devices.iter().map(|_| at as i64)));
    let slot: ArrayRef = Arc::new(arrow::array::UInt32Array::from(devices));
    let rows = RecordBatch::try_from_iter([("slot", slot), ("n", numbers)]).unwrap();
    let states = vec![StateTable { node: "n".into(), state: 0, space: Space::Device, layout: 1, rows }];
    let at = Mark { next_offset: at, next_decision: at / 10 };
    let (plan_digest, extras) = (String::new(), serde_json::Value::Null);
    CheckpointData { at, plan_digest, tables, states, cold: Vec::new(), absent: 0, delta: gone.is_some(), extras }
}

/// A base and three deltas in three checkpoints, with a decision before each, a savepoint and an owner.
async fn filled(dir: &TempDir) -> (PartitionStore, Generation) {
    let store = CheckpointStore::open(dir.path()).await.unwrap().partition(&key());
    let generation = store.claim().await.unwrap().generation;
    store.adopt(generation, &store.lineage().await.unwrap(), None, 0).await.unwrap();
    let mut layers = Vec::new();
    for n in 0..4 {
        let decision = Decision { position: Position::new(n * 10, 0), kind: "tick".into(), payload: serde_json::Value::Null };
        store.append_decision(generation, n, &decision).await.unwrap();
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let data = if n == 0 { data(0, &names, None) } else { data(n * 10, &names[..1], Some(&[])) };
        let pending = store.write(generation, n, &data, &layers).await.unwrap();
        layers = pending.layers().to_vec();
        let id = store.commit(&pending).await.unwrap();
        if n == 1 {
            store.label("kept", id).await.unwrap();
        }
    }
    (store, generation)
}

fn files(dir: &TempDir) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.path().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.retain(|path| !path.ends_with("lock"));
    found.sort();
    found
}

#[tokio::test]
async fn what_is_sound_has_no_findings() {
    let dir = TempDir::new().unwrap();
    let (store, _) = filled(&dir).await;
    let checked = store.fsck(Repair::No).await.unwrap();
    assert_eq!((checked.findings.len(), checked.usable.as_deref(), checked.checkpoints), (0, Some("1-3"), 4), "{checked:?}");
    assert!(CheckpointStore::look(dir.path()).unwrap().leftovers(Repair::No).await.unwrap().is_empty());
}

#[tokio::test]
async fn damage_of_every_file_is_found() {
    let dir = TempDir::new().unwrap();
    let (store, _) = filled(&dir).await;
    for path in files(&dir) {
        let whole = fs::read(&path).unwrap();
        // That the checksums find a change at every byte is tested where they are made.
        for at in [0, whole.len() / 3, whole.len().saturating_sub(1)] {
            if whole.is_empty() {
                continue;
            }
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            for damaged in [&flipped[..], &whole[..at]] {
                fs::write(&path, damaged).unwrap();
                let checked = store.fsck(Repair::No).await.unwrap();
                assert!(checked.is_damaged(), "{} byte {at}", path.display());
            }
        }
        fs::write(&path, whole).unwrap();
    }
    assert!(!store.fsck(Repair::No).await.unwrap().is_damaged());
}

/// The next start: what it begins from, and how many decisions it replays.
async fn start(store: &PartitionStore) -> Result<(u64, usize), StoreError> {
    let generation = store.claim().await?.generation;
    let restored = store.latest(None).await?;
    let at = restored.checkpoint.as_ref().map(|c| c.data.at).unwrap_or_default();
    let decisions = store.decisions_from(at.next_decision).await?;
    store.adopt(generation, &restored.lineage, restored.checkpoint.map(|c| c.id), at.next_decision + decisions.len() as u64).await?;
    store
        .append_decision(
            generation,
            at.next_decision + decisions.len() as u64,
            &Decision { position: Position::new(at.next_offset, 0), kind: "tick".into(), payload: serde_json::Value::Null },
        )
        .await?;
    Ok((at.next_offset, decisions.len()))
}

#[tokio::test]
async fn after_a_repair_with_loss_the_partition_starts_whatever_was_damaged() {
    let whole = TempDir::new().unwrap();
    drop(filled(&whole).await);
    let names: Vec<PathBuf> = files(&whole).iter().map(|path| path.strip_prefix(whole.path()).unwrap().to_owned()).collect();
    for victim in names.iter().map(|name| vec![name.clone()]).chain([names.clone()]) {
        let dir = TempDir::new().unwrap();
        for name in &names {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::copy(whole.path().join(name), dir.path().join(name)).unwrap();
        }
        for name in &victim {
            fs::write(dir.path().join(name), "damaged").unwrap();
        }
        let alone = CheckpointStore::open_alone(dir.path()).unwrap();
        let checked = alone.partition(&key()).fsck(Repair::AcceptLoss).await.unwrap();
        assert!(!checked.findings.is_empty(), "{victim:?}");
        let again = alone.partition(&key()).fsck(Repair::AcceptLoss).await.unwrap();
        let left: Vec<&Finding> = again.findings.iter().filter(|f| f.repaired.is_some()).collect();
        assert!(
            left.iter().all(|f| f.kind == Kind::Leftover || f.what.contains("missing") || f.what.contains("after")),
            "{victim:?}: {left:?}"
        );
        drop(alone);
        let store = CheckpointStore::open(dir.path()).await.unwrap().partition(&key());
        start(&store).await.unwrap_or_else(|e| panic!("{victim:?}: {e}"));
    }
}

#[tokio::test]
async fn leftovers_go_and_what_is_named_stays() {
    let dir = TempDir::new().unwrap();
    let (store, generation) = filled(&dir).await;
    drop(store.write(generation, 9, &data(90, &["z"], None), &[]).await.unwrap());
    fs::write(dir.path().join("tmp/snapshots~p~l~0~x"), "half").unwrap();
    assert!(CheckpointStore::open_alone(dir.path()).is_err(), "somebody has it open");
    drop(store);
    let alone = CheckpointStore::open_alone(dir.path()).unwrap();
    assert_eq!(alone.leftovers(Repair::Leftovers).await.unwrap().len(), 1);
    let checked = alone.partition(&key()).fsck(Repair::Leftovers).await.unwrap();
    assert!(!checked.findings.is_empty() && checked.findings.iter().all(|f| f.repaired == Some("deleted")), "{checked:?}");
    assert!(CheckpointStore::open(dir.path()).await.is_err(), "it is being repaired");
    assert_eq!(alone.partition(&key()).fsck(Repair::Leftovers).await.unwrap().findings, []);
    drop(alone);
    let store = CheckpointStore::open(dir.path()).await.unwrap().partition(&key());
    assert_eq!(store.latest(None).await.unwrap().checkpoint.unwrap().data.at.next_offset, 30);
}

#[tokio::test]
async fn a_savepoint_survives_pruning_and_the_next_start_goes_back_to_it() {
    let dir = TempDir::new().unwrap();
    let (store, generation) = filled(&dir).await;
    store.prune(generation, 1).await.unwrap();
    let listed = store.list().await.unwrap();
    assert_eq!(listed.iter().map(|c| (short(c.id), c.labels.len())).collect::<Vec<_>>(), [("1-1".to_owned(), 1), ("1-3".to_owned(), 0)]);
    assert!(matches!(store.label("kept", listed[1].id).await, Err(StoreError::Exists(_))));
    store.ask_restore(listed[0].id, true).await.unwrap();
    let restored = store.latest(None).await.unwrap();
    assert!(restored.accept_gap);
    assert_eq!(start(&store).await.unwrap(), (10, 3), "and replays the decisions since");
    let restored = store.latest(None).await.unwrap();
    assert_eq!((restored.checkpoint.unwrap().data.at.next_offset, restored.accept_gap), (10, false));
    let listed = store.list().await.unwrap();
    assert!(listed[1].void, "what was newer does not count any more: {listed:?}");
    assert!(store.ask_restore(listed[1].id, true).await.is_err());
}
