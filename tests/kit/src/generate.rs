//! Made-up histories for the laws: readings of a few devices, in rough event-time order, with ticks between them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use fieldstream_engine_api::{Tick, TickTime};
use fieldstream_schemas::columns::name_type;
use fieldstream_schemas::{Position, Quality, quality, readings_schema};
use proptest::prelude::*;

/// One reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Device, sensor: numbers made into names.
    pub device: String,
    /// Number of the sensor.
    pub sensor: u8,
    /// Event time, microseconds.
    pub ts: i64,
    /// Value.
    pub value: Option<f64>,
    /// Quality class.
    pub quality: Quality,
    /// True when the producer sent an id.
    pub has_id: bool,
    /// Where it stands in the log. It belongs to the row and stays with it when rows are reordered.
    pub position: Position,
}

/// One step of a history.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A reading.
    Row(Row),
    /// A tick for some devices.
    Tick {
        /// When.
        tick: Tick,
        /// For whom.
        devices: Vec<String>,
    },
}

/// A history and what the laws do with it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The history.
    pub steps: Vec<Step>,
    /// Steps before which a batch is cut.
    pub cuts: Vec<usize>,
    /// Step before which the operator is recovered.
    pub recover_at: usize,
    /// (step, device number): before that step the device is taken out of memory.
    pub parks: Vec<(usize, u8)>,
    /// Orders devices in the shuffle.
    pub seed: u64,
}

/// What histories look like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Most readings in a history.
    pub rows: usize,
    /// Devices, at most 8.
    pub devices: u8,
    /// Sensors a device.
    pub sensors: u8,
    /// Longest usual step of event time between two readings, microseconds; one in ten is ten times as long.
    pub step_us: i64,
    /// How far event times run out of order, microseconds.
    pub jitter_us: i64,
    /// Values are `level` to `level + 4`, one in ten is up to 100 above or below.
    pub level: f64,
    /// First event time, microseconds.
    pub start_us: i64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { rows: 120, devices: 4, sensors: 2, step_us: 2_000_000, jitter_us: 8_000_000, level: 20.0, start_us: -30_000_000 }
    }
}

/// A row before its time is known.
#[derive(Clone, Debug)]
struct Draft {
    device: u8,
    sensor: u8,
    step: i64,
    jitter: i64,
    value: Option<f64>,
    quality: u8,
    has_id: bool,
    far: Option<i64>,
}

fn drafts(shape: Shape, garbage: bool) -> impl Strategy<Value = Vec<Draft>> {
    let step = prop_oneof![1 => Just(0), 8 => 0..=shape.step_us, 1 => 0..=shape.step_us * 10];
    let jitter = prop_oneof![2 => Just(0), 1 => -shape.jitter_us..=0];
    let level = shape.level;
    let tame = prop_oneof![
        12 => (0..=8).prop_map(move |n| Some(level + f64::from(n) * 0.5)),
        2 => (-100..=100).prop_map(move |n| Some(level + f64::from(n))),
        1 => (0.0..1.0).prop_map(move |x: f64| Some(level + x)),
        1 => Just(None),
    ];
    let odd = prop::sample::select(vec![
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE / 2.0,
        -0.0,
        1e308,
        -1e300,
    ]);
    let value = if garbage { prop_oneof![2 => tame, 1 => odd.prop_map(Some)].boxed() } else { tame.boxed() };
    let odd_times = vec![i64::MIN, i64::MIN + 1, -1_i64 << 60, 1_i64 << 60, i64::MAX - 1, i64::MAX];
    let far = if garbage {
        prop_oneof![20 => Just(None), 1 => prop::sample::select(odd_times).prop_map(Some)].boxed()
    } else {
        Just(None).boxed()
    };
    let row = (0..shape.devices, 0..shape.sensors, step, jitter, value, 0..10_u8, any::<bool>(), far).prop_map(
        |(device, sensor, step, jitter, value, quality, has_id, far)| Draft { device, sensor, step, jitter, value, quality, has_id, far },
    );
    prop::collection::vec(row, 1..=shape.rows)
}

/// Histories of the given shape; with `garbage`, odd values and times are among them.
pub fn cases(shape: Shape, garbage: bool) -> impl Strategy<Value = Case> {
    let at = 0..shape.rows;
    let ticks = prop::collection::vec((at.clone(), -shape.jitter_us..=shape.step_us * 100, any::<u8>()), 0..4);
    let cuts = prop::collection::vec(at.clone(), 0..8);
    let parks = prop::collection::vec((at.clone(), 0..shape.devices), 0..4);
    let ends = prop::bool::weighted(0.75);
    (drafts(shape, garbage), ticks, cuts, at, parks, any::<u64>(), ends).prop_map(
        move |(drafts, ticks, cuts, recover_at, parks, seed, ends)| Case {
            steps: steps(shape, &drafts, &ticks, ends),
            cuts,
            recover_at,
            parks,
            seed,
        },
    )
}

/// Name of device number `number`.
#[must_use]
pub fn device_name(number: u8) -> String {
    format!("d{number}")
}

fn steps(shape: Shape, drafts: &[Draft], ticks: &[(usize, i64, u8)], ends: bool) -> Vec<Step> {
    let mut out = Vec::with_capacity(drafts.len() + ticks.len() + 1);
    let (mut clock, mut append, mut last) = (shape.start_us, i64::MIN, Position::default());
    for (number, draft) in drafts.iter().enumerate() {
        clock += draft.step;
        let position = Position::new(number as u64, 0);
        out.push(Step::Row(Row {
            device: device_name(draft.device),
            sensor: draft.sensor,
            ts: draft.far.unwrap_or(clock + draft.jitter),
            value: draft.value,
            quality: match draft.quality {
                0 => Quality::Bad,
                1 => Quality::Uncertain,
                _ => Quality::Good,
            },
            has_id: draft.has_id,
            position,
        }));
        last = position;
        for (_, ahead, mask) in ticks.iter().filter(|tick| tick.0 == number) {
            append = append.max(clock.saturating_add(*ahead));
            last.tick += 1;
            let devices = (0..shape.devices).filter(|d| mask >> (d % 8) & 1 == 1).map(device_name).collect();
            out.push(Step::Tick { tick: Tick { position: last, time: TickTime::Append(append) }, devices });
        }
    }
    if ends {
        last.tick += 1;
        let devices = (0..shape.devices).map(device_name).collect();
        out.push(Step::Tick { tick: Tick { position: last, time: TickTime::EndOfInput }, devices });
    }
    out
}

/// A batch of readings.
///
/// # Panics
/// Never: the columns are made here.
#[must_use]
pub fn batch(rows: &[Row]) -> RecordBatch {
    const SENSORS: [(&str, Option<&str>, Option<&str>); 3] =
        [("t", Some("temperature"), Some("Cel")), ("p", Some("pressure"), Some("hPa")), ("x", None, None)];
    let sensor = |row: &Row| SENSORS[usize::from(row.sensor) % SENSORS.len()];
    let names = |column: Vec<Option<&str>>| cast(&StringArray::from(column), &name_type()).unwrap_or_else(|e| panic!("names: {e}"));
    let times = |column: Vec<Option<i64>>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(column).with_timezone("UTC")) };
    let ids: Vec<Option<String>> = rows.iter().map(|r| r.has_id.then(|| format!("r{}", r.position.offset))).collect();
    let nothing = StringArray::from(vec![None::<&str>; rows.len()]);
    let columns: Vec<ArrayRef> = vec![
        names(rows.iter().map(|r| Some(r.device.as_str())).collect()),
        names(rows.iter().map(|r| Some(sensor(r).0)).collect()),
        names(rows.iter().map(|r| sensor(r).1).collect()),
        times(rows.iter().map(|r| Some(r.ts)).collect()),
        times(rows.iter().map(|r| r.has_id.then_some(r.ts.saturating_add(1_000_000))).collect()),
        Arc::new(rows.iter().map(|r| r.value).collect::<Float64Array>()),
        Arc::new(nothing.clone()),
        Arc::new(BooleanArray::from(rows.iter().map(|r| r.value.is_none().then_some(true)).collect::<Vec<_>>())),
        names(rows.iter().map(|r| sensor(r).2).collect()),
        quality::column(rows.iter().map(|r| r.quality as u8)),
        Arc::new(rows.iter().map(|r| r.has_id.then_some(0.75)).collect::<Float64Array>()),
        Arc::new(StringArray::from(ids)),
        Arc::new(nothing),
        Arc::new(BooleanArray::from(vec![false; rows.len()])),
    ];
    RecordBatch::try_new(readings_schema(), columns).unwrap_or_else(|e| panic!("readings: {e}"))
}
