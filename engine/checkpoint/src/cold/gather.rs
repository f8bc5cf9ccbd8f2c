//! Collects rows out of many blocks into few batches, in bounded memory.

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::error::ArrowError;

/// Rows that have been picked out of batches, and not copied yet.
#[derive(Debug, Default)]
pub(super) struct Gather {
    sources: Vec<RecordBatch>,
    picks: Vec<(usize, usize)>,
}

impl Gather {
    /// Adds a batch to pick from and gives its number until [`Self::take`].
    pub(super) fn source(&mut self, rows: &RecordBatch) -> usize {
        self.sources.push(rows.clone());
        self.sources.len() - 1
    }

    /// Picks a row of a source.
    pub(super) fn pick(&mut self, source: usize, row: usize) {
        self.picks.push((source, row));
    }

    /// Number of sources held.
    pub(super) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// A batch of the rows picked, in this order; sources and picks are gone. None without any.
    ///
    /// # Errors
    /// Arrow's, when it cannot copy rows of this schema.
    pub(super) fn take(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        let picks = std::mem::take(&mut self.picks);
        let sources = std::mem::take(&mut self.sources);
        if picks.is_empty() {
            return Ok(None);
        }
        interleave_record_batch(&sources.iter().collect::<Vec<_>>(), &picks).map(Some)
    }
}
