//! Records in, records taken out.

use std::sync::Arc;

use fieldstream_checkpoint::{Checkpoint, CheckpointId};
use fieldstream_engine_api::{Generation, LogBatch, LogId, PartitionKey, Payloads};
use fieldstream_schemas::PayloadEntry;

use crate::clock::SystemClock;
use crate::delivery_tests::parts;
use crate::partition::Partition;

use super::*;

/// A block from log offset `from` on of records with these origins; `-` has none. The payload is the origin.
fn block(from: u64, origins: &[&str]) -> PayloadBlock {
    let mut block = PayloadBlock::default();
    let mut data = Vec::new();
    for (offset, origin) in (from..).zip(origins) {
        block.entries.push(PayloadEntry { offset, start: data.len() as u32, len: origin.len() as u32, ingest_us: None });
        data.extend_from_slice(origin.as_bytes());
    }
    block.keys = Some(origins.iter().map(|origin| Some(Bytes::copy_from_slice(origin.as_bytes()))).collect());
    block.origins = Some(origins.iter().map(|o| (*o != "-").then(|| Bytes::copy_from_slice(o.as_bytes()))).collect());
    block.data = data.into();
    block
}

/// What is left, what was known and what was refused.
fn picture(state: &mut Origins, mut block: PayloadBlock) -> String {
    let (known, unreadable) = state.admit(&mut block);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let left: Vec<String> = (0..block.entries.len()).map(|n| format!("{}:{}", block.entries[n].offset, text(block.payload(n)))).collect();
    let keys = block.keys.iter().flatten().flatten().map(|key| text(key));
    assert!(keys.eq((0..block.entries.len()).map(|n| text(block.payload(n)))), "keys stay with their records");
    let refused: Vec<String> = unreadable.iter().map(|r| format!("{}:{}", r.position.offset, text(&r.payload))).collect();
    format!("{} | known {known} | refused {}\n", left.join(" "), refused.join(" "))
}

#[test]
fn what_is_not_above_the_highest_of_its_stream_is_known() {
    let mut state = Origins::default();
    let mut out = picture(&mut state, block(0, &["5.0@a", "5.1@a", "5.0@b", "-", "7.0@a"]));
    // The sender of `a` was killed and begins again at offset 5; `b` goes on.
    out += &picture(&mut state, block(5, &["5.0@a", "5.1@a", "6.0@b", "7.0@a", "8.0@a", "-", "-"]));
    out += &picture(&mut state, block(12, &["nonsense", "9.0@a", "9.0@", "10.0@a"]));
    out += &picture(&mut state, block(16, &["10.0@a", "6.0@b"]));
    let expected = [
        "0:5.0@a 1:5.1@a 2:5.0@b 3:- 4:7.0@a | known 0 | refused ",
        "7:6.0@b 9:8.0@a 10:- 11:- | known 3 | refused ",
        "13:9.0@a 15:10.0@a | known 0 | refused 12:nonsense 14:9.0@",
        " | known 2 | refused ",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn it_comes_back_from_its_saved_form_and_does_not_depend_on_how_batches_are_cut() {
    let origins = ["1.0@a", "1.0@b", "2.0@a", "1.0@a", "2.0@a", "3.0@a", "1.0@b", "2.0@b"];
    let whole = picture(&mut Origins::default(), block(0, &origins));
    assert!(whole.starts_with("0:1.0@a 1:1.0@b 2:2.0@a 5:3.0@a 7:2.0@b | known 3"), "{whole}");
    for cut in 0..=origins.len() {
        let mut state = Origins::default();
        let first = picture(&mut state, block(0, &origins[..cut]));
        let saved = serde_json::to_value(&state).expect("plain maps");
        let mut restored: Origins = serde_json::from_value(saved).expect("what was saved");
        let second = picture(&mut restored, block(cut as u64, &origins[cut..]));
        let left = |text: &str| text.split(" | ").next().unwrap_or_default().trim().to_owned();
        assert_eq!(format!("{} {}", left(&first), left(&second)).trim(), left(&whole), "cut at {cut}");
    }
}

#[test]
fn the_silent_are_forgotten_when_there_are_too_many() {
    let mut state = Origins::default();
    let names: Vec<String> = (0..MOST).map(|n| format!("1.0@s{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    state.admit(&mut block(0, &names));
    // The oldest speaks again, then a new one comes.
    let out = picture(&mut state, block(MOST as u64, &["2.0@s0", "1.0@new", "2.0@s0", "1.0@s1", "1.0@s9000"]));
    assert_eq!(out, "16384:2.0@s0 16385:1.0@new 16387:1.0@s1 | known 2 | refused \n");
    assert!(state.0.len() < MOST);
}

/// Readings with these origins, one each.
fn readings(from: u64, origins: &[&str]) -> LogBatch {
    let text = r#"{"deviceId":"d","sensorId":"s","timestamp":1000000,"value":1}"#;
    let mut block = block(from, origins);
    (block.data, block.keys) = (text.into(), None);
    block.entries.iter_mut().for_each(|entry| (entry.start, entry.len) = (0, text.len() as u32));
    let next_offset = from + origins.len() as u64;
    LogBatch { partition: 0, source: "in".into(), next_offset, append_us: None, payloads: Payloads::Raw(block) }
}

#[test]
fn a_restored_partition_knows_what_its_checkpoint_knew_and_the_account_balances() {
    let spec = parts(&Arc::default(), 0, &[]).spec;
    let key = PartitionKey { pipeline: "test".into(), log_id: LogId("memory".into()), partition: 0 };
    let blank = || Partition::new(&spec, &key, 0, Arc::new(SystemClock::default())).unwrap();
    let mut first = blank();
    first.turn(readings(0, &["1.0@a", "2.0@a", "2.0@b", "1.0@a"])).unwrap();
    let data = first.snapshot("plan").unwrap();
    first.turn(readings(4, &["3.0@a", "4.0@a"])).unwrap();
    assert_eq!((first.totals().received, first.totals().settled, first.totals().deduplicated), (6, 5, 1));
    drop(first);

    // What was taken after the checkpoint is taken again, as its rows are made again.
    let mut second = blank();
    second.restore(&Checkpoint { id: CheckpointId { generation: Generation(1), number: 0 }, data }, false).unwrap();
    second.turn(readings(4, &["3.0@a", "4.0@a"])).unwrap();
    second.turn(readings(6, &["2.0@b", "4.0@a", "5.0@a", "-", "broken"])).unwrap();
    let totals = second.totals();
    assert_eq!((totals.received, totals.settled, totals.deduplicated), (11, 7, 3), "{totals:?}");
    assert_eq!(totals.dead_lettered.get(CODE_ORIGIN), Some(&1));
    assert_eq!(totals.received, totals.accounted(), "{totals:?}");
    assert_eq!(totals.offered, [7, 1], "rows for the sink, and a dead letter");
}
