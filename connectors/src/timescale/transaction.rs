//! One commit: marks locked and checked, rows copied, refused rows set aside, marks moved; all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};

use fieldstream_engine_api::{Generation, Mark, PartitionKey, SinkBatch, SinkError};
use fieldstream_schemas::encode::json::JsonWriter;
use sqlx::PgConnection;

use super::copy::Encoded;
use super::errors::sink_error;
use super::marks::{Durable, Marks, Stored};
use super::options::TablePlan;
use super::plain;
use super::schema::Layout;
use super::store::{Reject, run, store_rejects, store_rows};

/// What a commit needs to know of the sink.
#[derive(Debug)]
pub(crate) struct Target {
    /// The table.
    pub(crate) table: TablePlan,
    /// The marks.
    pub(crate) marks: Marks,
    /// One per input, for refused rows.
    pub(crate) encoders: Vec<JsonWriter>,
}

/// A batch with what this process holds true of its partition.
#[derive(Debug)]
pub(crate) struct Work {
    /// The rows.
    pub(crate) batch: SinkBatch,
    /// Our generation.
    pub(crate) generation: Generation,
    /// What the runtime was last told.
    pub(crate) told: Option<Durable>,
}

/// What to do with a batch, once its mark is locked.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is not stored yet.
    Store(Durable),
    /// An earlier commit, whose answer got lost, has stored it.
    Done(Durable),
}

/// Judges a batch by the stored mark. Pure.
fn judge(work: &Work, stored: Option<&Stored>) -> Result<Step, SinkError> {
    let key = &work.batch.partition;
    let Some(stored) = stored else {
        let cause = format!("partition {key} has no mark: was fieldstream_marks emptied?");
        return Err(SinkError::Fatal { context: "check the mark".to_owned(), cause });
    };
    if stored.generation != work.generation {
        return Err(SinkError::Fenced { partition: key.clone(), owner: stored.generation });
    }
    match stored.durable {
        Some(durable) if stored.durable != work.told => {
            if durable.mark >= work.batch.complete_to {
                return Ok(Step::Done(durable));
            }
            let cause =
                format!("partition {key} is stored up to {}, which is inside a batch up to {}", durable.mark, work.batch.complete_to);
            Err(SinkError::Fatal { context: "check the mark".to_owned(), cause })
        }
        durable => Ok(Step::Store(durable.unwrap_or_default())),
    }
}

/// The rows to store: encoded, with the batch and part each came from.
struct Rows<'a> {
    encoded: Encoded,
    parts: Vec<(&'a Work, usize)>,
}

fn encode<'a>(table: &TablePlan, works: impl Iterator<Item = &'a Work>) -> Result<Rows<'a>, SinkError> {
    let mut rows = Rows { encoded: Encoded::default(), parts: Vec::new() };
    for work in works {
        for (number, part) in work.batch.rows.iter().enumerate() {
            let pushed = rows.encoded.push(&table.columns, rows.parts.len(), &part.batch.rows);
            pushed.map_err(|cause| SinkError::Fatal { context: "encode rows".to_owned(), cause })?;
            rows.parts.push((work, number));
        }
    }
    Ok(rows)
}

/// Commits `works` in one transaction and tells what is durable then. The connection is fit for use afterwards only if
/// this returned `Ok`.
pub(crate) async fn commit(
    conn: &mut PgConnection,
    target: &Target,
    layout: Layout,
    works: &[Work],
) -> Result<Vec<(PartitionKey, Durable)>, SinkError> {
    let failed = |context: &'static str| move |error: sqlx::Error| sink_error(context, &error);
    run(conn, "BEGIN").await.map_err(failed("begin a transaction"))?;
    let keys: Vec<&PartitionKey> = works.iter().map(|w| &w.batch.partition).collect();
    let stored = target.marks.lock(conn, &keys).await.map_err(failed("lock marks"))?;
    let mut steps = Vec::with_capacity(works.len());
    for work in works {
        let key = &work.batch.partition;
        steps.push((work, judge(work, stored.get(&(key.log_id.0.to_string(), key.partition)))?));
    }
    let open = steps.iter().filter(|(_, step)| matches!(step, Step::Store(_))).map(|(work, _)| *work);
    let rows = encode(&target.table, open.clone())?;
    let refused = store_rows(conn, &target.table, &rows.encoded).await.map_err(failed("copy rows"))?;
    let mut refused_by: BTreeMap<&PartitionKey, u64> = BTreeMap::new();
    let mut rejects = Vec::new();
    for refused in rows.encoded.refused.iter().chain(&refused) {
        let Some((work, part)) = rows.parts.get(refused.row.batch) else { continue };
        *refused_by.entry(&work.batch.partition).or_default() += 1;
        rejects.push(Reject { batch: &work.batch, part: *part, refused });
    }
    let stored = store_rejects(conn, &target.table, &target.marks.sink, &target.encoders, &rejects).await;
    stored.map_err(failed("store refused rows"))?;
    if layout == Layout::Daily && !target.table.aggregates.is_empty() {
        let mut hours = BTreeSet::new();
        open.flat_map(|w| &w.batch.rows).for_each(|part| plain::hours(&part.batch.rows, &mut hours));
        plain::note_hours(conn, &target.table, &hours).await.map_err(failed("note hours for the rollups"))?;
    }
    let moved: Vec<_> = steps.iter().map(|(work, step)| moved(work, step, &refused_by)).collect();
    target.marks.update(conn, &moved).await.map_err(failed("move marks"))?;
    run(conn, "COMMIT").await.map_err(failed("commit"))?;
    Ok(moved)
}

fn moved(work: &Work, step: &Step, refused_by: &BTreeMap<&PartitionKey, u64>) -> (PartitionKey, Durable) {
    let key = work.batch.partition.clone();
    match step {
        Step::Done(durable) => (key, *durable),
        Step::Store(before) => {
            let rows: u64 = work.batch.rows.iter().map(|part| part.batch.len() as u64).sum();
            let refused = refused_by.get(&key).copied().unwrap_or_default();
            let mark: Mark = before.mark.max(work.batch.complete_to);
            (key, Durable { mark, delivered: before.delivered + rows - refused, refused: before.refused + refused })
        }
    }
}

#[cfg(test)]
mod tests {
    use fieldstream_engine_api::LogId;

    use super::*;

    fn durable(next_offset: u64, delivered: u64) -> Durable {
        Durable { mark: Mark { next_offset, next_decision: 0 }, delivered, refused: 0 }
    }

    fn work(to: u64, told: Option<Durable>) -> Work {
        let partition = PartitionKey { pipeline: "p".into(), log_id: LogId("l".into()), partition: 0 };
        let complete_to = Mark { next_offset: to, next_decision: 0 };
        Work { batch: SinkBatch { partition, rows: Vec::new(), complete_to }, generation: Generation(2), told }
    }

    fn stored(generation: u64, durable: Option<Durable>) -> Stored {
        Stored { generation: Generation(generation), durable }
    }

    #[test]
    fn a_batch_is_stored_once_and_only_by_the_owner() {
        let told = Some(durable(10, 4));
        assert_eq!(judge(&work(20, None), Some(&stored(2, None))).expect("first"), Step::Store(Durable::default()));
        assert_eq!(judge(&work(20, told), Some(&stored(2, told))).expect("next"), Step::Store(durable(10, 4)));
        let lost = Some(durable(20, 9));
        assert_eq!(judge(&work(20, told), Some(&stored(2, lost))).expect("answer got lost"), Step::Done(durable(20, 9)));
        assert!(matches!(judge(&work(20, told), Some(&stored(3, told))), Err(SinkError::Fenced { owner: Generation(3), .. })));
        assert!(matches!(judge(&work(30, told), Some(&stored(2, lost))), Err(SinkError::Fatal { .. })), "another batch");
        assert!(matches!(judge(&work(20, told), None), Err(SinkError::Fatal { .. })));
    }

    #[test]
    fn rows_that_do_not_move_the_mark_are_stored_too() {
        let told = Some(durable(20, 4));
        assert_eq!(judge(&work(20, told), Some(&stored(2, told))).expect("end of input"), Step::Store(durable(20, 4)));
    }
}
