//! The laws: split, replay, isolation, shuffle, passivation, garbage. One property test, called for every operator.
//!
//! Each law runs the same history twice and compares what left, per device and port, in order of position, floats bit by bit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use fieldstream_engine_api::{NodeCounts, Operator, Position};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::generate::{self, Case, Row, Shape, Step, device_name};
use crate::rig::{Parked, Rig, Turn};
use crate::text;

/// How the laws are tried.
#[derive(Clone, Copy, Debug)]
pub struct Laws {
    /// Histories tried, half as many again with garbage.
    pub cases: u32,
    /// What histories look like.
    pub shape: Shape,
    /// Turns generated readings into the operator's input.
    pub input: fn(RecordBatch) -> RecordBatch,
}

impl Default for Laws {
    fn default() -> Self {
        Self { cases: 48, shape: Shape::default(), input: |rows| rows }
    }
}

/// What left for one device by one port: position, and the row as text.
type Sent = BTreeMap<(String, String), Vec<(Position, String)>>;

/// One run: an operator, what it sent, and which devices are out of memory.
struct Run<'a> {
    rig: Option<Rig>,
    laws: &'a Laws,
    sent: Sent,
    parked: BTreeMap<String, Parked>,
}

type Make<'a> = &'a dyn Fn() -> Box<dyn Operator>;

/// Checks every law on generated histories. Deterministic: the same operator sees the same histories in every run.
///
/// # Panics
/// With the law, the shrunken history and the first difference, if a law is broken; or if the operator never sent anything,
/// since then nothing was tested.
pub fn laws(make: impl Fn() -> Box<dyn Operator>, laws: &Laws) {
    let sent = std::cell::Cell::new(0_u64);
    for (garbage, cases) in [(false, laws.cases), (true, laws.cases.div_ceil(2))] {
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let result = runner.run(&generate::cases(laws.shape, garbage), |case| {
            sent.set(sent.get() + check(&make, laws, &case)?);
            Ok(())
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(why, case)) => panic!("a law is broken: {why}\n{}", show_case(&case)),
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
    }
    assert!(sent.get() > 0, "the operator sent nothing in any history: choose histories that make it work");
}

/// Tries all laws on one history; gives the number of rows that left.
fn check(make: Make<'_>, laws: &Laws, case: &Case) -> Result<u64, TestCaseError> {
    let steps = &case.steps;
    let (whole, whole_counts) = Run::of(make, laws, steps, |_| false);
    let (single, single_counts) = Run::of(make, laws, steps, |_| true);
    same("split into single rows", &whole, &single)?;
    let (cut, cut_counts) = Run::of(make, laws, steps, |at| case.cuts.contains(&at));
    same("split at random", &whole, &cut)?;
    if whole_counts != single_counts || whole_counts != cut_counts {
        return Err(TestCaseError::fail(format!("split: counts {whole_counts:?}, by single rows {single_counts:?}, cut {cut_counts:?}")));
    }
    for device in devices(steps) {
        let alone = only(steps, &device);
        let (apart, _) = Run::of(make, laws, &alone, |_| false);
        same("isolation", &of_device(&whole, &device), &apart)?;
    }
    let (shuffled, _) = Run::of(make, laws, &shuffle(steps, case.seed), |_| false);
    same("shuffle", &whole, &shuffled)?;
    same("replay", &whole, &recovered(make, laws, case))?;
    passivation(make, laws, case, &whole)?;
    Ok(whole.values().map(|rows| rows.len() as u64).sum())
}

impl<'a> Run<'a> {
    fn new(make: Make<'_>, laws: &'a Laws) -> Self {
        let mut run = Self { rig: Some(Rig::new(make())), laws, sent: Sent::new(), parked: BTreeMap::new() };
        run.rows(&[]);
        run
    }

    /// Runs a history in as few batches as ticks allow, cut further before the steps `cut` names.
    fn of(make: Make<'_>, laws: &'a Laws, steps: &[Step], cut: impl Fn(usize) -> bool) -> (Sent, NodeCounts) {
        let mut run = Self::new(make, laws);
        run.steps(steps, cut);
        (run.sent, run.rig.map_or_else(NodeCounts::default, |rig| rig.total()))
    }

    fn steps(&mut self, steps: &[Step], cut: impl Fn(usize) -> bool) {
        let mut waiting: Vec<Row> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            if cut(at) {
                self.rows(&std::mem::take(&mut waiting));
            }
            match step {
                Step::Row(row) => waiting.push(row.clone()),
                Step::Tick { tick, devices } => {
                    self.rows(&std::mem::take(&mut waiting));
                    for device in devices {
                        self.activate(device);
                    }
                    let names: Vec<&str> = devices.iter().map(String::as_str).collect();
                    let turn = self.rig().tick_at(tick, &names);
                    self.collect(&turn);
                }
            }
        }
        self.rows(&waiting);
    }

    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap_or_else(|| unreachable!("a run always has its rig"))
    }

    fn rows(&mut self, rows: &[Row]) {
        for row in rows {
            self.activate(&row.device);
        }
        let positions: Vec<Position> = rows.iter().map(|row| row.position).collect();
        let batch = (self.laws.input)(generate::batch(rows));
        let turn = self.rig().batch_at(&batch, &positions);
        self.collect(&turn);
    }

    fn activate(&mut self, device: &str) {
        if let Some(parked) = self.parked.remove(device) {
            self.rig().activate(&parked);
        }
    }

    fn collect(&mut self, turn: &Turn) {
        let mut found = Vec::new();
        let rig = self.rig();
        for (port, batch) in &turn.sent {
            for (row, device) in batch.keys.device.iter().enumerate() {
                let name = rig.slots().device_name(*device).to_owned();
                found.push(((name, format!("port {port}")), (batch.keys.position[row], exact(&batch.rows, row))));
            }
        }
        for rejected in &turn.rejected {
            for row in &rejected.rows {
                let row = *row as usize;
                let name = rig.slots().device_name(rejected.batch.keys.device[row]).to_owned();
                found.push(((name, "rejected".to_owned()), (rejected.batch.keys.position[row], rejected.code.to_string())));
            }
        }
        for (key, value) in found {
            self.sent.entry(key).or_default().push(value);
        }
    }
}

/// A row as text that differs whenever a bit differs.
fn exact(rows: &RecordBatch, row: usize) -> String {
    let mut out = String::new();
    for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
        let cell = text::cell(column, row);
        // Writing to a String cannot fail.
        let _ = match column.data_type() {
            DataType::Float64 if column.is_valid(row) => {
                write!(out, "{}={cell}#{:x} ", field.name(), column.as_primitive::<Float64Type>().value(row).to_bits())
            }
            _ => write!(out, "{}={cell} ", field.name()),
        };
    }
    out
}

fn recovered(make: Make<'_>, laws: &Laws, case: &Case) -> Sent {
    let (before, after) = case.steps.split_at(case.recover_at.min(case.steps.len()));
    let mut run = Run::new(make, laws);
    run.steps(before, |_| false);
    run.rig = run.rig.take().map(|rig| rig.recover(make()));
    run.steps(after, |_| false);
    run.sent
}

fn devices(steps: &[Step]) -> BTreeSet<String> {
    steps.iter().filter_map(|step| if let Step::Row(row) = step { Some(row.device.clone()) } else { None }).collect()
}

/// The history of one device alone.
fn only(steps: &[Step], device: &str) -> Vec<Step> {
    let of = |step: &Step| match step {
        Step::Row(row) => (row.device == device).then(|| step.clone()),
        Step::Tick { tick, devices } => {
            devices.iter().any(|d| d == device).then(|| Step::Tick { tick: *tick, devices: vec![device.to_owned()] })
        }
    };
    steps.iter().filter_map(of).collect()
}

fn of_device(sent: &Sent, device: &str) -> Sent {
    sent.iter().filter(|(key, _)| key.0 == device).map(|(key, rows)| (key.clone(), rows.clone())).collect()
}

/// The same history with devices interleaved otherwise: between ticks, all rows of one device, then all of the next.
fn shuffle(steps: &[Step], seed: u64) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::with_capacity(steps.len());
    for (number, part) in steps.split_inclusive(|step| matches!(step, Step::Tick { .. })).enumerate() {
        let mut part = part.to_vec();
        part.sort_by_cached_key(|step| match step {
            Step::Row(row) => {
                let mut hasher = DefaultHasher::new();
                (seed, number, &row.device).hash(&mut hasher);
                hasher.finish() >> 1
            }
            Step::Tick { .. } => u64::MAX,
        });
        out.extend(part);
    }
    out
}

/// Takes devices out of memory, gives their slots to a ghost that repeats their rows, and lets them come back later.
fn passivation(make: Make<'_>, laws: &Laws, case: &Case, whole: &Sent) -> Result<(), TestCaseError> {
    let mut run = Run::new(make, laws);
    let mut expected = whole.clone();
    let mut parks = case.parks.clone();
    parks.sort_unstable();
    let mut done = 0;
    for (number, (at, device)) in parks.into_iter().enumerate() {
        let at = at.min(case.steps.len());
        run.steps(&case.steps[done..at], |_| false);
        done = at;
        let device = device_name(device);
        if let Some(parked) = run.rig().passivate(&device) {
            run.parked.insert(device.clone(), parked);
        }
        let ghost = haunt(&case.steps[..at], &device, number);
        expected.extend(Run::of(make, laws, &ghost, |_| false).0);
        run.steps(&ghost, |_| false);
    }
    run.steps(&case.steps[done..], |_| false);
    same("passivation", &expected, &run.sent)
}

/// The rows of `device` again, as another device's.
fn haunt(steps: &[Step], device: &str, number: usize) -> Vec<Step> {
    let of = |step: &Step| match step {
        Step::Row(row) if row.device == device => {
            let mut row = row.clone();
            row.device = format!("ghost{number}");
            row.position.offset += (number as u64 + 1) * 1_000_000;
            Some(Step::Row(row))
        }
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

fn by_position(sent: &Sent) -> Sent {
    let mut sent = sent.clone();
    sent.values_mut().for_each(|rows| rows.sort_by_key(|row| row.0));
    sent
}

fn same(law: &str, left: &Sent, right: &Sent) -> Result<(), TestCaseError> {
    let (left, right) = (by_position(left), by_position(right));
    for key in left.keys().chain(right.keys()) {
        let empty = Vec::new();
        let (l, r) = (left.get(key).unwrap_or(&empty), right.get(key).unwrap_or(&empty));
        let differs = (0..l.len().max(r.len())).find(|i| l.get(*i) != r.get(*i));
        if let Some(at) = differs {
            let show =
                |row: Option<&(Position, String)>| row.map_or("nothing".to_owned(), |(p, text)| format!("{}.{}: {text}", p.offset, p.tick));
            let (device, port) = key;
            return Err(TestCaseError::fail(format!(
                "{law}: device {device}, {port}, row {at} (of {} and {})\n  {}\n  {}",
                l.len(),
                r.len(),
                show(l.get(at)),
                show(r.get(at))
            )));
        }
    }
    Ok(())
}

fn show_case(case: &Case) -> String {
    let mut grid = vec![["at", "device", "sensor", "ts_us", "value", "quality"].map(str::to_owned).to_vec()];
    for (at, step) in case.steps.iter().enumerate() {
        grid.push(match step {
            Step::Row(row) => vec![
                at.to_string(),
                row.device.clone(),
                row.sensor.to_string(),
                row.ts.to_string(),
                row.value.map_or("-".to_owned(), |v| v.to_string()),
                row.quality.name().to_owned(),
            ],
            Step::Tick { tick, devices } => vec![at.to_string(), format!("tick {:?} for {}", tick.time, devices.join(","))],
        });
    }
    format!("{}cuts {:?}, recovered before {}, taken out {:?}", text::align(&grid), case.cuts, case.recover_at, case.parks)
}
