//! What TimescaleDB looks after: chunks, compression, retention and continuous aggregates (2.11 and newer).

use std::time::Duration;

use fieldstream_schemas::columns::TS;
use sqlx::{AssertSqlSafe, PgConnection};

use super::options::TablePlan;
use super::schema::{optional, rollup_name, rollup_select};
use super::store::run;

fn interval(length: Duration) -> String {
    format!("INTERVAL '{} seconds'", length.as_secs())
}

/// Makes the hypertable and its policies what the plan says.
pub(crate) async fn prepare(conn: &mut PgConnection, table: &TablePlan) -> Result<(), sqlx::Error> {
    let (target, chunk) = (table.target(), interval(table.chunk));
    run(
        conn,
        format!(
            "SELECT create_hypertable('{target}', '{TS}', chunk_time_interval => {chunk}, create_default_indexes => FALSE, \
             if_not_exists => TRUE, migrate_data => TRUE); SELECT set_chunk_time_interval('{target}', {chunk})"
        ),
    )
    .await?;
    if let Some(after) = table.compress_after {
        compress(conn, table, after).await?;
    }
    if let Some(retain) = table.retain {
        policy(conn, table, "retention", "drop_after", retain).await?;
    }
    for width in &table.aggregates {
        aggregate(conn, table, *width).await?;
    }
    Ok(())
}

async fn compress(conn: &mut PgConnection, table: &TablePlan, after: Duration) -> Result<(), sqlx::Error> {
    let sql = "SELECT compression_enabled FROM timescaledb_information.hypertables WHERE hypertable_schema = $1 AND hypertable_name = $2";
    let enabled: Option<bool> = sqlx::query_scalar(sql).bind(&table.schema).bind(&table.table).fetch_optional(&mut *conn).await?;
    if enabled != Some(true) {
        let segments = table.series();
        let by = if segments.is_empty() { String::new() } else { format!("timescaledb.compress_segmentby = '{}', ", segments.join(", ")) };
        let target = table.target();
        let sql = format!("ALTER TABLE {target} SET (timescaledb.compress, {by}timescaledb.compress_orderby = '{TS} DESC')");
        if !optional(conn, "compression", sql).await? {
            return Ok(());
        }
    }
    policy(conn, table, "compression", "compress_after", after).await
}

/// Adds a policy, or replaces one with another age: adding alone keeps the old one.
async fn policy(conn: &mut PgConnection, table: &TablePlan, name: &str, key: &str, age: Duration) -> Result<(), sqlx::Error> {
    let age = interval(age);
    let sql = format!(
        "SELECT (config->>'{key}')::interval = {age} FROM timescaledb_information.jobs \
         WHERE proc_name = 'policy_{name}' AND hypertable_schema = $1 AND hypertable_name = $2"
    );
    let same = sqlx::query_scalar(AssertSqlSafe(sql)).bind(&table.schema).bind(&table.table).fetch_optional(&mut *conn).await?;
    if same.flatten() == Some(true) {
        return Ok(());
    }
    let target = table.target();
    let sql = format!("SELECT remove_{name}_policy('{target}', if_exists => TRUE); SELECT add_{name}_policy('{target}', {age})");
    optional(conn, name, sql).await.map(|_| ())
}

async fn aggregate(conn: &mut PgConnection, table: &TablePlan, width: Duration) -> Result<(), sqlx::Error> {
    let view = table.qualified(&rollup_name(table, width));
    let groups = (1..=table.series().len() + 1).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    // Rows that retention has dropped must not be refreshed away: the window ends before them.
    let start = match table.retain {
        Some(retain) => interval(retain.saturating_sub(table.chunk).max(width * 4)),
        None => "NULL::interval".to_owned(),
    };
    let create = format!(
        "CREATE MATERIALIZED VIEW IF NOT EXISTS {view} WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS {} \
         WHERE value IS NOT NULL GROUP BY {groups} WITH NO DATA",
        rollup_select(table, width, "time_bucket"),
    );
    if !optional(conn, "a continuous aggregate", create).await? {
        return Ok(());
    }
    let end = interval(width);
    let sql = format!(
        "SELECT (j.config->>'start_offset')::interval IS NOT DISTINCT FROM {start} AND (j.config->>'end_offset')::interval = {end} \
         FROM timescaledb_information.jobs j JOIN timescaledb_information.continuous_aggregates c \
         ON c.materialization_hypertable_name = '_materialized_hypertable_' || (j.config->>'mat_hypertable_id') \
         WHERE c.view_schema = $1 AND c.view_name = $2 AND j.proc_name = 'policy_refresh_continuous_aggregate'"
    );
    let same = sqlx::query_scalar(AssertSqlSafe(sql)).bind(&table.schema).bind(rollup_name(table, width));
    let same: Option<Option<bool>> = same.fetch_optional(&mut *conn).await?;
    if same.flatten() == Some(true) {
        return Ok(());
    }
    // Newer versions allow a second policy beside the first and refuse it where the windows overlap: the old one goes first.
    let policy = format!(
        "SELECT remove_continuous_aggregate_policy('{view}', if_exists => TRUE); \
         SELECT add_continuous_aggregate_policy('{view}', start_offset => {start}, end_offset => {end}, schedule_interval => {})",
        interval(width.max(Duration::from_secs(60)))
    );
    optional(conn, "a refresh policy", policy).await.map(|_| ())
}
