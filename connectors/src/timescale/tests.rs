//! The `timescale` sink against a real server. `FIELDSTREAM_TEST_POSTGRES` names it; every test has a schema of its own.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, StringDictionaryBuilder, TimestampMicrosecondArray};
use arrow::datatypes::{SchemaRef, UInt32Type};
use fieldstream_engine_api::{
    ConnectContext, Edge, Generation, KeyedBatch, Keys, LogId, Mark, PartitionKey, Position, Shared, Sink, SinkBatch, SinkError, SinkInput,
    SinkRows, Space,
};
use fieldstream_schemas::columns::readings_schema;
use fieldstream_schemas::time::parse_rfc3339;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::super::options;
use super::Timescale;

/// A schema on the server, and a connection to look into it.
struct Server {
    url: String,
    schema: String,
    conn: PgConnection,
}

impl Server {
    async fn new() -> Option<Self> {
        let Ok(url) = std::env::var("FIELDSTREAM_TEST_POSTGRES") else {
            eprintln!("SKIPPED: FIELDSTREAM_TEST_POSTGRES is not set, a test against a real PostgreSQL did not run");
            return None;
        };
        let schema = format!("t{}", uuid::Uuid::new_v4().simple());
        let conn = PgConnection::connect(&url).await.expect("FIELDSTREAM_TEST_POSTGRES can be reached");
        Some(Self { url, schema, conn })
    }

    fn sink(&self, more: &Value) -> Timescale {
        self.sink_for(&readings_schema(), more)
    }

    fn sink_for(&self, schema: &SchemaRef, more: &Value) -> Timescale {
        let mut value = json!({ "url": self.url, "schema": self.schema, "table": "sensor_data", "mode": "plain" });
        let members = more.as_object().expect("an object").clone();
        value.as_object_mut().expect("an object").extend(members);
        let inputs = [SinkInput { name: "clean".into(), edge: Edge { schema: Arc::clone(schema), key: Space::Series } }];
        let context = ConnectContext {
            pipeline: "p".into(),
            node: "history".into(),
            data_dir: "/nonexistent".into(),
            resume: true,
            shared: Shared::default(),
        };
        Timescale::new(options::read(&value, &inputs).expect("options"), &inputs, &context)
    }

    /// The rows of a query, one text column each.
    async fn rows(&mut self, sql: &str) -> Vec<String> {
        let sql = format!("SET search_path = {}; ", self.schema) + sql;
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.conn).await.expect("query");
        rows.iter().map(|row| sqlx::Row::get::<String, _>(row, 0)).collect()
    }

    async fn run(&mut self, sql: &str) {
        self.rows(sql).await;
    }

    async fn values(&mut self) -> Vec<String> {
        self.rows("SELECT value::text FROM sensor_data ORDER BY value").await
    }
}

fn key(partition: u32) -> PartitionKey {
    PartitionKey { pipeline: "p".into(), log_id: LogId("log".into()), partition }
}

fn mark(next_offset: u64) -> Mark {
    Mark { next_offset, next_decision: 0 }
}

/// A reading of device `d1`, sensor `s1`.
#[derive(Clone, Copy, Default)]
struct Row {
    ts: &'static str,
    value: f64,
    text: Option<&'static str>,
    tags: Option<&'static str>,
}

fn row(ts: &'static str, value: f64) -> Row {
    Row { ts, value, ..Row::default() }
}

fn names(count: usize, name: &str) -> ArrayRef {
    let mut builder = StringDictionaryBuilder::<UInt32Type>::new();
    (0..count).for_each(|_| builder.append_value(name));
    Arc::new(builder.finish())
}

fn readings(rows: &[Row]) -> RecordBatch {
    let n = rows.len();
    let time = |row: &Row| parse_rfc3339(row.ts.as_bytes()).expect("a time");
    let columns: Vec<ArrayRef> = vec![
        names(n, "d1"),
        names(n, "s1"),
        names(n, "temperature"),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(time)).with_timezone("UTC")),
        Arc::new(TimestampMicrosecondArray::from(vec![None; n]).with_timezone("UTC")),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.value))),
        Arc::new(rows.iter().map(|r| r.text).collect::<StringArray>()),
        Arc::new(BooleanArray::from(vec![Some(true); n])),
        names(n, "Cel"),
        fieldstream_schemas::quality::column(std::iter::repeat_n(1, n)),
        Arc::new(Float64Array::from(vec![Some(0.5); n])),
        Arc::new((0..n).map(|i| Some(format!("id-{i}"))).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.tags).collect::<StringArray>()),
        Arc::new(BooleanArray::from(vec![false; n])),
    ];
    RecordBatch::try_new(readings_schema(), columns).expect("readings")
}

fn batch_of(partition: u32, rows: RecordBatch, to: u64) -> SinkBatch {
    let mut keys = Keys::default();
    for at in 0..rows.num_rows() {
        keys.push(0, 0, Position::new(100 + at as u64, 0));
    }
    let batch = KeyedBatch::new(rows, keys);
    SinkBatch { partition: key(partition), rows: vec![SinkRows { input: 0, batch }], complete_to: mark(to) }
}

fn batch(partition: u32, rows: &[Row], to: u64) -> SinkBatch {
    batch_of(partition, readings(rows), to)
}

const T: &str = "2026-11-23T10:00:00.123456Z";

#[tokio::test]
async fn rows_and_marks_of_several_partitions_are_stored_together() {
    let Some(mut server) = Server::new().await else { return };
    let mut sink = server.sink(&json!({ "connections": 2 }));
    for partition in 0..3 {
        assert_eq!(sink.open(&key(partition), Generation(1)).await.expect("open"), None);
    }
    let first = Row { text: Some("é\t\\N"), tags: Some(r#"{"site":"a"}"#), ..row(T, 1.5) };
    let late = row("2025-02-28T23:59:59.999999Z", 2.5);
    let done = sink.commit(&[batch(0, &[first, late], 10), batch(1, &[row(T, 3.5)], 7), batch(2, &[], 4)]).await.expect("commit");
    let mut told: Vec<_> = done.iter().map(|c| (c.partition.partition, c.mark, c.delivered, c.refused)).collect();
    told.sort();
    assert_eq!(told, [(0, mark(10), 2, 0), (1, mark(7), 1, 0), (2, mark(4), 0, 0)]);
    assert_eq!(server.values().await, ["1.5", "2.5", "3.5"]);
    let whole = server.rows("SELECT to_jsonb(s)::text FROM sensor_data s WHERE value = 1.5").await;
    let whole: Value = serde_json::from_str(&whole[0]).expect("json");
    assert_eq!(
        whole,
        json!({ "device_id": "d1", "sensor_id": "s1", "sensor_type": "temperature", "ts": "2026-11-23T10:00:00.123456+00:00", "ingest_ts": null,
            "value": 1.5, "text": "é\t\\N", "flag": true, "unit": "Cel", "quality": "uncertain", "score": 0.5, "id": "id-0",
            "tags": { "site": "a" }, "stamped": false })
    );
    let parts =
        "SELECT relname::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'sensor_data'::regclass ORDER BY 1";
    assert_eq!(server.rows(parts).await, ["sensor_data_p20250228", "sensor_data_p20261123"]);

    let mut again = server.sink(&json!({}));
    let seen = again.open(&key(0), Generation(2)).await.expect("open").expect("a mark");
    assert_eq!((seen.mark, seen.delivered), (mark(10), 2));
    again.commit(&[batch(0, &[row(T, 4.5)], 11)]).await.expect("commit");
    assert_eq!(server.values().await, ["1.5", "2.5", "3.5", "4.5"]);
    again.close().await.expect("close");
    sink.close().await.expect("close");
}

#[tokio::test]
async fn a_stale_generation_is_fenced_and_stores_nothing() {
    let Some(mut server) = Server::new().await else { return };
    let (mut old, mut new) = (server.sink(&json!({})), server.sink(&json!({})));
    old.open(&key(0), Generation(1)).await.expect("open");
    old.open(&key(1), Generation(1)).await.expect("open");
    old.commit(&[batch(0, &[row(T, 1.0)], 5)]).await.expect("commit");
    assert_eq!(new.open(&key(0), Generation(2)).await.expect("open").map(|c| c.mark), Some(mark(5)));
    let error = old.commit(&[batch(1, &[row(T, 9.0)], 9), batch(0, &[row(T, 9.0)], 9)]).await.expect_err("fenced");
    assert!(matches!(&error, SinkError::Fenced { partition, owner: Generation(2) } if partition.partition == 0), "{error}");
    assert!(matches!(old.open(&key(0), Generation(1)).await, Err(SinkError::Fenced { owner: Generation(2), .. })));
    assert_eq!(server.values().await, ["1"]);
    old.commit(&[batch(1, &[row(T, 2.0)], 9)]).await.expect("the rest goes on");
    new.commit(&[batch(0, &[row(T, 3.0)], 9)]).await.expect("commit");
    assert_eq!(server.values().await, ["1", "2", "3"]);
}

#[tokio::test]
async fn an_owner_frozen_in_mid_transaction_does_not_hold_up_its_successor() {
    let Some(mut frozen) = Server::new().await else { return };
    let (mut old, mut new) = (frozen.sink(&json!({})), frozen.sink(&json!({})));
    old.open(&key(0), Generation(1)).await.expect("open");
    old.commit(&[batch(0, &[row(T, 1.0)], 5)]).await.expect("commit");
    // What a stopped process leaves: a transaction that nobody ends, with the mark locked.
    frozen.run("SET application_name = 'fieldstream'; BEGIN; SELECT partition::text FROM fieldstream_marks FOR UPDATE").await;
    let begun = std::time::Instant::now();
    assert_eq!(new.open(&key(0), Generation(2)).await.expect("open").map(|c| c.mark), Some(mark(5)));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let thawed = sqlx::raw_sql("COMMIT").execute(&mut frozen.conn).await;
    assert!(thawed.is_err(), "its connection was ended");
    new.commit(&[batch(0, &[row(T, 2.0)], 9)]).await.expect("commit");
}

#[tokio::test]
async fn refused_rows_are_set_aside_and_the_rest_is_stored() {
    let Some(mut server) = Server::new().await else { return };
    let mut sink = server.sink(&json!({}));
    sink.open(&key(0), Generation(1)).await.expect("open");
    sink.open(&key(1), Generation(1)).await.expect("open");
    server.run("ALTER TABLE sensor_data ADD CONSTRAINT sane CHECK (value < 1000)").await;
    let mut rows: Vec<Row> = (0..40).map(|i| row(T, f64::from(i))).collect();
    rows[3] = Row { text: Some("a\0b"), ..row(T, 3.0) };
    rows[17] = row(T, 5000.0);
    rows[18] = row(T, 6000.0);
    rows[39] = Row { tags: Some("{no json"), ..row(T, 39.0) };
    let done = sink.commit(&[batch(0, &rows, 200), batch(1, &[row(T, 7000.0), row(T, 100.0)], 3)]).await.expect("commit");
    let told: Vec<_> = done.iter().map(|c| (c.partition.partition, c.mark, c.delivered, c.refused)).collect();
    assert_eq!(told, [(0, mark(200), 36, 4), (1, mark(3), 1, 1)]);
    assert_eq!(server.rows("SELECT count(*)::text FROM sensor_data").await, ["37"]);
    let rejects = "SELECT concat_ws(' ', partition, log_offset, code, ((row_json::json)->>'value')::float8) FROM fieldstream_rejects ORDER BY partition, log_offset";
    assert_eq!(server.rows(rejects).await, ["0 103 22021 3", "0 117 23514 5000", "0 118 23514 6000", "0 139 22P02 39", "1 100 23514 7000"]);
}

/// Waits until a connection of a sink works on a table of this schema and waits for a lock; returns its process id.
async fn blocked_backend(server: &mut Server) -> String {
    let sql = "SELECT l.pid::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE NOT l.granted AND n.nspname = current_schema()";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(pid) = server.rows(sql).await.pop() {
            return pid;
        }
        assert!(tokio::time::Instant::now() < deadline, "no commit got as far as the lock");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_connection_killed_in_mid_transaction_stores_nothing_and_the_next_try_everything_once() {
    let Some(mut server) = Server::new().await else { return };
    let mut sink = server.sink(&json!({}));
    sink.open(&key(0), Generation(1)).await.expect("open");
    sink.commit(&[batch(0, &[row(T, 1.0)], 1)]).await.expect("commit");
    let work = [batch(0, &[row(T, 2.0), row(T, 3.0)], 3)];
    server.run("BEGIN; LOCK TABLE sensor_data IN ACCESS EXCLUSIVE MODE").await;
    {
        let commit = sink.commit(&work);
        let kill = async {
            let pid = blocked_backend(&mut server).await;
            server.rows(&format!("SELECT pg_terminate_backend({pid})::text")).await;
        };
        let (result, ()) = tokio::join!(commit, kill);
        let error = result.expect_err("killed");
        assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    }
    server.run("ROLLBACK").await;
    assert_eq!(server.values().await, ["1"]);
    sink.commit(&work).await.expect("the next try");
    assert_eq!(server.values().await, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_commit_that_nobody_waits_for_is_found_by_its_mark() {
    let Some(mut server) = Server::new().await else { return };
    let mut sink = server.sink(&json!({}));
    sink.open(&key(0), Generation(1)).await.expect("open");
    sink.commit(&[batch(0, &[row(T, 1.0)], 1)]).await.expect("commit");
    let work = [batch(0, &[row(T, 2.0), row(T, 3.0)], 3)];
    server.run("BEGIN; LOCK TABLE sensor_data IN ACCESS EXCLUSIVE MODE").await;
    tokio::select! {
        biased;
        _ = sink.commit(&work) => panic!("the table is locked"),
        _ = blocked_backend(&mut server) => {} // the commit is dropped in the midst of its COPY
    }
    server.run("ROLLBACK").await;
    let done = sink.commit(&work).await.expect("the same batches again");
    assert_eq!((done[0].mark, done[0].delivered), (mark(3), 3));
    assert_eq!(server.values().await, ["1", "2", "3"]);
}

#[tokio::test]
async fn rollups_follow_late_rows_and_old_partitions_are_dropped() {
    let Some(mut server) = Server::new().await else { return };
    let options = json!({ "aggregates": ["5m", "1h"] });
    let mut sink = server.sink(&options);
    sink.open(&key(0), Generation(1)).await.expect("open");
    let rows = [row("2026-11-23T10:01:00Z", 1.0), row("2026-11-23T10:04:00Z", 3.0), row("2026-11-23T10:05:00Z", 10.0)];
    sink.commit(&[batch(0, &rows, 3)]).await.expect("commit");
    sink.close().await.expect("close");
    let five = "SELECT concat_ws(' ', to_char(bucket, 'HH24:MI'), device_id, sensor_id, count, min, max, sum, mean) FROM sensor_data_5m ORDER BY bucket";
    assert_eq!(server.rows(five).await, ["10:00 d1 s1 2 1 3 4 2", "10:05 d1 s1 1 10 10 10 10"]);

    let mut sink = server.sink(&options);
    sink.open(&key(0), Generation(1)).await.expect("open");
    sink.commit(&[batch(0, &[row("2026-11-23T10:02:00Z", 5.0), row("1999-12-31T23:59:59Z", 7.0)], 4)]).await.expect("commit");
    sink.close().await.expect("close");
    let expected = ["23:55 d1 s1 1 7 7 7 7", "10:00 d1 s1 3 1 5 9 3", "10:05 d1 s1 1 10 10 10 10"];
    assert_eq!(server.rows(five).await, expected);
    let hour = "SELECT concat_ws(' ', to_char(bucket, 'YYYY-MM-DD HH24'), count, sum) FROM sensor_data_1h ORDER BY bucket";
    assert_eq!(server.rows(hour).await, ["1999-12-31 23 1 7", "2026-11-23 10 4 19"]);
    assert_eq!(server.rows("SELECT count(*)::text FROM fieldstream_dirty").await, ["0"]);

    let mut sink = server.sink(&json!({ "retain": "90d" }));
    sink.open(&key(0), Generation(1)).await.expect("open");
    sink.close().await.expect("close");
    assert_eq!(server.rows("SELECT count(*)::text FROM sensor_data WHERE ts < '2000-01-01'").await, ["0"]);
    assert_eq!(server.rows("SELECT coalesce(to_regclass('sensor_data_p19991231')::text, 'gone')").await, ["gone"]);
}

#[tokio::test]
async fn a_partition_dropped_by_others_is_made_again() {
    let Some(mut server) = Server::new().await else { return };
    let mut sink = server.sink(&json!({}));
    sink.open(&key(0), Generation(1)).await.expect("open");
    sink.commit(&[batch(0, &[row(T, 1.0)], 1)]).await.expect("commit");
    server.run("DROP TABLE sensor_data_p20261123").await;
    let work = [batch(0, &[row(T, 2.0)], 2)];
    let error = sink.commit(&work).await.expect_err("no partition");
    assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    sink.commit(&work).await.expect("made again");
    assert_eq!(server.values().await, ["2"]);
}

#[tokio::test]
async fn duplicates_are_stored_once_where_that_is_wanted() {
    let Some(mut server) = Server::new().await else { return };
    let mut sink = server.sink(&json!({ "unique": true }));
    sink.open(&key(0), Generation(1)).await.expect("open");
    let other = "2026-11-23T10:00:01Z";
    sink.commit(&[batch(0, &[row(T, 1.0)], 1)]).await.expect("commit");
    let done = sink.commit(&[batch(0, &[row(T, 9.0), row(other, 2.0), row(other, 9.0)], 4)]).await.expect("commit");
    assert_eq!((done[0].delivered, done[0].refused), (4, 0));
    assert_eq!(server.values().await, ["1", "2"]);
}

#[tokio::test]
async fn alerts_and_dead_letters_have_tables_of_their_own() {
    let Some(mut server) = Server::new().await else { return };
    let mut generation = 0;
    for (table, schema) in [
        ("alerts", fieldstream_schemas::records::alert_schema()),
        ("predictions", fieldstream_schemas::records::prediction_schema()),
        ("dead_letters", fieldstream_schemas::records::dead_letter_schema()),
    ] {
        for _ in 0..2 {
            generation += 1;
            let mut sink = server.sink_for(&schema, &json!({ "table": table }));
            sink.open(&key(0), Generation(generation)).await.expect("tables are made once and found again");
            sink.commit(&[batch_of(0, RecordBatch::new_empty(Arc::clone(&schema)), generation)]).await.expect("commit");
        }
    }
    let kinds = "SELECT relname || ' ' || relkind::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace \
                 AND relname IN ('alerts', 'predictions', 'dead_letters') ORDER BY 1";
    assert_eq!(server.rows(kinds).await, ["alerts p", "dead_letters r", "predictions p"]);
}

#[tokio::test]
async fn a_hypertable_has_its_policies_and_aggregates_and_takes_rows_into_compressed_chunks() {
    let Some(mut server) = Server::new().await else { return };
    if server.rows("SELECT name::text FROM pg_available_extensions WHERE name = 'timescaledb'").await.is_empty() {
        eprintln!("SKIPPED: the server has no TimescaleDB, the test of hypertables did not run");
        return;
    }
    server.run("CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public").await;
    let schema = server.schema.clone();
    for retain in ["20000d", "30000d"] {
        let options =
            json!({ "mode": "timescale", "compress_after": "10000d", "retain": retain, "aggregates": ["5m", "1h"], "unique": true });
        let mut sink = server.sink(&options);
        sink.open(&key(0), Generation(1)).await.expect("made once, found and changed the second time");
    }
    let jobs = format!(
        "SELECT concat_ws(' ', proc_name, (config->>'drop_after')::interval, (config->>'compress_after')::interval) \
         FROM timescaledb_information.jobs WHERE hypertable_schema = '{schema}' AND hypertable_name = 'sensor_data' ORDER BY 1"
    );
    assert_eq!(server.rows(&jobs).await, ["policy_compression 240000:00:00", "policy_retention 720000:00:00"]);

    let mut sink = server.sink(&json!({ "mode": "auto", "unique": true }));
    sink.open(&key(0), Generation(2)).await.expect("open");
    sink.commit(&[batch(0, &[row("2026-11-23T10:01:00Z", 1.0), row("2026-11-23T10:04:00Z", 3.0)], 2)]).await.expect("commit");
    let five = "SELECT concat_ws(' ', to_char(bucket, 'HH24:MI'), device_id, sensor_id, count, min, max, sum, mean) FROM sensor_data_5m ORDER BY bucket";
    assert_eq!(server.rows(five).await, ["10:00 d1 s1 2 1 3 4 2"]);
    assert_eq!(
        server.rows(&format!("SELECT public.compress_chunk(c)::text FROM public.show_chunks('{schema}.sensor_data') c")).await.len(),
        1
    );
    let work = [row("2026-11-23T10:04:00Z", 9.0), row("2026-11-23T10:06:00Z", 5.0)];
    sink.commit(&[batch(0, &work, 4)]).await.expect("rows for a compressed chunk, one a duplicate");
    assert_eq!(server.values().await, ["1", "3", "5"]);
}

#[tokio::test]
async fn a_table_that_does_not_fit_stops_with_a_hint() {
    let Some(mut server) = Server::new().await else { return };
    let schema = server.schema.clone();
    server
        .run(&format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.sensor_data (ts timestamptz NOT NULL, value real) PARTITION BY RANGE (ts)"
        ))
        .await;
    let error = server.sink(&json!({})).open(&key(0), Generation(1)).await.expect_err("another type");
    assert!(matches!(error, SinkError::Fatal { .. }));
    assert!(error.to_string().contains("column `value`") && error.to_string().contains("name another table"), "{error}");
}

#[tokio::test]
async fn an_unreachable_server_is_a_retry_and_no_error_shows_the_password() {
    let inputs = [SinkInput { name: "clean".into(), edge: Edge { schema: readings_schema(), key: Space::Series } }];
    let context = ConnectContext {
        pipeline: "p".into(),
        node: "history".into(),
        data_dir: "/nonexistent".into(),
        resume: true,
        shared: Shared::default(),
    };
    let value = json!({ "url": "postgres://me:hunter2@127.0.0.1:1/db", "table": "t" });
    let plan = options::read(&value, &inputs).expect("options");
    assert!(!format!("{plan:?}").contains("hunter2"));
    let error = Timescale::new(plan, &inputs, &context).open(&key(0), Generation(1)).await.expect_err("nobody listens");
    assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
}

#[test]
fn tls_is_switched_by_a_word_or_by_true_and_false() {
    let mode = |ssl: Value| {
        let value = json!({ "host": "h", "table": "t", "ssl": ssl });
        let input = SinkInput { name: "x".into(), edge: Edge { schema: readings_schema(), key: Space::Series } };
        let read = options::read(&value, &[input]);
        read.map(|plan| format!("{:?}", plan.server.0.get_ssl_mode())).map_err(|errors| errors[0].to_string())
    };
    let cases = [(json!(false), "Disable"), (json!(true), "Require"), (json!("prefer"), "Prefer"), (json!("verify-full"), "VerifyFull")];
    for (written, wanted) in cases {
        assert_eq!(mode(written.clone()).as_deref(), Ok(wanted), "{written}");
    }
    let error = mode(json!("on")).expect_err("no value");
    assert!(error.contains("/ssl") && error.contains("false or true"), "{error}");
}

#[test]
fn wrong_options_are_all_told() {
    let input = |schema| SinkInput { name: "x".into(), edge: Edge { schema, key: Space::Series } };
    let value = json!({ "url": "postgres:hunter2:nonsense", "table": "Bad Name", "connections": 0 });
    let errors = options::read(&value, &[input(readings_schema())]).expect_err("errors");
    assert_eq!(errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["/table", "/connections", "/url"]);
    assert!(!format!("{errors:?}").contains("hunter2"));

    let value = json!({ "host": "h", "table": "t", "aggregates": ["7m"], "retain": "1h", "unique": true });
    let errors = options::read(&value, &[input(fieldstream_schemas::records::dead_letter_schema())]).expect_err("errors");
    assert_eq!(errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["/aggregates", "/aggregates/0", "/retain", "/unique"]);

    let mixed = [input(readings_schema()), input(fieldstream_schemas::records::alert_schema())];
    let errors = options::read(&json!({ "host": "h", "table": "t" }), &mixed).expect_err("two schemas");
    assert!(errors[0].to_string().contains("different columns"), "{}", errors[0]);
}
