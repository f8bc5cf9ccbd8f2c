//! What the writer thread and the readers share: which segments there are, how far they are durable, and who needs them.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;

use crate::JournalError;
use crate::holds::Holds;
use crate::identity::Identity;
use crate::segment::Segment;
use crate::stats::Counters;

/// One per open journal.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) folder: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) budget: u64,
    index: Mutex<Index>,
    /// Frames made durable since the journal was opened.
    pub(crate) committed: watch::Sender<u64>,
    /// True from a refusal until there is room again.
    pub(crate) full: watch::Sender<bool>,
    pub(crate) counters: Counters,
    failed: OnceLock<String>,
    /// Damage that was counted: (segment, place).
    lost: Mutex<BTreeSet<(u64, u64)>>,
}

/// The journal's contents at one moment.
#[derive(Debug)]
pub(crate) struct Index {
    /// Ascending, without the deleted ones; never empty. The last one is being written.
    pub(crate) segments: VecDeque<Arc<Segment>>,
    /// First offset after the end, by partition.
    pub(crate) next: Vec<u64>,
    pub(crate) holds: Holds,
}

impl Index {
    /// Lowest offset of a partition that can still be read.
    pub(crate) fn first_offset(&self, partition: u32) -> u64 {
        let first = self.segments.front().and_then(|s| s.head.first.get(partition as usize));
        first.copied().unwrap_or_default()
    }

    /// First offset of a partition that does not exist yet.
    pub(crate) fn next_offset(&self, partition: u32) -> u64 {
        self.next.get(partition as usize).copied().unwrap_or_default()
    }

    /// The segment that holds, or would hold, `offset`.
    pub(crate) fn segment_of(&self, partition: u32, offset: u64) -> Option<&Arc<Segment>> {
        let first = |s: &Arc<Segment>| s.head.first.get(partition as usize).copied().unwrap_or_default();
        let after = self.segments.partition_point(|s| first(s) <= offset);
        self.segments.get(after.saturating_sub(1))
    }

    /// The first segment with a number from `number` on, and whether it is still written.
    pub(crate) fn segment_from(&self, number: u64) -> Option<(&Arc<Segment>, bool)> {
        let at = self.segments.partition_point(|s| s.head.number < number);
        self.segments.get(at).map(|s| (s, at + 1 == self.segments.len()))
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.len.load(Acquire)).sum()
    }

    /// How many of the oldest segments nobody needs.
    pub(crate) fn deletable(&self) -> usize {
        let ends = self.segments.iter().skip(1).map(|following| &following.head.first);
        ends.take_while(|end| self.holds.released(end)).count()
    }

    /// True when nobody needs anything, the segment being written included.
    pub(crate) fn all_released(&self) -> bool {
        self.holds.released(&self.next)
    }
}

impl Shared {
    pub(crate) fn new(folder: PathBuf, identity: Identity, budget: u64, index: Index) -> Self {
        Self {
            folder,
            identity,
            budget,
            index: Mutex::new(index),
            committed: watch::Sender::new(0),
            full: watch::Sender::new(false),
            counters: Counters::default(),
            failed: OnceLock::new(),
            lost: Mutex::default(),
        }
    }

    /// The index. Held for moments, and while the holds are saved, so that saves keep their order; never across an await.
    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts damage once and says it loudly.
    pub(crate) fn lose(&self, segment: u64, at: u64, why: &str) {
        let new = self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert((segment, at));
        if new {
            self.counters.lost.fetch_add(1, Relaxed);
            tracing::error!(folder = %self.folder.display(), segment, at, why, "the journal is damaged: acknowledged readings are lost");
        }
    }

    /// Makes the journal refuse everything from now on.
    pub(crate) fn fail(&self, what: &str) {
        if self.failed.set(what.to_owned()).is_ok() {
            tracing::error!(folder = %self.folder.display(), what, "the journal failed");
        }
        // Those who wait for room must learn it.
        self.full.send_replace(false);
    }

    /// # Errors
    /// [`JournalError::Failed`] once the disk has failed.
    pub(crate) fn check(&self) -> Result<(), JournalError> {
        self.failed.get().map_or(Ok(()), |what| Err(JournalError::Failed(what.clone())))
    }
}
