//! The columnar mailbox: a record batch whose rows are addressed to device actors.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::error::ArrowError;
use fieldstream_schemas::Position;

/// Slot of a row that has no series (rows keyed by device).
pub const NO_SLOT: u32 = u32::MAX;

/// For each row: whose it is, and where in the partition it came from. The three columns have equal length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys {
    /// Device slot.
    pub device: Vec<u32>,
    /// Series slot, or [`NO_SLOT`].
    pub series: Vec<u32>,
    /// Position of the row, or of the row or tick that emitted it. Not strictly ascending after a window.
    pub position: Vec<Position>,
}

impl Keys {
    /// Empty keys with room for `rows`.
    #[must_use]
    pub fn with_capacity(rows: usize) -> Self {
        Self { device: Vec::with_capacity(rows), series: Vec::with_capacity(rows), position: Vec::with_capacity(rows) }
    }

    /// Appends one row's keys.
    pub fn push(&mut self, device: u32, series: u32, position: Position) {
        self.device.push(device);
        self.series.push(series);
        self.position.push(position);
    }

    /// Appends the keys of row `row` of `other`.
    pub fn push_from(&mut self, other: &Self, row: usize) {
        self.push(other.device[row], other.series[row], other.position[row]);
    }

    /// Appends the keys of a range of rows of `other`.
    pub fn extend_from(&mut self, other: &Self, rows: Range<usize>) {
        self.device.extend_from_slice(&other.device[rows.clone()]);
        self.series.extend_from_slice(&other.series[rows.clone()]);
        self.position.extend_from_slice(&other.position[rows]);
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.device.len()
    }

    /// True when there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.device.is_empty()
    }

    /// The keys of the rows whose numbers are given.
    #[must_use]
    pub fn take(&self, rows: impl Iterator<Item = usize> + Clone) -> Self {
        Self {
            device: rows.clone().map(|r| self.device[r]).collect(),
            series: rows.clone().map(|r| self.series[r]).collect(),
            position: rows.map(|r| self.position[r]).collect(),
        }
    }
}

/// Rows of one partition with their slots and positions. Cloning is a few reference counts.
#[derive(Clone, Debug)]
pub struct KeyedBatch {
    /// The columns.
    pub rows: RecordBatch,
    /// One entry per row.
    pub keys: Arc<Keys>,
}

impl KeyedBatch {
    /// Joins rows and keys.
    ///
    /// # Panics
    /// If the lengths differ, which is a defect of the caller.
    #[must_use]
    pub fn new(rows: RecordBatch, keys: Keys) -> Self {
        assert_eq!(rows.num_rows(), keys.len(), "one key per row");
        Self { rows, keys: Arc::new(keys) }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True when there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The rows where `mask` is true (null counts as false); the batch itself, uncopied, when that is all of them.
    ///
    /// # Errors
    /// If the mask's length differs from the batch's.
    pub fn filter(&self, mask: &BooleanArray) -> Result<Self, ArrowError> {
        if mask.true_count() == self.len() && mask.len() == self.len() {
            return Ok(self.clone());
        }
        let rows = filter_record_batch(&self.rows, mask)?;
        let mut keys = Keys::with_capacity(rows.num_rows());
        let selected = mask.nulls().map_or_else(|| mask.values().clone(), |nulls| mask.values() & nulls.inner());
        // Few rows fail, so whole stretches are copied.
        selected.set_slices().for_each(|(start, end)| keys.extend_from(&self.keys, start..end));
        Ok(Self::new(rows, keys))
    }

    /// The rows whose numbers are given, in that order.
    ///
    /// # Errors
    /// If a number lies outside the batch.
    pub fn take(&self, rows: &[u32]) -> Result<Self, ArrowError> {
        let taken = take_record_batch(&self.rows, &UInt32Array::from(rows.to_vec()))?;
        Ok(Self::new(taken, self.keys.take(rows.iter().map(|r| *r as usize))))
    }

    /// `len` rows from `offset`.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let mut keys = Keys::with_capacity(len);
        keys.extend_from(&self.keys, offset..offset + len);
        Self::new(self.rows.slice(offset, len), keys)
    }

    /// The same keys with other columns.
    #[must_use]
    pub fn with_rows(&self, rows: RecordBatch) -> Self {
        assert_eq!(rows.num_rows(), self.keys.len(), "one key per row");
        Self { rows, keys: Arc::clone(&self.keys) }
    }
}
