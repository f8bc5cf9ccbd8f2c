//! What a trend keeps of its lookback: the mean of each of a few equal stretches of event time, sixteen bytes a stretch.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Float32Type, Float64Type, Int64Type, UInt32Type};
use fieldstream_engine_api::{KeyedState, Space, StateError};

use crate::state::{numbers, slot_batch};

/// One stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bucket {
    /// Mean of the values.
    pub(super) mean: f64,
    /// Mean time of the values inside the stretch, 0 to 1.
    pub(super) at: f32,
    /// Number of values.
    pub(super) count: u32,
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Head {
    /// Number of the newest stretch since the epoch; meaningless while `last` is `i64::MIN`.
    pub(super) newest: i64,
    /// Highest event time.
    pub(super) last: i64,
}

const BLANK: Head = Head { newest: 0, last: i64::MIN };

/// Stretches by slot. Stretch number `n` lies at place `n mod count`.
#[derive(Debug)]
pub(super) struct Buckets {
    space: Space,
    count: usize,
    /// Length of them all, as written.
    lookback: String,
    heads: Vec<Head>,
    buckets: Vec<Bucket>,
}

impl Buckets {
    pub(super) fn new(space: Space, count: usize, lookback: Duration) -> Self {
        Self { space, count, lookback: format!("{lookback:?}"), heads: Vec::new(), buckets: Vec::new() }
    }

    /// Head and stretches of a slot.
    #[inline]
    pub(super) fn slot(&mut self, slot: u32) -> (&mut Head, &mut [Bucket]) {
        let slot = slot as usize;
        if slot >= self.heads.len() {
            self.grow_to(slot + 1);
        }
        (&mut self.heads[slot], &mut self.buckets[slot * self.count..(slot + 1) * self.count])
    }

    fn known(&self, slots: &[u32]) -> Vec<u32> {
        slots.iter().copied().filter(|slot| self.heads.get(*slot as usize).is_some_and(|head| *head != BLANK)).collect()
    }
}

impl KeyedState for Buckets {
    fn space(&self) -> Space {
        self.space
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        if slots > self.heads.len() {
            self.heads.resize(slots, BLANK);
            self.buckets.resize(slots * self.count, Bucket::default());
        }
    }

    /// One row per stretch.
    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let slots = self.known(slots);
        let rows: Vec<(u32, usize)> = slots.iter().flat_map(|slot| (0..self.count).map(move |place| (*slot, place))).collect();
        let head = |of: fn(&Head) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|(slot, _)| of(&self.heads[*slot as usize]))))
        };
        let bucket = |(slot, place): &(u32, usize)| self.buckets[*slot as usize * self.count + place];
        let columns: Vec<(&'static str, ArrayRef)> = vec![
            ("newest", head(|h| h.newest)),
            ("last", head(|h| h.last)),
            ("place", Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.1 as u32)))),
            ("mean", Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| bucket(r).mean)))),
            ("at", Arc::new(Float32Array::from_iter_values(rows.iter().map(|r| bucket(r).at)))),
            ("count", Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| bucket(r).count)))),
        ];
        let mut batch = slot_batch(rows.iter().map(|r| r.0).collect(), columns);
        // Places are stretches of the lookback: of another one, or cut otherwise, they mean other times.
        let lookback = format!("{} in {}", self.lookback, self.count);
        batch.schema_metadata_mut().insert("lookback".to_owned(), lookback);
        batch
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let (slots, place) = (numbers::<UInt32Type>(rows, "slot")?, numbers::<UInt32Type>(rows, "place")?);
        let (newest, last) = (numbers::<Int64Type>(rows, "newest")?, numbers::<Int64Type>(rows, "last")?);
        let (mean, at) = (numbers::<Float64Type>(rows, "mean")?, numbers::<Float32Type>(rows, "at")?);
        let count = numbers::<UInt32Type>(rows, "count")?;
        let most = self.count;
        for row in 0..rows.num_rows() {
            let (head, buckets) = self.slot(slots[row]);
            *head = Head { newest: newest[row], last: last[row] };
            let wrong = || StateError::Columns(format!("place {} of {most}", place[row]));
            *buckets.get_mut(place[row] as usize).ok_or_else(wrong)? = Bucket { mean: mean[row], at: at[row], count: count[row] };
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        for slot in self.known(slots) {
            let (head, buckets) = self.slot(slot);
            *head = BLANK;
            buckets.fill(Bucket::default());
        }
    }

    fn bytes(&self) -> usize {
        self.heads.capacity() * size_of::<Head>() + self.buckets.capacity() * size_of::<Bucket>()
    }
}
