//! The checkpoint protocol of one partition as a pure state machine: facts in, actions out, no clock and no I/O.
//!
//! A checkpoint at C becomes true when its files lie in the store *and* every sink's durable mark has reached C. Marks may run
//! ahead of C: on replay, rows below a sink's mark are skipped. The log is acknowledged below the oldest checkpoint kept.

use fieldstream_engine_api::Mark;

use crate::CheckpointId;

/// Something that has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A turn's output was released to the sinks; everything below `mark` has been processed.
    TurnDone {
        /// How far the partition is.
        mark: Mark,
    },
    /// It is time for a checkpoint. The runtime's timer says so.
    SnapshotDue,
    /// The log is full: checkpoints are due as long as an older one holds it, also where nothing has come since the newest.
    RoomWanted,
    /// State was copied between two turns.
    SnapshotTaken {
        /// How far the partition was.
        at: Mark,
    },
    /// The files of the snapshot at `at` are durable ([`crate::PartitionStore::write`]).
    SnapshotStored {
        /// Which.
        at: Mark,
    },
    /// A sink has committed rows and mark.
    SinkDurable {
        /// Number of the sink.
        sink: usize,
        /// Its durable mark.
        mark: Mark,
    },
    /// The manifest is durable ([`crate::PartitionStore::commit`]): the checkpoint is true.
    ManifestStored {
        /// Its name.
        id: CheckpointId,
        /// Its position.
        at: Mark,
    },
    /// Files or manifest could not be written. The next [`Fact::SnapshotDue`] tries again from the start.
    StoreFailed,
    /// No more turns will come: finish with a checkpoint at the last one.
    Drain,
}

/// Something to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Copy the state now, between two turns; answer with [`Fact::SnapshotTaken`].
    TakeSnapshot,
    /// Write the files of the snapshot; answer with [`Fact::SnapshotStored`] or [`Fact::StoreFailed`].
    StoreSnapshot {
        /// Which.
        at: Mark,
    },
    /// Write the manifest; answer with [`Fact::ManifestStored`] or [`Fact::StoreFailed`].
    StoreManifest {
        /// Which.
        at: Mark,
    },
    /// Delete all but the newest `keep` checkpoints ([`crate::PartitionStore::prune`]). Failing is harmless.
    Prune {
        /// How many stay.
        keep: usize,
    },
    /// Tell the log that everything below `offset` is no longer needed.
    Acknowledge {
        /// Exclusive.
        offset: u64,
    },
    /// After [`Fact::Drain`]: a checkpoint at the last turn is true and every sink has all rows.
    Drained,
}

/// A snapshot on its way to becoming a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// `TakeSnapshot` was asked for.
    Taking,
    /// Its files are being written.
    Storing(Mark),
    /// Its files are durable; some sink's mark is behind.
    Waiting(Mark),
    /// Its manifest is being written.
    Committing(Mark),
}

/// The protocol state of one partition.
#[derive(Clone, Debug)]
pub struct Progress {
    keep: usize,
    processed: Mark,
    sinks: Vec<Mark>,
    stage: Stage,
    due: bool,
    room_wanted: bool,
    draining: bool,
    drained: bool,
    /// The newest checkpoint is to be made again even at its own position.
    stale: bool,
    /// Kept checkpoints, oldest first.
    kept: Vec<(CheckpointId, Mark)>,
}

/// True when `mark` has reached `at` in both parts.
const fn reached(mark: Mark, at: Mark) -> bool {
    mark.next_offset >= at.next_offset && mark.next_decision >= at.next_decision
}

impl Progress {
    /// A partition that starts from the newest of `kept` (oldest first; none: from the log's beginning at `start`), keeps
    /// `keep` checkpoints (at least one) and has one sink for each of `sinks`, which are the sinks' durable marks. A sink
    /// that keeps no mark starts with the mark of the checkpoint.
    #[must_use]
    pub fn new(start: Mark, sinks: Vec<Mark>, kept: Vec<(CheckpointId, Mark)>, keep: usize) -> Self {
        let processed = kept.last().map_or(start, |(_, at)| *at);
        Self {
            keep: keep.max(1),
            processed,
            sinks,
            stage: Stage::Idle,
            due: false,
            room_wanted: false,
            draining: false,
            drained: false,
            stale: false,
            kept,
        }
    }

    /// Everything below this has been processed.
    #[must_use]
    pub fn processed(&self) -> Mark {
        self.processed
    }

    /// The newest true checkpoint, if nothing has been processed since.
    #[must_use]
    pub fn current(&self) -> Option<CheckpointId> {
        self.kept.last().filter(|(_, at)| *at == self.processed).map(|(id, _)| *id)
    }

    /// Position of the newest true checkpoint.
    #[must_use]
    pub fn newest(&self) -> Option<Mark> {
        self.kept.last().map(|(_, at)| *at)
    }

    /// Position of the oldest checkpoint kept: the log is needed from its offset on. To be acknowledged once at start, since
    /// an earlier acknowledgement may not have got through.
    #[must_use]
    pub fn oldest(&self) -> Option<Mark> {
        self.kept.first().map(|(_, at)| *at)
    }

    /// The lowest durable mark of all sinks: rows below it are settled. Without sinks, what has been processed.
    #[must_use]
    pub fn settled(&self) -> Mark {
        self.sinks.iter().copied().min().unwrap_or(self.processed)
    }

    /// True when a snapshot is somewhere between being taken and being true.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.stage != Stage::Idle
    }

    /// The newest checkpoint was made under another plan: the next one is due even if no turn comes before it.
    pub fn renew(&mut self) {
        self.stale = true;
    }

    /// Takes note of `fact` and says what to do now.
    pub fn on(&mut self, fact: Fact) -> Vec<Action> {
        let mut actions = Vec::new();
        match fact {
            Fact::TurnDone { mark } => self.processed = self.processed.max(mark),
            Fact::SnapshotDue => self.due = true,
            Fact::RoomWanted => (self.due, self.room_wanted) = (true, true),
            Fact::SnapshotTaken { at } => {
                if self.stage == Stage::Taking {
                    self.stage = Stage::Storing(at);
                    actions.push(Action::StoreSnapshot { at });
                }
            }
            Fact::SnapshotStored { at } => {
                if self.stage == Stage::Storing(at) {
                    self.stage = Stage::Waiting(at);
                }
            }
            Fact::SinkDurable { sink, mark } => {
                // Marks never go back: an answer that overtook a newer one changes nothing.
                if let Some(known) = self.sinks.get_mut(sink) {
                    *known = (*known).max(mark);
                }
            }
            Fact::ManifestStored { id, at } => self.keep_checkpoint(id, at, &mut actions),
            Fact::StoreFailed => {
                self.stage = Stage::Idle;
                // No retry from here: only the runtime has a clock to space attempts with.
                self.due = false;
            }
            Fact::Drain => {
                self.draining = true;
                self.due = true;
            }
        }
        self.advance(&mut actions);
        actions
    }

    fn keep_checkpoint(&mut self, id: CheckpointId, at: Mark, actions: &mut Vec<Action>) {
        if self.stage != Stage::Committing(at) {
            return;
        }
        self.stage = Stage::Idle;
        self.stale = false;
        self.due |= self.draining;
        self.kept.push((id, at));
        if self.kept.len() > self.keep {
            self.kept.drain(..self.kept.len() - self.keep);
            actions.push(Action::Prune { keep: self.keep });
        }
        if let Some((_, oldest)) = self.kept.first() {
            actions.push(Action::Acknowledge { offset: oldest.next_offset });
        }
    }

    /// Moves the snapshot on as far as the facts allow.
    fn advance(&mut self, actions: &mut Vec<Action>) {
        if let Stage::Waiting(at) = self.stage
            && self.sinks.iter().all(|mark| reached(*mark, at))
        {
            self.stage = Stage::Committing(at);
            actions.push(Action::StoreManifest { at });
        }
        if self.stage != Stage::Idle {
            return;
        }
        let current = self.newest() == Some(self.processed) && !self.stale;
        if self.due {
            self.due = false;
            let wanted = std::mem::take(&mut self.room_wanted) && !self.draining;
            let holds = wanted && self.oldest().is_some_and(|oldest| oldest.next_offset < self.processed.next_offset);
            if !current || holds {
                self.stage = Stage::Taking;
                actions.push(Action::TakeSnapshot);
                return;
            }
        }
        let settled = self.sinks.iter().all(|mark| reached(*mark, self.processed));
        if self.draining && current && settled && !self.drained {
            self.drained = true;
            actions.push(Action::Drained);
        }
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
