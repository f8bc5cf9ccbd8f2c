//! Readings of a made-up fleet for single operators: every series once a second, in an order without pattern.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::UInt32Type;
use fieldstream_engine_api::{BuildContext, Edge, Emitter, KeyedBatch, Keys, LogId, Operator, SlotDirectory, Space, WindowTime};
use fieldstream_pipelines::Catalogue;
use fieldstream_schemas::{Position, quality, readings_schema};
use serde_json::Value;

use crate::lines::Random;

/// 2026-11-23T10:00:00Z, microseconds.
const START_US: i64 = 1_795_428_000_000_000;
const SECOND_US: i64 = 1_000_000;
/// Values are taken from a ring, since making normal numbers costs more than most operators.
const RING: usize = 1 << 16;

/// A fleet with one sensor a device, and its slots.
pub(crate) struct Fleet {
    /// The directory, in which device and series slots are equal.
    pub(crate) slots: SlotDirectory,
    order: Vec<u32>,
    names: Vec<String>,
    values: Vec<f64>,
}

/// Makes batches without end. Event time goes on from batch to batch.
pub(crate) struct Feed<'a> {
    fleet: &'a Fleet,
    next: u64,
}

impl Fleet {
    /// A fleet of `series` devices.
    pub(crate) fn new(series: usize) -> Self {
        let mut random = Random(7);
        let mut slots = SlotDirectory::default();
        let names: Vec<String> = (0..series).map(|n| format!("device-{n:07}")).collect();
        for name in &names {
            let (device, _) = slots.resolve_device(name);
            let sensor = slots.resolve_sensor("temp-001");
            slots.resolve_series(device, sensor);
        }
        let mut order: Vec<u32> = (0..series as u32).collect();
        for at in (1..series).rev() {
            order.swap(at, (random.next() % (at as u64 + 1)) as usize);
        }
        let values = (0..RING).map(|_| 20.0 + random.normal()).collect();
        Self { slots, order, names, values }
    }

    /// Readings from the beginning.
    pub(crate) fn feed(&self) -> Feed<'_> {
        Feed { fleet: self, next: 0 }
    }
}

impl Feed<'_> {
    /// The next `rows` readings, as they come out of decoding and addressing.
    pub(crate) fn batch(&mut self, rows: usize) -> KeyedBatch {
        let (fleet, first) = (self.fleet, self.next);
        let series = fleet.order.len() as u64;
        self.next += rows as u64;
        let slot = |n: u64| fleet.order[(n % series) as usize];
        let at = |n: u64| START_US + (n / series) as i64 * SECOND_US + (n % series) as i64 * SECOND_US / series as i64;
        let device: Vec<u32> = (first..self.next).map(slot).collect();
        let position = (first..self.next).map(|n| Position::new(n, 0)).collect();
        let times: Vec<i64> = (first..self.next).map(at).collect();
        let start = (first.wrapping_mul(0x9e37_79b9) % RING as u64) as usize;
        let values: Vec<f64> = fleet.values.iter().cycle().skip(start).take(rows).copied().collect();
        let keys = Keys { series: device.clone(), device, position };
        let batch = RecordBatch::try_new(readings_schema(), self.columns(&keys.device, times, values));
        KeyedBatch::new(batch.unwrap_or_else(|e| panic!("{e}")), keys)
    }

    fn columns(&self, devices: &[u32], times: Vec<i64>, values: Vec<f64>) -> Vec<ArrayRef> {
        let rows = devices.len();
        // The names of a batch are numbered by first appearance, as the decoder does; here each row brings its own.
        let distinct = rows.min(self.fleet.order.len());
        let names = StringArray::from_iter_values(devices[..distinct].iter().map(|d| &self.fleet.names[*d as usize]));
        let keys = UInt32Array::from_iter_values((0..rows).map(|row| (row % distinct) as u32));
        let device: ArrayRef = Arc::new(DictionaryArray::<UInt32Type>::try_new(keys, Arc::new(names)).unwrap_or_else(|e| panic!("{e}")));
        let same = |name: &str| -> ArrayRef {
            let keys = UInt32Array::from(vec![0; rows]);
            Arc::new(
                DictionaryArray::<UInt32Type>::try_new(keys, Arc::new(StringArray::from(vec![name]))).unwrap_or_else(|e| panic!("{e}")),
            )
        };
        vec![
            device,
            same("temp-001"),
            same("temperature"),
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
            Arc::new(TimestampMicrosecondArray::new_null(rows).with_timezone("UTC")),
            Arc::new(Float64Array::from(values)),
            Arc::new(StringArray::new_null(rows)),
            Arc::new(BooleanArray::new_null(rows)),
            same("Cel"),
            quality::column(vec![0; rows]),
            Arc::new(Float64Array::from(vec![0.9; rows])),
            Arc::new(StringArray::new_null(rows)),
            Arc::new(StringArray::new_null(rows)),
            Arc::new(BooleanArray::from(vec![false; rows])),
        ]
    }
}

/// An operator as a pipeline builds it, with room for all slots.
pub(crate) fn operator(kind: &str, options: &Value, slots: &SlotDirectory) -> Box<dyn Operator> {
    let catalogue = Catalogue::built_in();
    let Some(kind) = catalogue.operators.iter().find(|k| k.name == kind) else { panic!("there is no operator {kind}") };
    let time = WindowTime { out_of_orderness: std::time::Duration::from_secs(5), allowed_lateness: std::time::Duration::ZERO };
    let context = BuildContext { pipeline: "bench".into(), node: "node".into(), log_id: LogId("bench".into()), partition: 0, time };
    let edge = Edge { schema: readings_schema(), key: Space::Series };
    let mut operator = (kind.build)(options, &edge, &context).unwrap_or_else(|e| panic!("{options}: {e:?}"));
    for state in operator.states() {
        state.grow_to(if state.space() == Space::Device { slots.device_slots() } else { slots.series_slots() });
    }
    operator
}

/// One call, as the graph makes it; gives the rows that left.
pub(crate) fn call(operator: &mut dyn Operator, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) -> usize {
    operator.on_batch(batch, slots, out);
    let (sent, rejected, _) = out.finish(batch.len());
    sent.iter().map(|(_, batch)| batch.len()).sum::<usize>() + rejected.iter().map(|r| r.rows.len()).sum::<usize>()
}
