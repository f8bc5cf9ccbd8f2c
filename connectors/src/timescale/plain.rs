//! Plain PostgreSQL: a partition a day, retention by dropping them, rollups recomputed where rows came in.

use std::collections::BTreeSet;
use std::time::Duration;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use fieldstream_schemas::columns::TS;
use fieldstream_schemas::time::{civil_from_days, days_from_civil};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::options::{TablePlan, quote};
use super::schema::{BUCKET_ORIGIN, advisory_lock, rollup_name, rollup_select};
use super::store::run;

const SECOND_US: i64 = 1_000_000;
const HOUR_S: i64 = 3600;
const DAY_S: i64 = 86_400;

/// Numbers (since 1970) of the spans of `seconds` in which `rows` have event times.
pub(crate) fn spans(rows: &RecordBatch, seconds: i64, found: &mut BTreeSet<i64>) {
    let Some(times) = rows.column_by_name(TS).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>()) else { return };
    let mut last = None;
    for row in (0..times.len()).filter(|row| times.is_valid(*row)) {
        let span = times.value(row).div_euclid(seconds * SECOND_US);
        if last != Some(span) {
            found.insert(span);
            last = Some(span);
        }
    }
}

/// Days in which `rows` have event times; those of years that the encoder refuses are left out.
pub(crate) fn days(rows: &RecordBatch, found: &mut BTreeSet<i64>) {
    let mut all = BTreeSet::new();
    spans(rows, DAY_S, &mut all);
    found.extend(all.into_iter().filter(|d| super::copy::DAYS.contains(d)));
}

/// Hours in which `rows` have event times.
pub(crate) fn hours(rows: &RecordBatch, found: &mut BTreeSet<i64>) {
    spans(rows, HOUR_S, found);
}

fn partition_name(table: &str, day: i64) -> String {
    let (year, month, day) = civil_from_days(day);
    format!("{table}_p{year:04}{month:02}{day:02}")
}

fn partition_day(table: &str, name: &str) -> Option<i64> {
    let date = name.strip_prefix(table)?.strip_prefix("_p").filter(|d| d.len() == 8 && d.bytes().all(|b| b.is_ascii_digit()))?;
    Some(days_from_civil(date[..4].parse().ok()?, date[4..6].parse().ok()?, date[6..].parse().ok()?))
}

/// The days that have a partition.
pub(crate) async fn partitions(conn: &mut PgConnection, table: &TablePlan) -> Result<BTreeSet<i64>, sqlx::Error> {
    let sql = "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass";
    let rows = sqlx::query(sql).bind(table.target()).fetch_all(conn).await?;
    let names = rows.iter().map(|row| row.try_get::<String, _>(0)).collect::<Result<Vec<_>, _>>()?;
    Ok(names.iter().filter_map(|name| partition_day(&table.table, name)).collect())
}

/// Makes the partitions of `days`. They are made apart and then attached: that blocks neither readers nor writers.
pub(crate) async fn make_partitions(conn: &mut PgConnection, table: &TablePlan, days: &BTreeSet<i64>) -> Result<(), sqlx::Error> {
    run(conn, "BEGIN").await?;
    advisory_lock(conn).await?;
    let there = partitions(conn, table).await?;
    for day in days.difference(&there) {
        let (target, part) = (table.target(), table.qualified(&partition_name(&table.table, *day)));
        let (from, to) = (day * DAY_S, (day + 1) * DAY_S);
        run(
            conn,
            format!(
                "CREATE TABLE {part} (LIKE {target} INCLUDING DEFAULTS INCLUDING CONSTRAINTS); \
                 ALTER TABLE {target} ATTACH PARTITION {part} FOR VALUES FROM (to_timestamp({from})) TO (to_timestamp({to}))"
            ),
        )
        .await?;
    }
    run(conn, "COMMIT").await
}

/// Statement that makes the list of hours whose rollups are out of date.
pub(crate) fn dirty_ddl(schema: &str) -> String {
    // No unique index: commits that touch the same hour must not wait for each other.
    format!("CREATE TABLE IF NOT EXISTS {}.fieldstream_dirty (table_name text NOT NULL, hour bigint NOT NULL)", quote(schema))
}

/// Notes, in the transaction that stores rows, the hours they fall into.
pub(crate) async fn note_hours(conn: &mut PgConnection, table: &TablePlan, hours: &BTreeSet<i64>) -> Result<(), sqlx::Error> {
    let sql = format!("INSERT INTO {}.fieldstream_dirty SELECT $1, unnest($2::bigint[])", quote(&table.schema));
    let hours: Vec<i64> = hours.iter().copied().collect();
    sqlx::query(AssertSqlSafe(sql)).bind(&table.table).bind(hours).execute(conn).await.map(|_| ())
}

/// Recomputes the rollups of the noted hours, and drops partitions older than `retain`.
pub(crate) async fn maintain(conn: &mut PgConnection, table: &TablePlan) -> Result<(), sqlx::Error> {
    refresh(conn, table).await?;
    match table.retain {
        Some(retain) => drop_old(conn, table, retain).await,
        None => Ok(()),
    }
}

async fn refresh(conn: &mut PgConnection, table: &TablePlan) -> Result<(), sqlx::Error> {
    if table.aggregates.is_empty() {
        return Ok(());
    }
    run(conn, "BEGIN").await?;
    // One worker at a time. Another one's turn will see what this one leaves.
    let sql = "SELECT pg_try_advisory_xact_lock(hashtext('fieldstream-rollup'), hashtext($1))";
    let ours: bool = sqlx::query_scalar(sql).bind(table.target()).fetch_one(&mut *conn).await?;
    if !ours {
        return run(conn, "ROLLBACK").await;
    }
    // The hours are taken first and the rows are read by later statements: a commit in between leaves its hours noted.
    let sql = format!(
        "WITH gone AS (DELETE FROM {}.fieldstream_dirty WHERE table_name = $1 RETURNING hour) SELECT DISTINCT hour FROM gone",
        quote(&table.schema)
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(&table.table).fetch_all(&mut *conn).await?;
    let hours = rows.iter().map(|row| row.try_get::<i64, _>(0)).collect::<Result<BTreeSet<_>, _>>()?;
    for width in &table.aggregates {
        for (from, to) in ranges(&hours, *width) {
            let rollup = table.qualified(&rollup_name(table, *width));
            let select = rollup_select(table, *width, "date_bin");
            run(
                conn,
                format!(
                    "DELETE FROM {rollup} WHERE bucket >= to_timestamp({from}) AND bucket < to_timestamp({to}); INSERT INTO {rollup} \
                     {select} WHERE value IS NOT NULL AND ts >= to_timestamp({from}) AND ts < to_timestamp({to}) GROUP BY {}",
                    (1..=table.series().len() + 1).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
                ),
            )
            .await?;
        }
    }
    run(conn, "COMMIT").await
}

/// The time ranges, in seconds, of the buckets of `width` that overlap `hours`; neighbours are joined.
fn ranges(hours: &BTreeSet<i64>, width: Duration) -> Vec<(i64, i64)> {
    let width = i64::try_from(width.as_secs()).unwrap_or(i64::MAX).max(1);
    let floor = |second: i64| (second - BUCKET_ORIGIN).div_euclid(width) * width + BUCKET_ORIGIN;
    let mut joined: Vec<(i64, i64)> = Vec::new();
    for hour in hours {
        let (from, to) = (floor(hour * HOUR_S), floor((hour + 1) * HOUR_S - 1) + width);
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}

async fn drop_old(conn: &mut PgConnection, table: &TablePlan, retain: Duration) -> Result<(), sqlx::Error> {
    let now: f64 = sqlx::query_scalar("SELECT extract(epoch FROM now())::float8").fetch_one(&mut *conn).await?;
    let limit = now - retain.as_secs_f64();
    for day in partitions(conn, table).await?.into_iter().filter(|day| ((day + 1) * DAY_S) as f64 <= limit) {
        let part = table.qualified(&partition_name(&table.table, day));
        // Readers come first: what cannot be had soon is tried again at the next turn.
        run(conn, format!("SET lock_timeout = '2s'; DROP TABLE IF EXISTS {part}; RESET lock_timeout")).await?;
        tracing::info!(partition = %part, "dropped by retention");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_by_day_and_read_back() {
        let day = days_from_civil(2026, 11, 23);
        assert_eq!(partition_name("sensor_data", day), "sensor_data_p20261123");
        assert_eq!(partition_day("sensor_data", "sensor_data_p20261123"), Some(day));
        assert_eq!(partition_day("sensor_data", "sensor_data_5m"), None);
        assert_eq!(partition_day("sensor_data", "sensor_data_pxxxxxxxx"), None);
    }

    #[test]
    fn ranges_cover_whole_buckets_and_join() {
        let hours = BTreeSet::from([0, 1, 5]);
        assert_eq!(ranges(&hours, Duration::from_secs(300)), [(0, 7200), (18_000, 21_600)]);
        assert_eq!(ranges(&hours, Duration::from_secs(3 * 3600)), [(0, 21_600)]);
        assert_eq!(ranges(&BTreeSet::from([-1]), Duration::from_secs(86_400)), [(-86_400, 0)]);
    }
}
