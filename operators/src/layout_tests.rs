//! Golden snapshots: what every state looks like in a checkpoint, by operator, state and layout number.
//!
//! `tests/layouts/<case>-<state>-v<layout>.txt` is a snapshot as text. A checkpoint of a released version must be readable by the
//! next one: columns may change only together with the layout number, and what lies there must be restored as it is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int64Array, RecordBatch,
    UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Int64Type, Schema, UInt32Type, UInt64Type};
use expect_test::expect_file;
use fieldstream_engine_api::{KeyedState, Operator, Space};
use fieldstream_testkit::{Rig, context, readings_edge};
use serde_json::{Value, json};

use crate::catalogue::find;

/// One configuration of an operator that keeps state.
struct Case {
    name: &'static str,
    kind: &'static str,
    options: Value,
}

fn case(name: &'static str, kind: &'static str, options: Value) -> Case {
    Case { name, kind, options }
}

/// Every operator with state, every method of `detect` and `predict`, every kind of window and aggregate.
fn cases() -> Vec<Case> {
    let all = json!({
        "n": {"count": "*"}, "values": {"count": "value"}, "low": {"min": "value"}, "sum": {"sum": "value"}, "sd": {"stddev": "value"},
        "first": {"first": "value"}, "last": {"last": "value"}, "p9": {"quantile": {"of": "value", "q": 0.9}},
    });
    vec![
        case("dedupe", "dedupe", json!({"by": ["sensor_id", "ts"], "last": 4})),
        case(
            "validate",
            "validate",
            json!({"rules": [
                {"id": "rate", "rate": {"max_step": 2, "resync": 2}},
                {"id": "stuck", "stuck": {"count": 30, "for": "60s"}, "sensor": "p"},
            ]}),
        ),
        case("deadband", "deadband", json!({"absolute": 1.0, "max_silence": "20s"})),
        case("window-tumbling", "window", json!({"tumbling": "1m", "by": "series", "aggregate": all})),
        case(
            "window-hopping",
            "window",
            json!({"hopping": {"size": "20s", "every": "10s"}, "by": "device", "aggregate": {"sum": {"sum": "value"}}}),
        ),
        case("window-session", "window", json!({"session": {"gap": "30s"}, "by": "device", "aggregate": {"n": {"count": "*"}}})),
        case("detect-threshold", "detect", json!({"threshold": {"above": 30, "deadband": 1}, "on_delay": "2s"})),
        case("detect-ewma", "detect", json!({"ewma": {"warmup": 5, "z": 3}})),
        case("detect-robust", "detect", json!({"robust": {"window": 5, "k": 3}})),
        case("detect-cusum", "detect", json!({"cusum": {"warmup": 4, "h": 4, "shift_after": 30}})),
        case("detect-rate", "detect", json!({"rate": {"max_per_second": 5}})),
        case("detect-flatline", "detect", json!({"flatline": {"for": "10s"}})),
        case("detect-gap", "detect", json!({"gap": {"after": "6s"}})),
        case("predict-trend", "predict", json!({"trend_to_limit": {"limit": 90, "lookback": "60s", "buckets": 6, "min_points": 4}})),
        case("predict-health", "predict", json!({"health": {"every": "20s", "warmup": 3}})),
    ]
}

impl Case {
    fn operator(&self) -> Box<dyn Operator> {
        let build = find(self.kind).unwrap_or_else(|| panic!("no operator {}", self.kind)).build;
        build(&self.options, &readings_edge(), &context()).unwrap_or_else(|e| panic!("{}: {e:?}", self.name))
    }

    /// The operator after half a minute of two devices: one steady, one that jumps at the very end, and a sensor that does not move.
    fn used(&self) -> Rig {
        let mut rig = Rig::new(self.operator());
        let mut picture = "device sensor ts value\n".to_owned();
        for second in 0..30 {
            let jumping = if second < 29 { 10.0 + f64::from(second) * 0.25 } else { 40.0 };
            writeln!(picture, "a t {second} {}\na p {second} 5\nb t {second} {jumping}", 20 + second % 3).unwrap();
        }
        rig.feed(&picture);
        rig
    }

    /// The text of each of its states: what its file must hold.
    fn texts(&self) -> Vec<(String, String)> {
        let mut rig = self.used();
        let devices: Vec<u32> = rig.slots().devices().collect();
        let series: Vec<u32> = devices.iter().flat_map(|device| rig.slots().series_of(*device).collect::<Vec<_>>()).collect();
        let text = |(number, state): (usize, &mut dyn KeyedState)| {
            let rows = state.snapshot(if state.space() == Space::Device { &devices } else { &series });
            assert!(rows.num_rows() > 0, "state {number} of {} is blank: give it a history that it keeps", self.name);
            let head = format!("{} {}\nstate {number} by {:?}, layout {}\n", self.kind, self.options, state.space(), state.layout());
            (format!("{}-{number}-v{}.txt", self.name, state.layout()), head + &picture(&rows))
        };
        rig.operator().states().into_iter().enumerate().map(text).collect()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layouts")
}

/// A line of columns, then a line for each row.
fn picture(rows: &RecordBatch) -> String {
    let type_name = |field: &Field| match field.data_type() {
        DataType::FixedSizeList(item, size) => format!("{size}x{}", item.data_type()),
        other => other.to_string(),
    };
    let nullable = |field: &Field| if field.is_nullable() { "?" } else { "" };
    let schema = rows.schema();
    let columns: Vec<String> = schema.fields().iter().map(|f| format!("{}:{}{}", f.name(), type_name(f), nullable(f))).collect();
    let mut text = columns.join(" ") + "\n";
    for row in 0..rows.num_rows() {
        let cells: Vec<String> = rows.columns().iter().map(|column| cell(column, row)).collect();
        text += &(cells.join(" ") + "\n");
    }
    text
}

fn cell(column: &ArrayRef, row: usize) -> String {
    if column.is_null(row) {
        return "-".to_owned();
    }
    match column.data_type() {
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Float32 => format!("{:?}", column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => format!("{:?}", column.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::Binary => column.as_binary::<i32>().value(row).iter().map(|byte| format!("{byte:02x}")).collect(),
        DataType::FixedSizeList(..) => {
            let values = column.as_fixed_size_list().value(row);
            (0..values.len()).map(|at| cell(&values, at)).collect::<Vec<_>>().join(",")
        }
        other => panic!("teach this file the type {other}"),
    }
}

/// The rows of a picture.
fn read(picture: &str) -> RecordBatch {
    let mut lines = picture.lines();
    let columns: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let grid: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
    let mut fields = Vec::new();
    let mut arrays = Vec::new();
    for (at, column) in columns.iter().enumerate() {
        let (name, kind) = column.split_once(':').unwrap();
        let cells: Vec<&str> = grid.iter().map(|row| row[at]).collect();
        let array = array(kind.trim_end_matches('?'), &cells);
        fields.push(Field::new(name, array.data_type().clone(), kind.ends_with('?')));
        arrays.push(array);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

fn array(kind: &str, cells: &[&str]) -> ArrayRef {
    fn all<T: std::str::FromStr>(cells: &[&str]) -> Vec<T> {
        cells.iter().map(|cell| cell.parse().unwrap_or_else(|_| panic!("{cell}"))).collect()
    }
    let bytes = |hex: &str| (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect::<Vec<u8>>();
    match kind {
        "UInt32" => Arc::new(UInt32Array::from(all::<u32>(cells))),
        "UInt64" => Arc::new(UInt64Array::from(all::<u64>(cells))),
        "Int64" => Arc::new(Int64Array::from(all::<i64>(cells))),
        "Float32" => Arc::new(Float32Array::from(all::<f32>(cells))),
        "Float64" => Arc::new(Float64Array::from(all::<f64>(cells))),
        "Boolean" => Arc::new(BooleanArray::from(all::<bool>(cells))),
        "Binary" => Arc::new(cells.iter().map(|cell| (*cell != "-").then(|| bytes(cell))).collect::<BinaryArray>()),
        list => {
            let (size, item) = list.split_once('x').unwrap_or_else(|| panic!("teach this file the type {list}"));
            let values = array(item, &cells.iter().flat_map(|cell| cell.split(',')).collect::<Vec<_>>());
            let item = Arc::new(Field::new("item", values.data_type().clone(), false));
            Arc::new(FixedSizeListArray::try_new(item, size.parse().unwrap(), values, None).unwrap())
        }
    }
}

/// Head lines and picture of a golden file.
fn parts(text: &str) -> (&str, &str, &str) {
    let (kind, rest) = text.split_once('\n').unwrap();
    let (state, picture) = rest.split_once('\n').unwrap();
    (kind, state, picture)
}

#[test]
fn every_operator_with_state_has_golden_snapshots() {
    let cased: BTreeSet<&str> = cases().iter().map(|case| case.kind).collect();
    assert_eq!(cased, crate::laws::kinds_with_state(), "each operator that keeps state needs a case here");
}

#[test]
fn columns_change_only_with_the_layout_number() {
    for (file, text) in cases().iter().flat_map(Case::texts) {
        let path = folder().join(&file);
        if let Ok(golden) = std::fs::read_to_string(&path) {
            // Also when goldens are written anew: then it is too late to see it.
            let columns = |text: &str| parts(text).2.lines().next().map(str::to_owned);
            assert_eq!(
                columns(&text),
                columns(&golden),
                "{file}: give the state the next layout number, or restore cannot tell them apart"
            );
        }
        expect_file![path].assert_eq(&text);
    }
}

#[test]
fn golden_snapshots_are_restored() {
    let cases = cases();
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= cases.len(), "a file for each case");
    for path in files {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let (name, _) = file.rsplit_once("-v").unwrap();
        let (name, number) = name.rsplit_once('-').unwrap();
        let case = cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("{file}: no case is called {name}"));
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, head, picture_then) = parts(&text);
        let rows = read(picture_then);
        let mut operator = case.operator();
        let mut states = operator.states();
        let state = &mut states[number.parse::<usize>().unwrap()];
        let layout = head.rsplit(' ').next().unwrap().parse::<u32>().unwrap();
        assert_eq!(layout, state.layout(), "{file}: checkpoints of this layout are refused; read them, or delete the file and say so");
        state.grow_to(64);
        state.restore(&rows).unwrap_or_else(|e| panic!("{file}: {e}"));
        // In the order of the file; a slot may have several rows.
        let mut slots = rows.column(0).as_primitive::<UInt32Type>().values().to_vec();
        slots.dedup();
        // Windows of one slot may come in another order.
        let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(sorted(&picture(&state.snapshot(&slots))), sorted(picture_then), "{file}: what is restored is what was saved");
    }
}
