//! What is appended is what is read.

use proptest::prelude::*;

use super::*;
use crate::partition_of;

#[tokio::test]
async fn rows_and_undecodable_payloads_reach_their_partitions() {
    let dir = TempDir::new().unwrap();
    let journal = open(&dir);
    // Payload 0 holds two devices and something undecodable, payload 1 nothing good, payload 2 one reading.
    let mut input = decoded(&[(0, 0, "a", 1.0), (0, 2, "b", 2.0), (2, 0, "a", 3.0)]);
    input.rejects = vec![reject(0, 1, "{1}"), reject(1, 0, "{2")];
    let raw = block(&[(0, "payload 0"), (1, "payload 1"), (2, "payload 2")]);
    journal.append("mqtt", input, Some(&raw), 1_000).await.unwrap();
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    let (mut rows, mut rejects) = (Vec::new(), Vec::new());
    while rows.len() < 3 || rejects.len() < 2 {
        let batch = batch(&mut log).await;
        assert_eq!((&*batch.source, batch.append_us), ("mqtt", Some(1_000)));
        let Payloads::Rows { raw: Some(raw), rows: columns, .. } = &batch.payloads else { panic!("payloads are kept") };
        assert_eq!(Readings::new(columns).unwrap().ingest_ts.iter().filter(|t| *t != Some(1_000)).count(), 0, "stamped");
        let (good, bad) = parts(&batch);
        for (position, device, value) in good {
            assert_eq!(batch.partition, partition_of(device.as_bytes(), 4));
            let payload = raw.at_offset(position.offset).unwrap();
            rows.push((device, value, position.row, String::from_utf8(payload.to_vec()).unwrap()));
        }
        for (position, bytes) in bad {
            assert_eq!(batch.partition, partition_of(bytes.as_bytes(), 4));
            let payload = raw.at_offset(position.offset).unwrap();
            rejects.push((bytes, position.row, String::from_utf8(payload.to_vec()).unwrap()));
        }
    }
    rows.sort_by(|x, y| x.1.total_cmp(&y.1));
    rejects.sort();
    let row = |device: &str, value, row, payload: &str| (device.to_owned(), value, row, payload.to_owned());
    assert_eq!(rows, [row("a", 1.0, 0, "payload 0"), row("b", 2.0, 2, "payload 0"), row("a", 3.0, 0, "payload 2")]);
    let bad = |bytes: &str, row, payload: &str| (bytes.to_owned(), row, payload.to_owned());
    assert_eq!(rejects, [bad("{1}", 1, "payload 0"), bad("{2", 0, "payload 1")]);
    let stats = journal.stats();
    assert_eq!((stats.appends, stats.rows, stats.rejects, stats.frames, stats.lost), (1, 3, 2, 1, 0));
}

#[tokio::test]
async fn a_reader_follows_the_tail_and_can_be_dropped_at_any_time() {
    let dir = TempDir::new().unwrap();
    let journal = open(&dir);
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    for n in 0..20 {
        // Polled once and dropped: must lose nothing.
        let none = tokio::time::timeout(Duration::ZERO, log.next()).await;
        assert!(none.is_err(), "{none:?}");
        journal.append("mqtt", values("a", n..n + 1), None, 5).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_micros(50), std::future::pending::<()>()).await;
        assert_eq!(parts(&batch(&mut log).await).0[0].2, f64::from(n));
    }
}

#[tokio::test]
async fn other_receivers_are_passed_over_but_offsets_move_on() {
    let dir = TempDir::new().unwrap();
    let small = JournalOptions { segment_bytes: 4096, ..options() };
    let journal = Journal::open(dir.path(), small).unwrap();
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    for n in 0..6 {
        journal.append("http", values("a", n..n + 1), None, 5).await.unwrap();
    }
    assert!(journal.stats().segments > 2);
    let passed = batch(&mut log).await;
    assert!(parts(&passed).0.is_empty() && passed.next_offset >= 5, "{passed:?}");
    journal.append("mqtt", values("a", 100..101), None, 6).await.unwrap();
    let mine = loop {
        let batch = batch(&mut log).await;
        if !parts(&batch).0.is_empty() {
            break batch;
        }
    };
    assert_eq!((parts(&mine).0, mine.next_offset), (vec![(Position::new(6, 0), "a".to_owned(), 100.0)], 7));
}

#[tokio::test]
async fn a_paused_partition_holds_up_nobody_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let journal = open(&dir);
    let (a, b) = ("a", ["b", "c", "d", "e"].into_iter().find(|d| partition_of(d.as_bytes(), 4) != partition_of(b"a", 4)).unwrap());
    let paused = partition_of(a.as_bytes(), 4);
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    log.pause(paused, true);
    for n in 0..5 {
        journal.append("mqtt", values(a, n..n + 1), None, 5).await.unwrap();
        journal.append("mqtt", values(b, n..n + 1), None, 5).await.unwrap();
    }
    assert_eq!(read_values(&mut log, 5).await.into_iter().collect::<Vec<_>>(), [(b.to_owned(), vec![0.0, 1.0, 2.0, 3.0, 4.0])]);
    log.pause(paused, false);
    assert_eq!(read_values(&mut log, 5).await[a].len(), 5);
    log.seek(paused, 3).await.unwrap();
    assert_eq!(read_values(&mut log, 2).await[a], [3.0, 4.0], "a seek goes back");
}

#[tokio::test]
async fn many_small_frames_are_merged_when_behind() {
    let dir = TempDir::new().unwrap();
    let journal = open(&dir);
    for n in 0..300 {
        journal.append("mqtt", values("a", n * 10..n * 10 + 10), None, i64::from(n)).await.unwrap();
    }
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    let first = batch(&mut log).await;
    assert_eq!((parts(&first).0.len(), first.next_offset, first.append_us), (3000, 3000, Some(299)));
    let Payloads::Rows { rows, .. } = &first.payloads else { panic!("rows") };
    assert!(Readings::new(rows).unwrap().device_id.values().len() <= 3000);
}

#[tokio::test]
async fn appends_at_the_same_time_share_fsyncs() {
    let dir = TempDir::new().unwrap();
    let journal = open(&dir);
    let answers: Vec<_> = (0..400).map(|n| journal.append("mqtt", values("a", n..n + 1), None, 5)).collect();
    for answer in answers {
        answer.await.unwrap();
    }
    let stats = journal.stats();
    assert_eq!((stats.appends, stats.rows), (400, 400));
    assert!(stats.fsyncs < 200 && stats.fsyncs == stats.frames, "{stats:?}");
    assert_eq!(stats.fsync_buckets.iter().sum::<u64>(), stats.fsyncs);
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    assert_eq!(read_values(&mut log, 400).await["a"], (0..400).map(f64::from).collect::<Vec<_>>(), "in the order of the calls");
}

#[tokio::test]
async fn reopening_goes_on_where_it_was() {
    let dir = TempDir::new().unwrap();
    let partition = partition_of(b"a", 4);
    let journal = open(&dir);
    let id = journal.log_id();
    journal.append("mqtt", values("a", 0..3), None, 900).await.unwrap();
    assert!(Journal::open(dir.path(), options()).is_err(), "one process at a time");
    drop(journal);
    let journal = Journal::open(dir.path(), JournalOptions { partitions: 9, ..options() }).unwrap();
    assert_eq!((journal.log_id(), journal.partitions()), (id, 4), "what was recorded holds");
    assert_eq!(journal.assignments()[partition as usize].end_offset, 3);
    // The clock went back; the log's time does not.
    journal.append("mqtt", values("a", 3..4), None, 100).await.unwrap();
    let mut log = journal.log("p", &["mqtt"]).unwrap();
    log.next().await.unwrap();
    log.seek(partition, 2).await.unwrap();
    let read = batch(&mut log).await;
    assert_eq!((parts(&read).0.len(), read.next_offset, read.append_us), (2, 4, Some(900)));
    let error = log.seek(partition, 5).await.unwrap_err();
    assert!(error.to_string().contains("ends at offset 4"), "{error}");
}

/// One append: from our source or another one; per row: in a new payload, device, undecodable.
type Input = (bool, Vec<(bool, u8, bool)>);

fn appends() -> impl Strategy<Value = Vec<Input>> {
    prop::collection::vec((any::<bool>(), prop::collection::vec((any::<bool>(), 0..12_u8, prop::bool::weighted(0.1)), 0..30)), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nothing_is_lost_reordered_or_given_twice(input in appends()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = TempDir::new().unwrap();
            let journal = Journal::open(dir.path(), JournalOptions { segment_bytes: 8192, ..options() }).unwrap();
            let mut expected = std::collections::BTreeMap::<String, Vec<f64>>::new();
            let (mut value, mut bad) = (0.0, 0);
            let mut answers = Vec::new();
            for (mine, items) in input {
                let (mut payload, mut row) = (0, 0);
                let mut rows = Vec::new();
                let mut rejects = Vec::new();
                let names: Vec<String> = items.iter().map(|(_, d, _)| format!("device-{d}")).collect();
                for ((new, _, undecodable), name) in items.iter().zip(&names) {
                    (payload, row) = if *new { (payload + 1, 0) } else { (payload, row + 1) };
                    if *undecodable {
                        rejects.push(reject(payload, row, "garbage"));
                        bad += usize::from(mine);
                        continue;
                    }
                    rows.push((payload, row, name.as_str(), value));
                    if mine {
                        expected.entry(name.clone()).or_default().push(value);
                    }
                    value += 1.0;
                }
                let input = Decoded { rejects, ..decoded(&rows) };
                answers.push(journal.append(if mine { "mine" } else { "other" }, input, None, 1));
            }
            for answer in answers {
                answer.await.unwrap();
            }
            let total: usize = expected.values().map(Vec::len).sum();
            let mut log = reader(&journal, "p", &["mine"]).await;
            let mut found = std::collections::BTreeMap::<String, Vec<f64>>::new();
            let mut offsets = std::collections::BTreeMap::<u32, Position>::new();
            let (mut rows, mut rejects) = (0, 0);
            while rows < total || rejects < bad {
                let batch = batch(&mut log).await;
                let (good, undecodable) = parts(&batch);
                rows += good.len();
                rejects += undecodable.len();
                for (position, device, value) in good {
                    let before = offsets.insert(batch.partition, position);
                    prop_assert!(before.is_none_or(|b| b < position));
                    found.entry(device).or_default().push(value);
                }
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(rejects, bad);
            Ok(())
        })?;
    }
}
