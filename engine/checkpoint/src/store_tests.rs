//! Tests of the store: what is written comes back, nothing is overwritten, damage is found, old owners do not count.

use std::fs;
use std::path::PathBuf;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array};
use fieldstream_engine_api::{LogId, Mark, Position, Space};
use object_store::memory::InMemory;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::cold::ColdStore;
use crate::{Checkpoint, CheckpointData, Restored, StateTable, Table};

fn key() -> PartitionKey {
    PartitionKey { pipeline: "cold chain/2".into(), log_id: LogId("kafka:x/ö".into()), partition: 3 }
}

fn rows(values: &[f64]) -> RecordBatch {
    let slots: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..values.len() as u32));
    RecordBatch::try_from_iter([("slot", slots), ("value", Arc::new(Float64Array::from(values.to_vec())))]).unwrap()
}

fn data(offset: u64, decision: u64) -> CheckpointData {
    let names: ArrayRef = Arc::new(StringArray::from(vec!["pump-1", "pump-2"]));
    let state = |state, values: &[f64]| StateTable { node: "ewma".into(), state, space: Space::Series, layout: 2, rows: rows(values) };
    CheckpointData {
        at: Mark { next_offset: offset, next_decision: decision },
        plan_digest: "abc".into(),
        tables: vec![Table { name: "devices".into(), rows: RecordBatch::try_from_iter([("device_id", names)]).unwrap() }],
        states: vec![state(0, &[1.0, f64::NEG_INFINITY]), state(1, &[])],
        cold: Vec::new(),
        absent: 0,
        delta: false,
        extras: json!({"clock": 17, "ledger": {"received": offset}}),
    }
}

async fn open(dir: &TempDir) -> PartitionStore {
    CheckpointStore::open(dir.path()).await.unwrap().partition(&key())
}

/// A first owner with an adoption record.
async fn owner(store: &PartitionStore) -> Generation {
    let claim = store.claim().await.unwrap();
    store.adopt(claim.generation, &store.lineage().await.unwrap(), None, 0).await.unwrap();
    claim.generation
}

fn files(dir: &TempDir, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.path().join(kind)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn decision(offset: u64, kind: &str) -> Decision {
    Decision { position: Position::new(offset, 1), kind: kind.into(), payload: json!({"n": offset}) }
}

#[tokio::test]
async fn a_checkpoint_comes_back_as_it_was() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let generation = owner(&store).await;
    assert!(store.latest(None).await.unwrap().checkpoint.is_none());
    let id = store.save(generation, 0, &data(10, 0)).await.unwrap();
    let next = store.save(generation, 1, &data(20, 1)).await.unwrap();
    let restored = open(&dir).await.latest(None).await.unwrap();
    assert_eq!(restored.checkpoint, Some(Checkpoint { id: next, data: data(20, 1) }));
    assert_eq!(restored.kept, [(id, data(10, 0).at), (next, data(20, 1).at)]);
    assert!(restored.notes.is_empty());
    let found = restored.checkpoint.unwrap().data;
    assert_eq!(found.states_of("ewma", 0).count(), 1);
    assert_eq!(found.table("devices").unwrap().num_rows(), 2);
    assert!(files(&dir, "tmp").is_empty(), "no temporary file is left");
}

#[tokio::test]
async fn files_without_a_manifest_are_no_checkpoint() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let generation = owner(&store).await;
    let pending = store.write(generation, 0, &data(10, 0), &[]).await.unwrap();
    assert!(pending.bytes() > 0);
    assert!(store.latest(None).await.unwrap().checkpoint.is_none());
    store.commit(&pending).await.unwrap();
    assert_eq!(store.latest(None).await.unwrap().checkpoint.unwrap().data.at, pending.at());
}

#[tokio::test]
async fn nothing_is_ever_overwritten() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let generation = owner(&store).await;
    store.append_decision(generation, 0, &decision(1, "tick")).await.unwrap();
    let again = store.append_decision(generation, 0, &decision(2, "tick")).await;
    assert!(matches!(again, Err(StoreError::Exists(_))), "{again:?}");
    assert_eq!(store.decisions_from(0).await.unwrap(), [decision(1, "tick")]);
    store.save(generation, 0, &data(1, 0)).await.unwrap();
    assert!(matches!(store.save(generation, 0, &data(2, 0)).await, Err(StoreError::Exists(_))));
    assert_eq!(store.latest(None).await.unwrap().checkpoint.unwrap().data, data(1, 0));
}

#[tokio::test]
async fn one_of_many_claimants_wins_each_generation() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let claims: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn({
                let store = store.clone();
                async move { store.claim().await }
            })
        })
        .collect();
    let mut won = Vec::new();
    for claim in claims {
        won.push(claim.await.unwrap().unwrap().generation.0);
    }
    won.sort_unstable();
    assert_eq!(won, (1..=8).collect::<Vec<_>>());
    assert!(matches!(store.check_owner(Generation(7)).await, Err(StoreError::Fenced { owner: Generation(8), .. })));
    store.check_owner(Generation(8)).await.unwrap();
}

#[tokio::test]
async fn unclean_restarts_from_one_checkpoint_are_counted() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let mut seen = Vec::new();
    for step in 0..6 {
        let claim = store.claim().await.unwrap();
        seen.push(claim.restarts);
        store
            .adopt(claim.generation, &store.lineage().await.unwrap(), store.latest(None).await.unwrap().checkpoint.map(|c| c.id), 0)
            .await
            .unwrap();
        match step {
            2 => drop(store.save(claim.generation, 0, &data(5, 0)).await.unwrap()),
            4 => store.release(claim.generation).await.unwrap(),
            _ => {}
        }
    }
    assert_eq!(seen, [0, 1, 2, 0, 1, 0], "a new checkpoint and a clean end both start the count again");
}

#[tokio::test]
async fn every_changed_or_missing_byte_of_the_newest_checkpoint_is_found() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let generation = owner(&store).await;
    store.save(generation, 0, &data(10, 0)).await.unwrap();
    let newest = store.save(generation, 1, &data(20, 0)).await.unwrap();
    let name = newest.to_string();
    let of_newest = |path: &&PathBuf| path.to_string_lossy().contains(&name);
    let mut victims = files(&dir, "manifests");
    victims.extend(files(&dir, "snapshots"));
    let victims: Vec<PathBuf> = victims.iter().filter(of_newest).cloned().collect();
    assert_eq!(victims.len(), 4, "a manifest and three tables");
    for path in victims {
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 150 + 1) {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            for damaged in [&flipped[..], &whole[..at]] {
                fs::write(&path, damaged).unwrap();
                let restored = store.latest(None).await.unwrap();
                assert_eq!(restored.checkpoint.unwrap().data.at.next_offset, 10, "{} byte {at}", path.display());
                assert_eq!(restored.notes.len(), 1);
                assert_eq!(restored.kept.len(), 1, "the damaged one holds nothing");
            }
        }
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(store.latest(None).await.unwrap().checkpoint.unwrap().id, newest);
}

#[tokio::test]
async fn when_no_checkpoint_can_be_read_nothing_starts_from_zero() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let generation = owner(&store).await;
    store.save(generation, 0, &data(10, 0)).await.unwrap();
    for path in files(&dir, "manifests") {
        fs::write(path, "").unwrap();
    }
    let error = store.latest(None).await.unwrap_err();
    assert!(matches!(error, StoreError::NoneReadable { count: 1, .. }), "{error}");
}

#[tokio::test]
async fn what_an_overtaken_owner_writes_is_void() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let old = owner(&store).await;
    let first = store.save(old, 0, &data(10, 1)).await.unwrap();
    for n in 0..3 {
        store.append_decision(old, n, &decision(n, "old")).await.unwrap();
    }
    let new = store.claim().await.unwrap().generation;
    let accepted = store.decisions_from(1).await.unwrap();
    assert_eq!(accepted.len(), 2);
    store.adopt(new, &store.lineage().await.unwrap(), Some(first), 3).await.unwrap();
    // The old owner does not know yet.
    store.append_decision(old, 3, &decision(3, "zombie")).await.unwrap();
    store.save(old, 1, &data(99, 4)).await.unwrap();
    store.append_decision(new, 3, &decision(4, "new")).await.unwrap();
    assert_eq!(store.latest(None).await.unwrap().checkpoint.unwrap().id, first);
    let kinds: Vec<String> = store.decisions_from(1).await.unwrap().into_iter().map(|d| d.kind).collect();
    assert_eq!(kinds, ["old", "old", "new"]);
    assert!(matches!(store.prune(old, 1).await, Err(StoreError::Fenced { .. })));
    assert!(matches!(store.adopt(old, &store.lineage().await.unwrap(), None, 0).await, Err(StoreError::Fenced { .. })));
}

#[tokio::test]
async fn a_missing_or_damaged_decision_stops_the_replay() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let generation = owner(&store).await;
    for n in 0..4 {
        store.append_decision(generation, n, &decision(n, "tick")).await.unwrap();
    }
    let paths = files(&dir, "decisions");
    let whole = fs::read(&paths[2]).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x20;
        fs::write(&paths[2], flipped).unwrap();
        assert!(matches!(store.decisions_from(1).await, Err(StoreError::Damaged { .. })), "byte {at}");
    }
    fs::remove_file(&paths[2]).unwrap();
    assert!(matches!(store.decisions_from(1).await, Err(StoreError::Damaged { .. })));
    assert_eq!(store.decisions_from(3).await.unwrap(), [decision(3, "tick")], "what lies after is whole");
}

#[tokio::test]
async fn pruning_keeps_what_the_kept_checkpoints_need() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let old = owner(&store).await;
    for n in 0..6 {
        store.append_decision(old, n, &decision(n, "tick")).await.unwrap();
        store.save(old, n, &data(n * 10, n)).await.unwrap();
    }
    let stray = store.write(old, 6, &data(60, 6), &[]).await.unwrap();
    drop(stray);
    let restored = store.latest(None).await.unwrap();
    let new = store.claim().await.unwrap().generation;
    store.adopt(new, &store.lineage().await.unwrap(), restored.checkpoint.map(|c| c.id), 6).await.unwrap();
    store.save(new, 0, &data(60, 6)).await.unwrap();
    let pending = store.write(new, 1, &data(70, 6), &[]).await.unwrap();
    store.prune(new, 3).await.unwrap();
    let offsets = |r: &Restored| r.kept.iter().map(|(_, at)| at.next_offset).collect::<Vec<_>>();
    assert_eq!(offsets(&store.latest(None).await.unwrap()), [40, 50, 60]);
    assert_eq!(store.decisions_from(4).await.unwrap().len(), 2);
    assert_eq!(files(&dir, "decisions").len(), 2);
    assert_eq!(files(&dir, "snapshots").len(), 3 * 4, "three kept and the one being written; the stray one is gone");
    store.commit(&pending).await.unwrap();
    store.prune(new, 1).await.unwrap();
    assert_eq!(offsets(&store.latest(None).await.unwrap()), [70]);
    assert_eq!((files(&dir, "manifests").len(), files(&dir, "decisions").len(), files(&dir, "adoptions").len()), (1, 0, 1));
    assert_eq!(store.claim().await.unwrap().generation, Generation(3), "numbers never repeat");
}

#[tokio::test]
async fn a_remote_store_obeys_the_same_protocol() {
    let store = CheckpointStore::open_remote(Arc::new(InMemory::new())).await.unwrap().partition(&key());
    let generation = owner(&store).await;
    store.save(generation, 0, &data(10, 0)).await.unwrap();
    store.append_decision(generation, 0, &decision(1, "tick")).await.unwrap();
    assert!(matches!(store.append_decision(generation, 0, &decision(1, "tick")).await, Err(StoreError::Exists(_))));
    assert_eq!(store.latest(None).await.unwrap().checkpoint.unwrap().data, data(10, 0));
}

#[tokio::test]
async fn partitions_do_not_see_each_other() {
    let dir = TempDir::new().unwrap();
    let all = CheckpointStore::open(dir.path()).await.unwrap();
    let (a, b) = (all.partition(&key()), all.partition(&PartitionKey { partition: 33, ..key() }));
    let generation = owner(&a).await;
    a.save(generation, 0, &data(10, 0)).await.unwrap();
    assert!(b.latest(None).await.unwrap().checkpoint.is_none());
    assert_eq!(b.claim().await.unwrap().generation, Generation(1));
}

/// Cold rows of the devices `names`, as the runtime would put them.
fn cold_rows(names: &[&str]) -> RecordBatch {
    let ids: ArrayRef = Arc::new(StringArray::from(names.to_vec()));
    let seen: ArrayRef = Arc::new(Int64Array::from(vec![7; names.len()]));
    let pending: ArrayRef = Arc::new(BooleanArray::from(vec![false; names.len()]));
    RecordBatch::try_from_iter([("device_id", ids), ("last_seen", seen), ("pending", pending)]).unwrap()
}

#[tokio::test]
async fn cold_files_are_shared_by_checkpoints_verified_and_pruned_with_the_last() {
    let (dir, work) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&dir).await;
    let generation = owner(&store).await;
    let folder = store.cold_folder(work.path(), generation).unwrap();
    let mut cold = ColdStore::create(&folder, &format!("{:020}", generation.0)).unwrap();
    for (number, device) in (0..).zip(["a", "b", "c", "d"]) {
        cold.put(&cold_rows(&[device])).unwrap();
        // The fourth file is one too many: all are merged, and the older checkpoints keep theirs.
        cold.wait_idle();
        let saved = CheckpointData { cold: cold.segments().unwrap(), absent: number + 1, ..data(number, 0) };
        store.save(generation, number, &saved).await.unwrap();
    }
    assert_eq!(files(&dir, "cold").len(), 4, "a, b, c, and the merged one");
    store.prune(generation, 2).await.unwrap();
    assert_eq!(files(&dir, "cold").len(), 4, "the checkpoint before the newest needs a, b and c");

    let next = store.claim().await.unwrap().generation;
    let folder = store.cold_folder(work.path(), next).unwrap();
    let restored = store.latest(Some(&folder)).await.unwrap().checkpoint.unwrap();
    assert_eq!((restored.data.absent, restored.data.cold.len()), (4, 1));
    let mut again = ColdStore::create(&work.path().join("other"), "other").unwrap();
    fs::copy(&restored.data.cold[0].path, work.path().join("other").join(&restored.data.cold[0].name)).unwrap();
    again.attach(&restored.data.cold[0].name).unwrap();
    assert_eq!(again.find(&["a", "b", "c", "d"]).unwrap()[0].num_rows(), 4);

    // The newest checkpoint's file is damaged: the one before it, with three files, takes its place.
    let newest = files(&dir, "cold").pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes[100] ^= 1;
    fs::remove_file(&newest).unwrap();
    fs::write(&newest, bytes).unwrap();
    let folder = store.cold_folder(work.path(), next).unwrap();
    let fallen = store.latest(Some(&folder)).await.unwrap();
    assert_eq!((fallen.checkpoint.unwrap().data.cold.len(), fallen.notes.len()), (3, 1));

    store.prune(next, 1).await.unwrap();
    assert_eq!(files(&dir, "cold"), [newest], "no kept checkpoint needs the others");
}

#[tokio::test]
async fn a_checkpoint_that_fails_in_its_middle_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).await;
    let generation = owner(&store).await;
    let id = CheckpointId { generation, number: 4 };
    // The second file cannot be made: its name is taken.
    let taken = store.at("snapshots", &id.to_string()).join("00001.arrow");
    store.objects.create(&taken, Bytes::from_static(b"in the way")).await.unwrap();
    assert!(store.write(generation, 4, &data(10, 0), &[]).await.is_err());
    let left = files(&dir, "snapshots");
    assert_eq!(left.len(), 1, "a full disk gets no fuller by trying, and what others made stays: {left:?}");
}
