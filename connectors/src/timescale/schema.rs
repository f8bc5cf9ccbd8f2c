//! Tables, hypertables, policies and rollups: made when missing, left alone when there, so that every start may run it.

use std::time::Duration;

use fieldstream_engine_api::SinkError;
use fieldstream_schemas::columns::TS;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::errors::{code, sink_error};
use super::marks::Marks;
use super::options::{Mode, TablePlan, quote};
use super::plain::dirty_ddl;
use super::store::{rejects_ddl, run};

/// Buckets begin at this second and at multiples of their width from it: Monday 2000-01-03, TimescaleDB's own origin.
pub(crate) const BUCKET_ORIGIN: i64 = 946_857_600;

/// How the table is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// TimescaleDB looks after time.
    Hypertable,
    /// A partition a day; we look after them.
    Daily,
    /// One table: the rows have no time of their own.
    Heap,
}

/// Why the schema cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("{0}")]
    Unfit(String),
}

impl SchemaError {
    pub(crate) fn into_sink_error(self, context: &str) -> SinkError {
        match self {
            Self::Database(error) => sink_error(context, &error),
            Self::Unfit(cause) => SinkError::Fatal { context: context.to_owned(), cause },
        }
    }
}

/// Waits, inside a transaction, until no other worker changes the schema.
pub(crate) async fn advisory_lock(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    run(conn, "SELECT pg_advisory_xact_lock(hashtext('fieldstream-schema'))").await
}

/// Makes everything that is missing, in one transaction under a lock.
pub(crate) async fn prepare(conn: &mut PgConnection, table: &TablePlan, marks: &Marks) -> Result<Layout, SchemaError> {
    run(conn, "BEGIN").await?;
    advisory_lock(conn).await?;
    let extension = has_extension(conn, table.mode).await?;
    if sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = $1").bind(&table.schema).fetch_optional(&mut *conn).await?.is_none() {
        run(conn, format!("CREATE SCHEMA {}", quote(&table.schema))).await?;
    }
    for (name, ddl) in [
        ("fieldstream_marks", marks.ddl()),
        ("fieldstream_rejects", rejects_ddl(&table.schema)),
        ("fieldstream_dirty", dirty_ddl(&table.schema)),
    ] {
        // Looked for first: even CREATE IF NOT EXISTS wants a right that a careful administrator may not grant.
        if kind_of(conn, &table.qualified(name)).await?.is_none() {
            run(conn, ddl).await?;
        }
    }
    let layout = prepare_table(conn, table, extension).await?;
    match layout {
        Layout::Hypertable => super::hyper::prepare(conn, table).await?,
        Layout::Daily => prepare_rollups(conn, table).await?,
        Layout::Heap => {}
    }
    run(conn, "COMMIT").await?;
    Ok(layout)
}

async fn has_extension(conn: &mut PgConnection, mode: Mode) -> Result<bool, SchemaError> {
    if mode == Mode::Plain {
        return Ok(false);
    }
    let sql = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'";
    let version: Option<String> = sqlx::query_scalar(sql).fetch_optional(&mut *conn).await?;
    if version.is_none() && mode == Mode::Timescale {
        let cause = "the database has no extension timescaledb: run CREATE EXTENSION timescaledb, or take `mode: plain`";
        return Err(SchemaError::Unfit(cause.to_owned()));
    }
    tracing::info!(timescaledb = version.as_deref().unwrap_or("none"), "database looked at");
    Ok(version.is_some())
}

/// `r` for a table, `p` for a partitioned one, `None` for none.
async fn kind_of(conn: &mut PgConnection, name: &str) -> Result<Option<String>, sqlx::Error> {
    let sql = "SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)";
    sqlx::query_scalar(sql).bind(name).fetch_optional(conn).await
}

async fn prepare_table(conn: &mut PgConnection, table: &TablePlan, extension: bool) -> Result<Layout, SchemaError> {
    let target = table.target();
    let kind = kind_of(conn, &target).await?;
    let layout = match kind.as_deref() {
        _ if !table.by_time() => Layout::Heap,
        Some("p") if table.mode == Mode::Timescale => {
            return Err(SchemaError::Unfit(format!("table {target} has partitions of plain PostgreSQL: name another table")));
        }
        Some("p") => Layout::Daily,
        Some(_) if !extension => {
            let cause = format!("table {target} exists and has no partitions: name another table, or let the sink make it");
            return Err(SchemaError::Unfit(cause));
        }
        _ if extension => Layout::Hypertable,
        _ => Layout::Daily,
    };
    if kind.is_none() {
        run(conn, create_table(table, layout)).await?;
    } else {
        check_columns(conn, table).await?;
    }
    if layout != Layout::Heap {
        make_indexes(conn, table, layout).await?;
    }
    Ok(layout)
}

fn create_table(table: &TablePlan, layout: Layout) -> String {
    let column = |c: &super::columns::Column| {
        let not_null = if c.name == TS && !c.nullable { " NOT NULL" } else { "" };
        format!("{} {}{not_null}", quote(&c.name), c.kind.sql())
    };
    let columns = table.columns.iter().map(column).collect::<Vec<_>>().join(", ");
    let partitioned = if layout == Layout::Daily { " PARTITION BY RANGE (ts)" } else { "" };
    format!("CREATE TABLE {} ({columns}){partitioned}", table.target())
}

/// Adds columns that an older table lacks, and refuses one whose types differ: binary COPY would misread every row.
async fn check_columns(conn: &mut PgConnection, table: &TablePlan) -> Result<(), SchemaError> {
    let sql = "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute \
               WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped";
    let rows = sqlx::query(sql).bind(table.target()).fetch_all(&mut *conn).await?;
    let there =
        rows.iter().map(|row| Ok((row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?))).collect::<Result<Vec<_>, sqlx::Error>>()?;
    for column in &table.columns {
        match there.iter().find(|(name, _)| *name == column.name) {
            Some((_, kind)) if kind == column.kind.sql() => {}
            Some((name, kind)) => {
                let wanted = column.kind.sql();
                let cause = format!("column `{name}` of {} is {kind}, but {wanted} is needed: name another table", table.target());
                return Err(SchemaError::Unfit(cause));
            }
            None => {
                let add = format!("ALTER TABLE {} ADD COLUMN {} {}", table.target(), quote(&column.name), column.kind.sql());
                run(conn, add).await?;
            }
        }
    }
    Ok(())
}

async fn make_indexes(conn: &mut PgConnection, table: &TablePlan, layout: Layout) -> Result<(), sqlx::Error> {
    let series = table.series().join(", ");
    let mut wanted = Vec::new();
    if layout == Layout::Daily {
        wanted.push(("ts_brin", "", "USING brin (ts)".to_owned()));
    }
    if table.index && !series.is_empty() {
        wanted.push(("series", "", format!("({series}, ts DESC)")));
    }
    if table.unique {
        // Time first: that order is the cheapest to keep.
        wanted.push(("once", "UNIQUE ", format!("(ts, {series})")));
    }
    for (suffix, unique, what) in wanted {
        let name = format!("{}_{suffix}", table.table);
        // IF NOT EXISTS fails on TimescaleDB 2.13 once compression is on.
        let sql = "SELECT 1 FROM pg_indexes WHERE schemaname = $1 AND indexname = $2";
        if sqlx::query(sql).bind(&table.schema).bind(&name).fetch_optional(&mut *conn).await?.is_none() {
            run(conn, format!("CREATE {unique}INDEX {} ON {} {what}", quote(&name), table.target())).await?;
        }
    }
    Ok(())
}

/// Name of the rollup of `width`, such as `sensor_data_5m`.
pub(crate) fn rollup_name(table: &TablePlan, width: Duration) -> String {
    let seconds = width.as_secs();
    let (number, unit) = match seconds {
        s if s % 86_400 == 0 => (s / 86_400, "d"),
        s if s % 3600 == 0 => (s / 3600, "h"),
        s if s % 60 == 0 => (s / 60, "m"),
        s => (s, "s"),
    };
    format!("{}_{number}{unit}", table.table)
}

/// The rollup's columns from the table; `bucket_function` is `date_bin` or `time_bucket`.
pub(crate) fn rollup_select(table: &TablePlan, width: Duration, bucket_function: &str) -> String {
    let origin = if bucket_function == "date_bin" { format!(", to_timestamp({BUCKET_ORIGIN})") } else { String::new() };
    let series: String = table.series().iter().map(|name| format!("{name}, ")).collect();
    format!(
        "SELECT {bucket_function}(INTERVAL '{} seconds', ts{origin}) AS bucket, {series}count(value) AS count, min(value) AS min, \
         max(value) AS max, sum(value) AS sum, avg(value) AS mean FROM {}",
        width.as_secs(),
        table.target()
    )
}

async fn prepare_rollups(conn: &mut PgConnection, table: &TablePlan) -> Result<(), sqlx::Error> {
    for width in &table.aggregates {
        let name = rollup_name(table, *width);
        let rollup = table.qualified(&name);
        if kind_of(conn, &rollup).await?.is_some() {
            continue;
        }
        let series: String = table.series().iter().map(|name| format!("{name} text, ")).collect();
        let index: String = table.series().iter().map(|name| format!("{name}, ")).collect();
        run(
            conn,
            format!(
                "CREATE TABLE {rollup} (bucket timestamptz NOT NULL, {series}count bigint, min float8, max float8, sum float8, mean float8); \
                 CREATE INDEX {} ON {rollup} (bucket); CREATE INDEX {} ON {rollup} ({index}bucket DESC); \
                 INSERT INTO {}.fieldstream_dirty SELECT DISTINCT '{}', floor(extract(epoch FROM ts) / 3600)::bigint FROM {}",
                quote(&format!("{name}_bucket")),
                quote(&format!("{name}_series")),
                quote(&table.schema),
                table.table,
                table.target()
            ),
        )
        .await?;
    }
    Ok(())
}

/// Runs a statement that a licence or version may not allow; then says so, goes on without it and returns false.
pub(crate) async fn optional(conn: &mut PgConnection, what: &str, sql: String) -> Result<bool, sqlx::Error> {
    run(conn, "SAVEPOINT fieldstream_optional").await?;
    match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await {
        Ok(_) => run(conn, "RELEASE SAVEPOINT fieldstream_optional").await.map(|()| true),
        Err(error) if code(&error).as_deref() == Some("0A000") => {
            tracing::warn!(%error, "{what} is not available in this edition of TimescaleDB; going on without it");
            run(conn, "ROLLBACK TO SAVEPOINT fieldstream_optional; RELEASE SAVEPOINT fieldstream_optional").await.map(|()| false)
        }
        Err(error) => Err(error),
    }
}
