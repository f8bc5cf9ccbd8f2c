//! What an open window holds: a row of 64-bit cells, laid out once per operator, and how values go in and results come out.
//!
//! Sums run in row order, deviations by Welford's update (Technometrics 4(3), 1962), joins of sessions by Chan, Golub and
//! LeVeque's rule; quantiles come from a DDSketch (VLDB 12, 2019), whose result does not depend on the order of rows.

use arrow::datatypes::DataType;
use sketches_ddsketch::{Config, DDSketch};

/// First event time of the window, microseconds.
pub(super) const START: usize = 0;
/// First event time after the window, microseconds.
pub(super) const END: usize = 1;
/// Bit 0: there is a window; bit 1: it has been emitted and is kept for late rows. Above 32 bits: the next window of the slot.
pub(super) const FLAGS: usize = 2;

/// Cells of one aggregated input, in this order at `at`: count, then for values sum, min, max.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct InputCells {
    /// First cell.
    pub(super) at: usize,
    /// False for `*`, which counts rows only.
    pub(super) values: bool,
    /// First of two cells: mean, sum of squared deviations.
    pub(super) moments: Option<usize>,
    /// First of four cells: time and value of the first, time and value of the last.
    pub(super) ends: Option<usize>,
    /// Number of the sketch.
    pub(super) sketch: Option<usize>,
}

/// Where everything lies.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Layout {
    /// One entry per distinct input.
    pub(super) inputs: Vec<InputCells>,
    /// Cells of a window.
    pub(super) stride: usize,
    /// Sketches of a window.
    pub(super) sketches: usize,
    /// Name and type of each cell, for snapshots.
    pub(super) columns: Vec<(String, DataType)>,
    /// The cells of a window that was just opened, but for its times and its link.
    blank: Vec<u64>,
}

/// What an aggregate reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reading {
    Count,
    Sum,
    Min,
    Max,
    Mean,
    Stddev,
    First,
    Last,
    Quantile(f64),
}

/// Relative error of quantiles.
const QUANTILE_ERROR: f64 = 0.01;

impl Layout {
    /// The layout for inputs of which each is `(is a value, the readings asked of it)`.
    pub(super) fn new(inputs: &[(bool, Vec<Reading>)]) -> Self {
        let mut layout = Self::default();
        layout.cell("window_start", &DataType::Int64);
        layout.cell("window_end", &DataType::Int64);
        layout.cell("emitted", &DataType::UInt64);
        for (number, (values, readings)) in inputs.iter().enumerate() {
            let asks = |test: fn(&Reading) -> bool| readings.iter().any(test);
            let at = layout.cell(&format!("count_{number}"), &DataType::UInt64);
            if *values {
                for name in ["sum", "min", "max"] {
                    layout.cell(&format!("{name}_{number}"), &DataType::Float64);
                }
            }
            let moments = asks(|r| *r == Reading::Stddev).then(|| {
                let at = layout.cell(&format!("mean_{number}"), &DataType::Float64);
                layout.cell(&format!("squares_{number}"), &DataType::Float64);
                at
            });
            let ends = asks(|r| matches!(r, Reading::First | Reading::Last)).then(|| {
                let at = layout.cell(&format!("first_ts_{number}"), &DataType::Int64);
                layout.cell(&format!("first_{number}"), &DataType::Float64);
                layout.cell(&format!("last_ts_{number}"), &DataType::Int64);
                layout.cell(&format!("last_{number}"), &DataType::Float64);
                at
            });
            let sketch = asks(|r| matches!(r, Reading::Quantile(_))).then(|| {
                layout.sketches += 1;
                layout.sketches - 1
            });
            layout.inputs.push(InputCells { at, values: *values, moments, ends, sketch });
        }
        layout.blank = vec![0; layout.stride];
        layout.blank[FLAGS] = 1;
        for input in layout.inputs.iter().filter(|input| input.values) {
            layout.blank[input.at + 2] = f64::INFINITY.to_bits();
            layout.blank[input.at + 3] = f64::NEG_INFINITY.to_bits();
        }
        layout
    }

    fn cell(&mut self, name: &str, data_type: &DataType) -> usize {
        self.columns.push((name.to_owned(), data_type.clone()));
        self.stride += 1;
        self.stride - 1
    }

    /// Writes an empty window into `cells`, keeping the link above 32 bits of the flags.
    pub(super) fn open(&self, cells: &mut [u64], sketches: &mut [Option<Box<DDSketch>>], start: i64, end: i64) {
        let link = cells[FLAGS] & !0xffff_ffff;
        cells.copy_from_slice(&self.blank);
        (cells[START], cells[END]) = (start as u64, end as u64);
        cells[FLAGS] |= link;
        sketches.fill(None);
    }
}

fn float(cells: &[u64], at: usize) -> f64 {
    f64::from_bits(cells[at])
}

fn set(cells: &mut [u64], at: usize, value: f64) {
    cells[at] = value.to_bits();
}

/// Adds one value, which is not NaN, seen at event time `ts`. A later call at the same time counts as later.
#[inline]
pub(super) fn add(input: &InputCells, cells: &mut [u64], sketches: &mut [Option<Box<DDSketch>>], ts: i64, value: f64) {
    let [count, sum, min, max] = &mut cells[input.at..input.at + 4] else { return };
    *count += 1;
    *sum = (f64::from_bits(*sum) + value).to_bits();
    *min = f64::from_bits(*min).min(value).to_bits();
    *max = f64::from_bits(*max).max(value).to_bits();
    let count = *count;
    if let Some(at) = input.moments {
        let (mean, squares) = (float(cells, at), float(cells, at + 1));
        let delta = value - mean;
        let next = mean + delta / count as f64;
        set(cells, at, next);
        set(cells, at + 1, squares + delta * (value - next));
    }
    if let Some(at) = input.ends {
        if count == 1 || ts < cells[at] as i64 {
            cells[at] = ts as u64;
            set(cells, at + 1, value);
        }
        if count == 1 || ts >= cells[at + 2] as i64 {
            cells[at + 2] = ts as u64;
            set(cells, at + 3, value);
        }
    }
    if let Some(number) = input.sketch {
        let sketch = sketches[number].get_or_insert_with(|| Box::new(DDSketch::new(Config::new(QUANTILE_ERROR, 2048, 1e-9))));
        // An infinite value has no bin.
        sketch.add(value.clamp(f64::MIN, f64::MAX));
    }
}

/// Joins the window `from` into `into`: accumulators only, not the head.
pub(super) fn join(layout: &Layout, into: &mut Window<'_>, from: &Window<'_>) {
    for input in &layout.inputs {
        let (a, b) = (into.cells[input.at], from.cells[input.at]);
        if b == 0 {
            continue;
        }
        if let Some(at) = input.moments {
            let (n, m) = (a as f64, b as f64);
            let delta = float(from.cells, at) - float(into.cells, at);
            let mean = if a == 0 { float(from.cells, at) } else { float(into.cells, at) + delta * m / (n + m) };
            let squares = float(into.cells, at + 1) + float(from.cells, at + 1);
            set(into.cells, at, mean);
            set(into.cells, at + 1, if a == 0 { squares } else { squares + delta * delta * n * m / (n + m) });
        }
        if let Some(at) = input.ends {
            if a == 0 || (from.cells[at] as i64) < into.cells[at] as i64 {
                into.cells[at..at + 2].copy_from_slice(&from.cells[at..at + 2]);
            }
            if a == 0 || from.cells[at + 2] as i64 >= into.cells[at + 2] as i64 {
                into.cells[at + 2..at + 4].copy_from_slice(&from.cells[at + 2..at + 4]);
            }
        }
        if let Some(other) = input.sketch.and_then(|number| from.sketches[number].as_ref()) {
            let own = &mut into.sketches[input.sketch.unwrap_or_default()];
            match own {
                // All sketches of one operator have one configuration, so merging cannot fail.
                Some(own) => drop(own.merge(other)),
                None => *own = Some(other.clone()),
            }
        }
        into.cells[input.at] = a + b;
        if input.values {
            set(into.cells, input.at + 1, float(into.cells, input.at + 1) + float(from.cells, input.at + 1));
            set(into.cells, input.at + 2, float(into.cells, input.at + 2).min(float(from.cells, input.at + 2)));
            set(into.cells, input.at + 3, float(into.cells, input.at + 3).max(float(from.cells, input.at + 3)));
        }
    }
}

/// One window, borrowed.
pub(super) struct Window<'a> {
    pub(super) cells: &'a mut [u64],
    pub(super) sketches: &'a mut [Option<Box<DDSketch>>],
}

/// The number of values (or rows) of `input`.
pub(super) fn count(input: &InputCells, cells: &[u64]) -> u64 {
    cells[input.at]
}

/// What `reading` says of `input`; `None` when too few values came.
pub(super) fn result(input: &InputCells, reading: Reading, cells: &[u64], sketches: &[Option<Box<DDSketch>>]) -> Option<f64> {
    let count = count(input, cells);
    if count == 0 {
        return None;
    }
    let at = input.at;
    match reading {
        Reading::Count => Some(count as f64),
        Reading::Sum => Some(float(cells, at + 1)),
        Reading::Min => Some(float(cells, at + 2)),
        Reading::Max => Some(float(cells, at + 3)),
        Reading::Mean => Some(float(cells, at + 1) / count as f64),
        Reading::Stddev if count < 2 => None,
        Reading::Stddev => input.moments.map(|at| (float(cells, at + 1) / (count - 1) as f64).sqrt()),
        Reading::First => input.ends.map(|at| float(cells, at + 1)),
        Reading::Last => input.ends.map(|at| float(cells, at + 3)),
        Reading::Quantile(q) => input.sketch.and_then(|n| sketches[n].as_ref()).and_then(|s| s.quantile(q).ok().flatten()),
    }
}
