//! The marks table: how far each partition is stored, moved in the transaction that stores the rows.

use std::collections::BTreeMap;

use fieldstream_engine_api::{Generation, Mark, PartitionKey};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::errors::code;
use super::options::quote;
use super::store::run;

/// A durable mark with the counts that belong to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable {
    /// Everything below it is stored.
    pub(crate) mark: Mark,
    /// Rows stored.
    pub(crate) delivered: u64,
    /// Rows in the reject table.
    pub(crate) refused: u64,
}

/// A row of the marks table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The owner.
    pub(crate) generation: Generation,
    /// `None` until the first commit.
    pub(crate) durable: Option<Durable>,
}

/// The marks of one sink of one pipeline.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    /// Schema of the table.
    pub(crate) schema: String,
    /// Name of the sink.
    pub(crate) sink: String,
}

/// How long the transaction of a partition's owner may go on when somebody takes the partition over.
const PATIENCE: &str = "3s";

/// SQLSTATE of a lock that was not to be had in time.
const LOCKED: &str = "55P03";

const FIELDS: &str = "generation, next_offset, next_decision, delivered, refused";

/// Numbers are kept as the server's 64-bit signed ones; ours stay far below 2^63.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn stored(row: &PgRow) -> Result<Stored, sqlx::Error> {
    let next_offset: Option<i64> = row.try_get("next_offset")?;
    let number = |name: &str| row.try_get::<i64, _>(name).map(unsigned);
    let (next_decision, delivered, refused) = (number("next_decision")?, number("delivered")?, number("refused")?);
    let durable =
        next_offset.map(|next_offset| Durable { mark: Mark { next_offset: unsigned(next_offset), next_decision }, delivered, refused });
    Ok(Stored { generation: Generation(number("generation")?), durable })
}

impl Marks {
    fn table(&self) -> String {
        format!("{}.fieldstream_marks", quote(&self.schema))
    }

    /// Statement that makes the table.
    pub(crate) fn ddl(&self) -> String {
        // Rows are updated with every commit: room on their page keeps the updates out of the index.
        format!(
            "CREATE TABLE IF NOT EXISTS {} (pipeline text NOT NULL, sink text NOT NULL, log_id text NOT NULL, partition bigint NOT NULL, \
             generation bigint NOT NULL, next_offset bigint, next_decision bigint NOT NULL DEFAULT 0, delivered bigint NOT NULL DEFAULT 0, \
             refused bigint NOT NULL DEFAULT 0, updated_at timestamptz NOT NULL DEFAULT now(), \
             PRIMARY KEY (pipeline, sink, log_id, partition)) WITH (fillfactor = 50)",
            self.table()
        )
    }

    /// Takes a partition unless a higher generation has it, after any transaction of its owner has ended. An owner that is frozen, or
    /// cut off, in the middle of one would keep everybody waiting until the server gives its connection up, so it is ended.
    pub(crate) async fn take(
        &self,
        conn: &mut PgConnection,
        key: &PartitionKey,
        generation: Generation,
    ) -> Result<Option<Stored>, sqlx::Error> {
        run(conn, format!("SET lock_timeout = '{PATIENCE}'")).await?;
        let mut taken = self.claim(conn, key, generation).await;
        if taken.as_ref().is_err_and(|error| code(error).as_deref() == Some(LOCKED)) && self.end_holder(conn, key, generation).await? {
            taken = self.claim(conn, key, generation).await;
        }
        run(conn, "RESET lock_timeout").await?;
        taken
    }

    /// Ends the connection of an earlier owner that holds a mark. Rows locked by one transaction carry its number.
    async fn end_holder(&self, conn: &mut PgConnection, key: &PartitionKey, generation: Generation) -> Result<bool, sqlx::Error> {
        let sql = format!(
            "SELECT pg_terminate_backend(a.pid) FROM {} m JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = m.xmax \
             JOIN pg_stat_activity a ON a.pid = l.pid WHERE m.pipeline = $1 AND m.sink = $2 AND m.log_id = $3 AND m.partition = $4 \
             AND m.generation < $5 AND a.application_name = current_setting('application_name') AND a.usename = current_user",
            self.table()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(&*key.pipeline).bind(&self.sink).bind(&*key.log_id.0);
        let ended = query.bind(i64::from(key.partition)).bind(signed(generation.0)).fetch_optional(conn).await?.is_some();
        if ended {
            tracing::warn!(partition = %key, "its owner before held the mark for more than {PATIENCE}: that connection was ended");
        }
        Ok(ended)
    }

    async fn claim(&self, conn: &mut PgConnection, key: &PartitionKey, generation: Generation) -> Result<Option<Stored>, sqlx::Error> {
        let table = self.table();
        let sql = format!(
            "INSERT INTO {table} AS m (pipeline, sink, log_id, partition, generation) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (pipeline, sink, log_id, partition) DO UPDATE SET generation = EXCLUDED.generation, updated_at = now() \
             WHERE m.generation <= EXCLUDED.generation RETURNING {FIELDS}"
        );
        let query = sqlx::query(AssertSqlSafe(sql));
        let query = query.bind(&*key.pipeline).bind(&self.sink).bind(&*key.log_id.0).bind(i64::from(key.partition));
        let row = query.bind(signed(generation.0)).fetch_optional(conn).await?;
        row.as_ref().map(stored).transpose()
    }

    /// Locks the marks of `keys` in one order, so that two transactions cannot wait for each other. All of one pipeline.
    pub(crate) async fn lock(
        &self,
        conn: &mut PgConnection,
        keys: &[&PartitionKey],
    ) -> Result<BTreeMap<(String, u32), Stored>, sqlx::Error> {
        let sql = format!(
            "SELECT log_id, partition, {FIELDS} FROM {} WHERE pipeline = $1 AND sink = $2 \
             AND (log_id, partition) IN (SELECT * FROM unnest($3::text[], $4::bigint[])) ORDER BY log_id, partition FOR UPDATE",
            self.table()
        );
        let pipeline = keys.first().map_or("", |k| &*k.pipeline);
        let logs: Vec<&str> = keys.iter().map(|k| &*k.log_id.0).collect();
        let partitions: Vec<i64> = keys.iter().map(|k| i64::from(k.partition)).collect();
        let query = sqlx::query(AssertSqlSafe(sql)).bind(pipeline).bind(&self.sink).bind(logs).bind(partitions);
        let mut found = BTreeMap::new();
        for row in query.fetch_all(conn).await? {
            let partition = u32::try_from(row.try_get::<i64, _>("partition")?).unwrap_or(u32::MAX);
            found.insert((row.try_get("log_id")?, partition), stored(&row)?);
        }
        Ok(found)
    }

    /// Moves marks that are locked.
    pub(crate) async fn update(&self, conn: &mut PgConnection, moved: &[(PartitionKey, Durable)]) -> Result<(), sqlx::Error> {
        let sql = format!(
            "UPDATE {} m SET next_offset = n.o, next_decision = n.d, delivered = n.r, refused = n.f, updated_at = now() \
             FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[]) n(l, p, o, d, r, f) \
             WHERE m.pipeline = $1 AND m.sink = $2 AND m.log_id = n.l AND m.partition = n.p",
            self.table()
        );
        let column = |value: fn(&Durable) -> u64| moved.iter().map(|(_, d)| signed(value(d))).collect::<Vec<_>>();
        let query = sqlx::query(AssertSqlSafe(sql)).bind(moved.first().map_or("", |(k, _)| &*k.pipeline)).bind(&self.sink);
        let query = query.bind(moved.iter().map(|(k, _)| &*k.log_id.0).collect::<Vec<_>>());
        let query = query.bind(moved.iter().map(|(k, _)| i64::from(k.partition)).collect::<Vec<_>>());
        let query = query.bind(column(|d| d.mark.next_offset)).bind(column(|d| d.mark.next_decision));
        query.bind(column(|d| d.delivered)).bind(column(|d| d.refused)).execute(conn).await?;
        Ok(())
    }

    /// The owner of a partition.
    pub(crate) async fn owner(&self, conn: &mut PgConnection, key: &PartitionKey) -> Result<Generation, sqlx::Error> {
        let found = self.lock(conn, &[key]).await?;
        Ok(found.values().next().map_or(Generation::default(), |s| s.generation))
    }
}
