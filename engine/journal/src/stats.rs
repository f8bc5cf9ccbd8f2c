//! Counters of the journal, for the runtime's metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the fsync histogram's buckets in microseconds; what is above the last falls into one more bucket.
pub const FSYNC_BOUNDS_US: [u64; 10] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000];

/// A reading of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Appends made durable.
    pub appends: u64,
    /// Rows made durable.
    pub rows: u64,
    /// Undecodable payloads made durable.
    pub rejects: u64,
    /// Frames written: group commits.
    pub frames: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes on disk now.
    pub disk_bytes: u64,
    /// Segment files on disk now.
    pub segments: u64,
    /// fsyncs of frames.
    pub fsyncs: u64,
    /// Time spent in them, nanoseconds.
    pub fsync_nanos: u64,
    /// How many took how long: one count per bound of [`FSYNC_BOUNDS_US`], not cumulative, and one for longer ones.
    pub fsync_buckets: [u64; FSYNC_BOUNDS_US.len() + 1],
    /// Damaged stretches of the log that had been acknowledged: should be 0 for ever.
    pub lost: u64,
    /// Appends refused because the journal or the disk was full.
    pub refused: u64,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) appends: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) rejects: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) fsyncs: AtomicU64,
    fsync_nanos: AtomicU64,
    fsync_buckets: [AtomicU64; FSYNC_BOUNDS_US.len() + 1],
    pub(crate) lost: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Counters {
    pub(crate) fn fsync(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = FSYNC_BOUNDS_US.partition_point(|bound| bound * 1000 < nanos);
        self.fsyncs.fetch_add(1, Relaxed);
        self.fsync_nanos.fetch_add(nanos, Relaxed);
        if let Some(count) = self.fsync_buckets.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn read(&self) -> JournalStats {
        JournalStats {
            appends: self.appends.load(Relaxed),
            rows: self.rows.load(Relaxed),
            rejects: self.rejects.load(Relaxed),
            frames: self.frames.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            disk_bytes: 0,
            segments: 0,
            fsyncs: self.fsyncs.load(Relaxed),
            fsync_nanos: self.fsync_nanos.load(Relaxed),
            fsync_buckets: std::array::from_fn(|i| self.fsync_buckets.get(i).map_or(0, |b| b.load(Relaxed))),
            lost: self.lost.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}
