//! SQL over stores that these tests write themselves.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, DictionaryArray, Float64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::UInt32Type;
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use super::{Limits, Store};
use crate::{Format, QueryError};

const DAY_US: i64 = 86_400_000_000;

fn rows(values: &[(&str, i64, Option<f64>)]) -> RecordBatch {
    let devices: DictionaryArray<UInt32Type> = values.iter().map(|(device, _, _)| *device).collect();
    let ts = TimestampMicrosecondArray::from_iter_values(values.iter().map(|(_, day, _)| day * DAY_US)).with_timezone("UTC");
    let value: Float64Array = values.iter().map(|(_, _, value)| *value).collect();
    let columns: [(&str, ArrayRef); 3] = [("device_id", Arc::new(devices)), ("ts", Arc::new(ts)), ("value", Arc::new(value))];
    RecordBatch::try_from_iter(columns).expect("equal lengths")
}

fn write(root: &Path, file: &str, batch: &RecordBatch) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().expect("parent")).expect("directory");
    let mut writer = ArrowWriter::try_new(fs::File::create(path).expect("file"), batch.schema(), None).expect("writer");
    writer.write(batch).expect("rows");
    writer.close().expect("close");
}

fn commit(root: &Path, number: u64, files: &[&str]) {
    let folder = root.join("commits/log/0");
    fs::create_dir_all(&folder).expect("directory");
    fs::write(root.join("store.json"), "{}").expect("marker");
    let text = serde_json::json!({ "files": files }).to_string();
    fs::write(folder.join(format!("{number:020}.json")), text).expect("commit");
}

/// Two stores: `readings` with one input and a file nobody committed, `alerts` with two inputs.
fn stores() -> TempDir {
    let dir = tempfile::tempdir().expect("tempdir");
    let readings = dir.path().join("readings");
    write(&readings, "clean/day=1970-01-01/a.parquet", &rows(&[("pump-1", 0, Some(1.5)), ("pump-2", 0, None)]));
    write(&readings, "clean/day=1970-01-02/b.parquet", &rows(&[("pump-1", 1, Some(2.5))]));
    write(&readings, "clean/day=1970-01-02/orphan.parquet", &rows(&[("pump-9", 1, Some(99.0))]));
    commit(&readings, 1, &[]);
    commit(&readings, 2, &["clean/day=1970-01-01/a.parquet", "clean/day=1970-01-02/b.parquet"]);
    fs::write(readings.join("commits/log/0/00000000000000000003.json"), "").expect("torn commit");
    let alerts = dir.path().join("alerts");
    write(&alerts, "outlier.alerts/day=1970-01-01/a.parquet", &rows(&[("pump-1", 0, Some(7.0))]));
    write(&alerts, "frozen/day=1970-01-01/b.parquet", &rows(&[("pump-2", 0, Some(8.0))]));
    commit(&alerts, 1, &["outlier.alerts/day=1970-01-01/a.parquet", "frozen/day=1970-01-01/b.parquet"]);
    dir
}

async fn ask(store: &Store, sql: &str, format: Format) -> String {
    let answer = store.query(sql, Limits::default()).await.expect("answer");
    answer.render(format).expect("text")
}

async fn refused(store: &Store, sql: &str) -> String {
    store.query(sql, Limits::default()).await.expect_err("refused").to_string()
}

#[tokio::test]
async fn committed_rows_alone_are_seen() {
    let dir = stores();
    let store = Store::open(&dir.path().join("readings")).await.expect("store");
    let names: Vec<_> = store.tables().iter().map(|t| (t.name.as_str(), t.files)).collect();
    assert_eq!(names, [("clean", 2), ("readings", 2), ("readings.clean", 2)]);
    let text = ask(&store, "SELECT device_id, ts, value, day FROM clean ORDER BY ts, device_id", Format::Table).await;
    let wanted = "\
+-----------+----------------------+-------+------------+
| device_id | ts                   | value | day        |
+-----------+----------------------+-------+------------+
| pump-1    | 1970-01-01T00:00:00Z | 1.5   | 1970-01-01 |
| pump-2    | 1970-01-01T00:00:00Z |       | 1970-01-01 |
| pump-1    | 1970-01-02T00:00:00Z | 2.5   | 1970-01-02 |
+-----------+----------------------+-------+------------+
";
    assert_eq!(text, wanted);
    let by_day = "SELECT count(*) AS n, max(value) AS top FROM readings WHERE day = DATE '1970-01-02' AND device_id LIKE 'pump%'";
    assert_eq!(ask(&store, by_day, Format::Csv).await, "n,top\n1,2.5\n");
    let later = "SELECT date_trunc('day', ts) AS d, avg(value) AS mean FROM clean WHERE day >= '1970-01-02' GROUP BY 1";
    assert_eq!(ask(&store, later, Format::Ndjson).await, "{\"d\":\"1970-01-02T00:00:00Z\",\"mean\":2.5}\n");
}

#[tokio::test]
async fn a_directory_of_stores_has_all_their_tables() {
    let dir = stores();
    let store = Store::open(dir.path()).await.expect("store");
    let names: Vec<_> = store.tables().iter().map(|t| t.name.as_str()).collect();
    let wanted = ["alerts", "alerts.frozen", "alerts.outlier_alerts", "clean", "frozen", "outlier_alerts", "readings", "readings.clean"];
    assert_eq!(names, wanted);
    let text = ask(&store, "SELECT input, device_id, value FROM alerts ORDER BY value", Format::Ndjson).await;
    let wanted = "{\"input\":\"outlier_alerts\",\"device_id\":\"pump-1\",\"value\":7.0}\n{\"input\":\"frozen\",\"device_id\":\"pump-2\",\"value\":8.0}\n";
    assert_eq!(text, wanted);
    let joined = "SELECT count(*) AS n FROM readings.clean r JOIN alerts a ON a.device_id = r.device_id";
    assert_eq!(ask(&store, joined, Format::Csv).await, "n\n3\n");
}

#[tokio::test]
async fn nothing_can_be_changed_and_errors_are_one_line() {
    let dir = stores();
    let store = Store::open(dir.path()).await.expect("store");
    for sql in [
        "DROP TABLE clean",
        "CREATE TABLE x AS SELECT * FROM clean",
        "INSERT INTO clean SELECT * FROM clean",
        "COPY clean TO 'x.parquet'",
        "CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '/etc'",
        "SET datafusion.execution.batch_size = 1",
        "EXPLAIN ANALYZE INSERT INTO clean SELECT * FROM clean",
        "SELECT 1; SELECT 2",
        "SELECT nothing FROM clean",
        "SELECT * FROM '/etc/passwd'",
        "SELEC 1",
    ] {
        let error = refused(&store, sql).await;
        assert!(!error.is_empty() && !error.contains('\n') && error.len() <= 500, "{sql}: {error}");
    }
    assert!(refused(&store, "SELECT nothing FROM clean").await.contains("nothing"));
    let show = ask(&store, "SHOW TABLES", Format::Csv).await;
    assert!(show.contains("datafusion,readings,clean,"), "{show}");
    assert!(ask(&store, "EXPLAIN SELECT * FROM clean", Format::Csv).await.contains("clean"));
    assert!(ask(&store, "DESCRIBE clean", Format::Csv).await.contains("device_id"));
}

#[tokio::test]
async fn limits_hold() {
    let dir = stores();
    let store = Store::open(dir.path()).await.expect("store");
    let two = store.query("SELECT * FROM clean", Limits { rows: 2, ..Limits::default() }).await.expect("answer");
    assert_eq!((two.rows(), two.truncated), (2, true));
    let all = store.query("SELECT * FROM clean", Limits { rows: 3, ..Limits::default() }).await.expect("answer");
    assert_eq!((all.rows(), all.truncated), (3, false));
    let long = store.query("SELECT 1", Limits { statement: 7, ..Limits::default() }).await.expect_err("too long");
    assert!(long.to_string().contains("longer than 7 bytes"), "{long}");
    let slow = "SELECT count(*) FROM generate_series(1, 100000000) a CROSS JOIN generate_series(1, 1000) b WHERE a.value % 7 = b.value % 5";
    let late = store.query(slow, Limits { timeout: Duration::from_millis(50), ..Limits::default() }).await.expect_err("slow");
    assert!(matches!(late, QueryError::Timeout(_)), "{late}");
}

#[tokio::test]
async fn what_is_no_store_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    for path in [dir.path().to_owned(), dir.path().join("nowhere")] {
        let error = Store::open(&path).await.expect_err("no store");
        assert!(error.to_string().contains("holds no store"), "{error}");
    }
    let gone = stores();
    fs::remove_file(gone.path().join("readings/clean/day=1970-01-02/b.parquet")).expect("remove");
    assert!(Store::open(gone.path()).await.is_err(), "a committed file is gone");
}
