//! What must have come out: the same pipeline over the log and the recorded decisions, payload by payload, once, by nobody who
//! could fail: no batches, no checkpoints, no sinks, no second owner.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fieldstream_checkpoint::{CheckpointStore, Decision};
use fieldstream_engine_api::PartitionKey;
use fieldstream_runtime::clock::Clock;
use fieldstream_runtime::decisions::QUARANTINE;
use fieldstream_runtime::ledger::{Ledger, Totals};
use fieldstream_runtime::partition::{Partition, TurnOutput};

use super::broker::{batch, log_id};
use super::scenario;
use super::sink::{Row, rows_of};
use super::world::World;

struct StandingClock;

impl Clock for StandingClock {
    fn now_us(&self) -> i64 {
        0
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// Whose partition it is.
pub(super) fn key(world: &World, partition: u32) -> PartitionKey {
    PartitionKey { pipeline: Arc::clone(&world.spec.name), log_id: log_id(), partition }
}

/// All decisions that count, from the first on.
pub(super) async fn decisions(world: &World, partition: u32) -> Result<Vec<Decision>, String> {
    let history: Arc<dyn object_store::ObjectStore> = world.history.clone();
    let store = CheckpointStore::open_remote(history).await.map_err(|e| e.to_string())?;
    store.partition(&key(world, partition)).decisions_from(0).await.map_err(|e| format!("partition {partition}: {e}"))
}

/// A partition and what it put out, by sink.
type Evaluated = (Partition, Vec<Vec<Row>>);

/// A partition after payloads `0..to` and the decisions among them.
pub(super) fn evaluate(world: &World, partition: u32, to: u64, decisions: Vec<Decision>) -> Result<Evaluated, String> {
    let evaluated = catch_unwind(AssertUnwindSafe(|| evaluate_all(world, partition, to, decisions)));
    evaluated.unwrap_or_else(|_| Err(format!("partition {partition}: a poison row below offset {to} was not taken out")))
}

fn evaluate_all(world: &World, partition: u32, to: u64, decisions: Vec<Decision>) -> Result<Evaluated, String> {
    let key = key(world, partition);
    let fresh = Partition::new(&world.spec, &key, 0, Arc::new(StandingClock));
    let mut evaluated = fresh.map_err(|errors| format!("{errors:?}"))?;
    evaluated.set_replay(decisions);
    let mut rows = vec![Vec::new(); world.spec.graph.sinks.len()];
    let mut keep = |outputs: Vec<TurnOutput>| {
        let by_sink = outputs.iter().flat_map(|output| output.rows.iter().enumerate());
        by_sink.for_each(|(sink, parts)| rows[sink].extend(rows_of(partition, parts)));
    };
    let records = world.broker().records(partition).to_vec();
    keep(evaluated.catch_up().map_err(|e| e.to_string())?);
    for offset in 0..to {
        keep(evaluated.turn(batch(&records, partition, offset, offset + 1)).map_err(|e| e.to_string())?);
    }
    Ok((evaluated, rows))
}

/// Compares the tables and the account of the last owner of all partitions with what must be.
pub(super) async fn judge(world: &World, ledger: &Ledger) -> Result<(), String> {
    let mut totals = Totals::new(world.spec.graph.sinks.len());
    let mut expected = vec![Vec::new(); world.spec.graph.sinks.len()];
    let partitions = world.broker().partitions();
    for partition in 0..partitions {
        let to = world.broker().records(partition).len() as u64;
        let decisions = decisions(world, partition).await?;
        judge_quarantine(world, partition, &decisions)?;
        let (evaluated, rows) = evaluate(world, partition, to, decisions)?;
        totals.add(evaluated.totals());
        expected.iter_mut().zip(rows).for_each(|(all, own)| all.extend(own));
    }
    for (number, expected) in expected.iter().enumerate() {
        let found = world.tables[number].lock().unwrap().rows.clone();
        let name = &world.spec.graph.sinks[number].name;
        if scenario::is_hook(&world.spec, number) {
            let found: BTreeSet<&Row> = found.iter().collect();
            if let Some(row) = expected.iter().find(|row| !found.contains(row)) {
                return Err(format!("{name}: this row never came: {row:?}"));
            }
        } else {
            compare(expected, &found).map_err(|what| format!("{name}: {what}"))?;
        }
    }
    judge_ledger(world, ledger, &totals)
}

/// Nothing but poison was taken out.
fn judge_quarantine(world: &World, partition: u32, decisions: &[Decision]) -> Result<(), String> {
    let broker = world.broker();
    let innocent =
        |d: &&Decision| d.kind == QUARANTINE && !scenario::is_poison(&broker.records(partition)[d.position.offset as usize].data);
    decisions.iter().find(innocent).map_or(Ok(()), |d| Err(format!("partition {partition}: a sound row was taken out: {d:?}")))
}

/// The same rows the same number of times, those of each device and input in the same order.
fn compare(expected: &[Row], found: &[Row]) -> Result<(), String> {
    let mut balance: BTreeMap<&Row, i64> = BTreeMap::new();
    expected.iter().for_each(|row| *balance.entry(row).or_default() += 1);
    found.iter().for_each(|row| *balance.entry(row).or_default() -= 1);
    let (missing, extra): (Vec<_>, Vec<_>) = balance.into_iter().filter(|(_, n)| *n != 0).partition(|(_, n)| *n > 0);
    if !missing.is_empty() || !extra.is_empty() {
        let (expected, found) = (expected.len(), found.len());
        let (first_missing, first_extra) = (missing.first(), extra.first());
        return Err(format!(
            "{found} rows instead of {expected}, {} missing, first {first_missing:?}; {} too many, first {first_extra:?}",
            missing.len(),
            extra.len()
        ));
    }
    let (expected, found) = (by_device(expected), by_device(found));
    let Some((device, rows)) = expected.iter().find(|(device, rows)| found.get(*device) != Some(*rows)) else { return Ok(()) };
    let differ = rows.iter().zip(&found[device]).find(|(expected, found)| expected != found);
    Err(format!("rows of {device:?} are in another order, first (expected, found): {differ:?}"))
}

/// Rows in their order by partition, input and device.
fn by_device(rows: &[Row]) -> BTreeMap<(u32, usize, String), Vec<&Row>> {
    let mut devices: BTreeMap<_, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let columns: serde_json::Value = serde_json::from_str(&row.text).unwrap_or_default();
        let device = columns.get("deviceId").map(ToString::to_string).unwrap_or_default();
        devices.entry((row.partition, row.input, device)).or_default().push(row);
    }
    devices
}

fn judge_ledger(world: &World, ledger: &Ledger, totals: &Totals) -> Result<(), String> {
    let appended = world.broker().appended();
    let same = ledger.balanced
        && totals.received == appended
        && ledger.received == totals.received
        && ledger.settled == totals.settled
        && ledger.dead_lettered == totals.dead_lettered
        && ledger.dropped == totals.dropped
        && ledger.deduplicated == totals.deduplicated
        && ledger.in_flight == 0;
    let delivered = |(number, sink): (usize, &fieldstream_runtime::spec::SinkSpec)| {
        sink.dead_letter || ledger.delivered.get(&sink.name) == totals.offered.get(number)
    };
    if same && world.spec.graph.sinks.iter().enumerate().all(delivered) {
        return Ok(());
    }
    Err(format!("the ledger of {appended} payloads is {ledger:?}, and should be {totals:?}"))
}
