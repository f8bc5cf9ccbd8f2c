//! Data directories that earlier versions wrote are read and continued to the result they had.
//!
//! Each folder of `tests/golden-state` is one: layers of several checkpoints, cold files, decisions, a savepoint, journal
//! segments, and what a program that goes on from there puts out. `UPDATE_EXPECT=1` writes one for this version if there is
//! none; an existing one is never written again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldstream_checkpoint::cold::ColdStore;
use fieldstream_checkpoint::{CheckpointStore, PartitionStore};
use fieldstream_engine_api::{Log as _, LogBatch, LogEvent, PartitionKey, Payloads};
use fieldstream_journal::{Journal, JournalLog, JournalOptions};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::decisions::{end_of_input, tick};
use fieldstream_runtime::partition::Partition;
use fieldstream_runtime::snapshot::SnapshotKind;

use crate::passivation::{ROWS, START_US, batch, lines, spec};

/// Batches in the journal; the writer stops in the middle.
const BATCHES: u64 = 14;
const STOP: u64 = 9;
const LIMIT: usize = 24;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-state")
}

fn journal(data: &Path) -> Journal {
    let options = JournalOptions { partitions: 1, segment_bytes: 64 << 10, ..JournalOptions::default() };
    Journal::open(&data.join("journal"), options).unwrap()
}

/// The partition's place in the store, and a blank one with a cold store in `work`, of a new owner.
async fn own(data: &Path, work: &Path, journal: &Journal) -> (PartitionStore, fieldstream_engine_api::Generation, Partition, PathBuf) {
    let key = PartitionKey { pipeline: "passivation".into(), log_id: journal.log_id(), partition: 0 };
    let store = CheckpointStore::open(&data.join("state")).await.unwrap().partition(&key);
    let generation = store.claim().await.unwrap().generation;
    let cold = store.cold_folder(work, generation).unwrap();
    let files = ColdStore::create(&cold, &format!("{:020}", generation.0)).unwrap();
    let blank = Partition::new(&spec(), &key, 0, Arc::new(SystemClock::default())).unwrap().with_cold_store(files, LIMIT);
    (store, generation, blank, cold)
}

/// Everything in the journal from `offset` on, cut where the batches of the input were.
async fn read(log: &mut JournalLog, offset: u64) -> Vec<LogBatch> {
    let LogEvent::Assigned(parts) = log.next().await.unwrap() else { panic!("partitions are assigned first") };
    log.seek(0, offset).await.unwrap();
    let (mut batches, mut next) = (Vec::new(), offset);
    while next < parts[0].end_offset {
        let LogEvent::Batch(mut batch) = log.next().await.unwrap() else { panic!("nothing is lost") };
        next = batch.next_offset;
        for cut in 1..BATCHES {
            let (below, rest) = batch.split_at(cut * ROWS);
            batches.extend(below);
            batch = rest;
        }
        batches.push(batch);
    }
    batches.retain(|batch| batch.payloads.count() > 0);
    batches
}

async fn write(data: &Path) {
    let work = tempfile::tempdir().unwrap();
    let journal = journal(data);
    for number in 0..BATCHES {
        let now_us = START_US + number as i64 * 1_000_000;
        let Payloads::Raw(block) = batch(number).payloads else { panic!("the input is not decoded") };
        let decoded = (spec().sources[0].decoder)().decode(&block);
        journal.append("readings", decoded, None, now_us).await.unwrap();
    }
    let mut log = journal.log("passivation", &["readings"]).unwrap();
    let batches = read(&mut log, 0).await;
    let (store, generation, mut partition, _) = own(data, work.path(), &journal).await;
    store.adopt(generation, &store.lineage().await.unwrap(), None, 0).await.unwrap();
    let (mut layers, mut decided) = (Vec::new(), 0);
    for (number, batch) in (0..STOP).zip(batches) {
        let at = batch.next_offset;
        partition.turn(batch).unwrap();
        if number % 3 == 1 {
            // The last of them comes after the last checkpoint: it is replayed.
            let decision = tick(at, START_US + number as i64 * 1_000_000 + 500_000);
            store.append_decision(generation, decided, &decision).await.unwrap();
            partition.decide(&decision).unwrap();
            decided += 1;
        }
        if number < STOP - 2 {
            let kind = if number == 0 { SnapshotKind::Whole } else { SnapshotKind::Changes };
            let pending = store.write(generation, number, &partition.snapshot_of("", kind).unwrap(), &layers).await.unwrap();
            layers = pending.layers().to_vec();
            let id = store.commit(&pending).await.unwrap();
            if number == 2 {
                store.label("golden", id).await.unwrap();
            }
            store.prune(generation, 2).await.unwrap();
        }
    }
    store.release(generation).await.unwrap();
}

/// Goes on from the newest checkpoint to the end of the journal; what comes out, sorted.
async fn go_on(data: &Path) -> String {
    let work = tempfile::tempdir().unwrap();
    let journal = journal(data);
    let (store, generation, mut partition, cold) = own(data, work.path(), &journal).await;
    let restored = store.latest(Some(&cold)).await.unwrap();
    assert!(restored.notes.is_empty(), "{:?}", restored.notes);
    let checkpoint = restored.checkpoint.unwrap();
    partition.restore(&checkpoint, false).unwrap();
    let decisions = store.decisions_from(checkpoint.data.at.next_decision).await.unwrap();
    assert_eq!(decisions.len(), 1, "one comes after the checkpoint");
    store.adopt(generation, &store.lineage().await.unwrap(), Some(checkpoint.id), checkpoint.data.at.next_decision + 1).await.unwrap();
    partition.set_replay(decisions);
    let mut found = Vec::new();
    lines(&partition.catch_up().unwrap(), &mut found);
    let mut log = journal.log("passivation", &["readings"]).unwrap();
    for batch in read(&mut log, partition.complete_to().next_offset).await {
        lines(&partition.turn(batch).unwrap(), &mut found);
    }
    lines(&[partition.decide(&end_of_input(BATCHES * ROWS)).unwrap()], &mut found);
    let totals = partition.totals();
    assert_eq!((totals.received, totals.accounted()), (BATCHES * ROWS, BATCHES * ROWS));
    found.sort();
    found.join("\n") + "\n"
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn directories_of_every_version_are_continued() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let own = folder().join(env!("CARGO_PKG_VERSION"));
    if std::env::var_os("UPDATE_EXPECT").is_some() && !own.exists() {
        runtime.block_on(write(&own.join("data")));
        let copied = tempfile::tempdir().unwrap();
        copy(&own.join("data"), copied.path());
        fs::write(own.join("expected.txt"), runtime.block_on(go_on(copied.path()))).unwrap();
    }
    let mut versions = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let version = entry.unwrap().path();
        let copied = tempfile::tempdir().unwrap();
        copy(&version.join("data"), copied.path());
        let (found, expected) = (runtime.block_on(go_on(copied.path())), fs::read_to_string(version.join("expected.txt")).unwrap());
        let differs = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
        assert!(
            found == expected,
            "{}: {} lines for {}, first {differs:?}",
            version.display(),
            found.lines().count(),
            expected.lines().count()
        );
        versions += 1;
    }
    assert!(own.exists() && versions > 0, "write the directory of this version with UPDATE_EXPECT=1 and keep it");
}
