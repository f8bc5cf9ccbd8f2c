//! Rows into the table by COPY, and the few that the server refuses into the reject table.

use std::ops::Range;

use fieldstream_engine_api::SinkBatch;
use fieldstream_schemas::encode::json::JsonWriter;
use sqlx::{AssertSqlSafe, PgConnection};

use super::copy::{Encoded, HEADER, Refused, TRAILER};
use super::errors::{Reaction, code, reaction};
use super::marks::signed;
use super::options::{TablePlan, quote};

/// Statement that makes the reject table.
pub(crate) fn rejects_ddl(schema: &str) -> String {
    // The row is text, not jsonb: what was refused may be what jsonb refuses too.
    format!(
        "CREATE TABLE IF NOT EXISTS {}.fieldstream_rejects (pipeline text NOT NULL, sink text NOT NULL, log_id text NOT NULL, \
         partition bigint NOT NULL, log_offset bigint NOT NULL, log_row bigint NOT NULL, tick bigint NOT NULL, table_name text NOT NULL, \
         code text NOT NULL, message text NOT NULL, row_json text NOT NULL, refused_at timestamptz NOT NULL DEFAULT now())",
        quote(schema)
    )
}

/// One statement, several commands allowed, no parameters.
pub(crate) async fn run(conn: &mut PgConnection, sql: impl Into<String>) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(conn).await.map(|_| ())
}

/// Stores all encoded rows inside the open transaction. A COPY that fails by the fault of a row is rolled back to its
/// savepoint and halved until the row is alone. Returns the refused ones.
pub(crate) async fn store_rows(conn: &mut PgConnection, table: &TablePlan, rows: &Encoded) -> Result<Vec<Refused>, sqlx::Error> {
    let mut refused = Vec::new();
    let mut waiting = Vec::from([Range { start: 0, end: rows.len() }]);
    while let Some(range) = waiting.pop() {
        if range.is_empty() {
            continue;
        }
        run(conn, "SAVEPOINT fieldstream_rows").await?;
        let stored = store_range(conn, table, rows, range.clone()).await;
        let error = match stored {
            Ok(()) => {
                run(conn, "RELEASE SAVEPOINT fieldstream_rows").await?;
                continue;
            }
            Err(error) if reaction(&error) == Reaction::RefuseRow => error,
            Err(error) => return Err(error),
        };
        run(conn, "ROLLBACK TO SAVEPOINT fieldstream_rows; RELEASE SAVEPOINT fieldstream_rows").await?;
        if range.len() > 1 {
            let middle = range.start + range.len() / 2;
            waiting.push(middle..range.end);
            waiting.push(range.start..middle);
        } else if let Some(row) = rows.row(range.start) {
            let message = error.as_database_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
            refused.push(Refused { row, code: code(&error).unwrap_or_default(), message });
        }
    }
    Ok(refused)
}

async fn store_range(conn: &mut PgConnection, table: &TablePlan, rows: &Encoded, range: Range<usize>) -> Result<(), sqlx::Error> {
    let target = table.target();
    match copy(conn, table, &target, rows.bytes(range.clone())).await {
        Err(error) if table.unique && code(&error).as_deref() == Some("23505") => {}
        other => return other,
    }
    // Some row is there already: the same rows again, by way of a table that allows to leave those out.
    run(conn, "ROLLBACK TO SAVEPOINT fieldstream_rows").await?;
    run(conn, format!("CREATE TEMP TABLE fieldstream_copy (LIKE {target}) ON COMMIT DROP")).await?;
    copy(conn, table, "pg_temp.fieldstream_copy", rows.bytes(range)).await?;
    let names = column_names(table);
    let insert = format!("INSERT INTO {target} ({names}) SELECT {names} FROM pg_temp.fieldstream_copy ON CONFLICT DO NOTHING");
    run(conn, insert).await?;
    run(conn, "DROP TABLE pg_temp.fieldstream_copy").await
}

fn column_names(table: &TablePlan) -> String {
    table.columns.iter().map(|c| quote(&c.name)).collect::<Vec<_>>().join(", ")
}

/// One COPY. It must not be dropped half-way unless the connection is closed too: the server would read what follows as data.
async fn copy(conn: &mut PgConnection, table: &TablePlan, target: &str, rows: &[u8]) -> Result<(), sqlx::Error> {
    let statement = format!("COPY {target} ({}) FROM STDIN WITH (FORMAT binary)", column_names(table));
    let mut copy = conn.copy_in_raw(&statement).await?;
    copy.send(HEADER.as_slice()).await?;
    copy.send(rows).await?;
    copy.send(TRAILER.as_slice()).await?;
    copy.finish().await?;
    Ok(())
}

/// A refused row with all that the reject table wants of it.
pub(crate) struct Reject<'a> {
    /// The batch it came in.
    pub(crate) batch: &'a SinkBatch,
    /// Number of its [`fieldstream_engine_api::SinkRows`] in the batch.
    pub(crate) part: usize,
    /// Why.
    pub(crate) refused: &'a Refused,
}

/// Puts refused rows, as JSON, into the reject table of the same transaction.
pub(crate) async fn store_rejects(
    conn: &mut PgConnection,
    table: &TablePlan,
    sink: &str,
    encoders: &[JsonWriter],
    rejects: &[Reject<'_>],
) -> Result<(), sqlx::Error> {
    if rejects.is_empty() {
        return Ok(());
    }
    let mut json = Vec::with_capacity(rejects.len());
    let mut positions = [Vec::new(), Vec::new(), Vec::new()];
    for reject in rejects {
        let part = &reject.batch.rows[reject.part];
        let row = reject.refused.row.row;
        let mut text = Vec::new();
        if let Some(encoder) = encoders.get(part.input) {
            encoder.write_row(&part.batch.rows, row, &mut text);
        }
        json.push(String::from_utf8_lossy(&text).into_owned());
        let position = part.batch.keys.position[row];
        positions[0].push(signed(position.offset));
        positions[1].push(i64::from(position.row));
        positions[2].push(i64::from(position.tick));
    }
    let sql = format!(
        "INSERT INTO {}.fieldstream_rejects (pipeline, sink, log_id, partition, log_offset, log_row, tick, table_name, code, message, row_json) \
         SELECT $1, $2, l, p, o, r, t, $3, c, m, j FROM unnest($4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], \
         $9::text[], $10::text[], $11::text[]) n(l, p, o, r, t, c, m, j)",
        quote(&table.schema)
    );
    let [offsets, rows, ticks] = positions;
    let pipeline = rejects.first().map_or("", |r| &*r.batch.partition.pipeline);
    let query = sqlx::query(AssertSqlSafe(sql)).bind(pipeline).bind(sink).bind(&table.table);
    let query = query.bind(rejects.iter().map(|r| &*r.batch.partition.log_id.0).collect::<Vec<_>>());
    let query = query.bind(rejects.iter().map(|r| i64::from(r.batch.partition.partition)).collect::<Vec<_>>());
    let query = query.bind(offsets).bind(rows).bind(ticks);
    let query = query.bind(rejects.iter().map(|r| r.refused.code.as_str()).collect::<Vec<_>>());
    let query = query.bind(rejects.iter().map(|r| r.refused.message.replace('\0', "")).collect::<Vec<_>>());
    query.bind(json).execute(conn).await?;
    Ok(())
}
