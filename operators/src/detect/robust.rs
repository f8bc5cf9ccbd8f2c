//! `robust`: distance from the median of the last values, in scaled median absolute deviations (Hampel, JASA 69, 1974).
//!
//! Wrong values are not kept, so one outlier does not spoil the scale; after half a window of them in a row they are taken for
//! a new level, the window is emptied and learned again: one alarm, not many.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Float64Type, UInt32Type};
use fieldstream_engine_api::{ConfigError, ConfigErrors, KeyedState, Space, StateError, prefetch};
use schemars::JsonSchema;
use serde::Deserialize;

use super::verdict::{Level, Method, Verdict, chebyshev};
use crate::state::{numbers, slot_batch};

/// Options of `robust`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RobustOptions {
    /// Column or SQL expression judged; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Values kept, 5 to 255; judging begins when the window is full. Each takes eight bytes a series.
    #[serde(default = "default_window")]
    pub window: usize,
    /// Wrong when further from the median than so many deviations.
    #[serde(default = "default_k")]
    pub k: f64,
    /// Deviations below this count as this, so that a quiet sensor does not alarm at its first step.
    #[serde(default = "default_min_spread")]
    pub min_spread: f64,
}

fn default_window() -> usize {
    31
}

fn default_k() -> f64 {
    5.0
}

fn default_min_spread() -> f64 {
    1e-6
}

/// Makes the median absolute deviation of a normal distribution its standard deviation.
const MAD_SCALE: f64 = 1.4826;

/// Fill, place of the next value, and wrong values in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Head {
    count: u32,
    next: u32,
    bad: u32,
}

/// The last values by slot.
#[derive(Debug)]
struct Rings {
    space: Space,
    size: usize,
    heads: Vec<Head>,
    values: Vec<f64>,
}

/// The method.
#[derive(Debug)]
pub(super) struct Robust {
    k: f64,
    min_spread: f64,
    rings: Rings,
    scratch: Vec<f64>,
}

impl Robust {
    pub(super) fn new(options: &RobustOptions, space: Space) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        if !(5..=255).contains(&options.window) {
            errors.push(ConfigError::new("/window", "must lie between 5 and 255"));
        }
        if !(options.k > 0.0 && options.k.is_finite()) {
            errors.push(ConfigError::new("/k", "must be more than 0"));
        }
        if !(options.min_spread > 0.0 && options.min_spread.is_finite()) {
            errors.push(ConfigError::new("/min_spread", "must be more than 0"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let rings = Rings { space, size: options.window, heads: Vec::new(), values: Vec::new() };
        Ok(Self { k: options.k, min_spread: options.min_spread, rings, scratch: vec![0.0; options.window] })
    }
}

/// The median: the middle value, the upper one of two.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

impl Method for Robust {
    const NAME: &'static str = "robust";

    fn judge(&mut self, slot: u32, _ts: i64, value: f64) -> Option<Verdict> {
        self.rings.grow_to(slot as usize + 1);
        let size = self.rings.size;
        let head = &mut self.rings.heads[slot as usize];
        let ring = &mut self.rings.values[slot as usize * size..(slot as usize + 1) * size];
        if head.count as usize == size {
            self.scratch.copy_from_slice(ring);
            let expected = median(&mut self.scratch);
            self.scratch.iter_mut().for_each(|v| *v = (*v - expected).abs());
            let spread = (MAD_SCALE * median(&mut self.scratch)).max(self.min_spread);
            let deviation = (value - expected) / spread;
            if deviation.abs() > self.k {
                head.bad += 1;
                let shifted = head.bad as usize > size / 2;
                if shifted {
                    *head = Head::default();
                }
                let level = if shifted { Level::Shifted } else { Level::Bad };
                let limit = expected + self.k.copysign(deviation) * spread;
                return Some(Verdict { level, limit, expected, spread, deviation, confidence: chebyshev(deviation) });
            }
        }
        ring[head.next as usize] = value;
        *head = Head { count: (head.count + 1).min(size as u32), next: (head.next + 1) % size as u32, bad: 0 };
        None
    }

    fn prefetch(&self, slot: u32) {
        prefetch(&self.rings.heads, slot as usize);
        prefetch(&self.rings.values, slot as usize * self.rings.size);
    }

    fn state(&mut self) -> Option<&mut dyn KeyedState> {
        Some(&mut self.rings)
    }
}

impl KeyedState for Rings {
    fn space(&self) -> Space {
        self.space
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        if slots > self.heads.len() {
            self.heads.resize(slots, Head::default());
            self.values.resize(slots * self.size, 0.0);
        }
    }

    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let used = |slot: &u32| self.heads.get(*slot as usize).is_some_and(|head| *head != Head::default());
        let slots: Vec<u32> = slots.iter().copied().filter(used).collect();
        let heads: Vec<Head> = slots.iter().map(|slot| self.heads[*slot as usize]).collect();
        let column = |of: fn(&Head) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(heads.iter().map(of))) };
        let values = slots.iter().flat_map(|slot| &self.values[*slot as usize * self.size..(*slot as usize + 1) * self.size]);
        let values = Arc::new(Float64Array::from_iter_values(values.copied()));
        let item = Arc::new(Field::new("item", DataType::Float64, false));
        let lists = FixedSizeListArray::try_new(item, self.size as i32, values, None);
        let lists = lists.unwrap_or_else(|_| unreachable!("each slot gives a window of values"));
        slot_batch(
            slots,
            vec![("count", column(|h| h.count)), ("next", column(|h| h.next)), ("bad", column(|h| h.bad)), ("values", Arc::new(lists))],
        )
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let number = |name| numbers::<UInt32Type>(rows, name);
        let (slots, count, next, bad) = (number("slot")?, number("count")?, number("next")?, number("bad")?);
        let wrong = || StateError::Columns(format!("`values` must hold windows of {}", self.size));
        let lists = rows.column_by_name("values").and_then(|c| c.as_fixed_size_list_opt()).ok_or_else(wrong)?;
        let values = lists.values().as_primitive_opt::<Float64Type>().ok_or_else(wrong)?;
        if lists.value_length() as usize != self.size || lists.offset() != 0 {
            return Err(wrong());
        }
        let size = self.size;
        for (row, slot) in slots.iter().enumerate() {
            let slot = *slot as usize;
            if count[row] as usize > size || next[row] as usize >= size {
                return Err(StateError::Columns(format!("slot {slot} holds more than {size} values")));
            }
            self.grow_to(slot + 1);
            self.heads[slot] = Head { count: count[row], next: next[row], bad: bad[row] };
            self.values[slot * size..(slot + 1) * size].copy_from_slice(&values.values()[row * size..(row + 1) * size]);
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        for slot in slots {
            if let Some(head) = self.heads.get_mut(*slot as usize) {
                *head = Head::default();
            }
        }
    }

    fn bytes(&self) -> usize {
        self.heads.capacity() * size_of::<Head>() + self.values.capacity() * 8
    }
}
