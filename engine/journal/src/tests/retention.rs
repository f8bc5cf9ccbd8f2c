//! Who needs what: budget, holds, deletion.

use super::*;
use crate::{JournalError, partition_of};

fn small() -> JournalOptions {
    JournalOptions { budget_bytes: 64 << 10, segment_bytes: 8 << 10, ..options() }
}

/// Appends readings of `a` until the journal refuses; returns how many were taken.
async fn fill(journal: &Journal, from: u32) -> u32 {
    for n in from..from + 10_000 {
        match journal.append("mqtt", values("a", n..n + 1), None, 5).await {
            Ok(()) => {}
            Err(JournalError::Full { used, budget }) => {
                assert!(used <= budget);
                return n;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the budget holds nothing back");
}

fn first_offset(journal: &Journal) -> u64 {
    journal.assignments()[partition_of(b"a", 4) as usize].first_offset
}

/// Waits until the writer has deleted what it may.
async fn first_offset_reaches(journal: &Journal, wanted: u64) {
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        while first_offset(journal) < wanted {
            tokio::task::yield_now().await;
        }
    });
    found.await.expect("segments are deleted");
}

#[tokio::test]
async fn a_full_journal_refuses_and_goes_on_when_acknowledged() {
    let dir = TempDir::new().unwrap();
    let journal = Journal::open(dir.path(), small()).unwrap();
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    let taken = fill(&journal, 0).await;
    assert!(taken > 4);
    assert_eq!(first_offset(&journal), 0, "nothing is forgotten");
    let found = read_values(&mut log, taken as usize).await;
    assert_eq!(found["a"].len(), taken as usize);
    let room = journal.wait_for_room();
    log.acknowledge(partition_of(b"a", 4), u64::from(taken)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), room).await.expect("room is made");
    let more = fill(&journal, taken).await;
    assert!(more > taken + 4);
    assert_eq!(read_values(&mut log, (more - taken) as usize).await["a"][0], f64::from(taken));
    let stats = journal.stats();
    assert_eq!(stats.refused, 2);
    assert!(stats.disk_bytes <= small().budget_bytes);
}

#[tokio::test]
async fn without_a_pipeline_everything_is_kept() {
    let dir = TempDir::new().unwrap();
    let journal = Journal::open(dir.path(), small()).unwrap();
    let taken = fill(&journal, 0).await;
    let mut log = reader(&journal, "late", &["mqtt"]).await;
    assert_eq!(read_values(&mut log, taken as usize).await["a"].len(), taken as usize);
}

#[tokio::test]
async fn each_pipeline_holds_what_it_has_not_acknowledged() {
    let dir = TempDir::new().unwrap();
    let partition = partition_of(b"a", 4);
    let journal = Journal::open(dir.path(), small()).unwrap();
    let mut one = reader(&journal, "one", &["mqtt"]).await;
    let mut two = reader(&journal, "two", &["mqtt"]).await;
    let taken = u64::from(fill(&journal, 0).await);
    one.acknowledge(partition, taken).await.unwrap();
    assert_eq!(fill(&journal, 10_000).await, 10_000, "still full");
    assert_eq!(first_offset(&journal), 0);
    two.acknowledge(partition, taken / 2).await.unwrap();
    first_offset_reaches(&journal, 1).await;
    assert!(first_offset(&journal) <= taken / 2, "never above what was acknowledged");
    let LogErrorText(error) = two.seek(partition, 0).await.unwrap_err().into();
    assert!(error.contains("begins at offset"), "{error}");
    two.seek(partition, taken / 2).await.unwrap();
    assert_eq!(parts(&batch(&mut two).await).0[0].0.offset, taken / 2);
    // The pipelines come back after a restart, and hold what they held.
    drop((one, two, journal));
    let journal = Journal::open(dir.path(), small()).unwrap();
    assert_eq!(journal.pipelines(), ["one", "two"]);
    let held = first_offset(&journal);
    let mut one = journal.log("one", &["mqtt"]).unwrap();
    one.acknowledge(partition, taken).await.unwrap();
    assert_eq!(first_offset(&journal), held);
    journal.unregister("two").unwrap();
    first_offset_reaches(&journal, taken / 2 + 1).await;
    assert_eq!(journal.pipelines(), ["one"]);
}

/// The text of an error.
struct LogErrorText(String);

impl From<fieldstream_engine_api::LogError> for LogErrorText {
    fn from(error: fieldstream_engine_api::LogError) -> Self {
        Self(error.to_string())
    }
}

#[tokio::test]
async fn an_append_that_no_budget_holds_is_told_so() {
    let dir = TempDir::new().unwrap();
    let journal = Journal::open(dir.path(), small()).unwrap();
    let error = journal.append("mqtt", values("a", 0..5000), None, 5).await.unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { .. }), "{error}");
    journal.append("mqtt", values("a", 0..5), None, 5).await.unwrap();
}
