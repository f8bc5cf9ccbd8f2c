//! What shards, sinks and store tasks tell the pipeline's coordinator.

use std::sync::Arc;

use fieldstream_checkpoint::{CheckpointData, CheckpointId, Layer, PendingCheckpoint, StoreError};
use fieldstream_engine_api::{Committed, Generation, Mark, Position, SinkError};
use tokio::sync::oneshot;

use crate::graph::NodeMeter;
use crate::ledger::Totals;
use crate::passivation::ColdError;
use crate::savepoint::Saved;

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// Something about a partition. What an earlier incarnation of it still had to say is ignored.
    Partition {
        /// Partition number.
        partition: u32,
        /// The incarnation.
        generation: Generation,
        /// What happened.
        what: PartitionEvent,
    },
    /// A sink has committed.
    Durable {
        /// Number of the sink.
        sink: usize,
        /// What of each partition.
        shares: Vec<DurableShare>,
    },
    /// A sink has learned that a partition has a newer owner, and has dropped what it had of it.
    Fenced {
        /// Name of the sink.
        sink: Arc<str>,
        /// Partition number.
        partition: u32,
        /// The incarnation that is over.
        generation: Generation,
        /// What the sink said.
        error: SinkError,
    },
    /// A sink has given up.
    SinkFailed {
        /// Name of the sink.
        sink: Arc<str>,
        /// Why.
        error: SinkError,
    },
    /// All receivers have ended and everything they received is in the journal.
    ReceiversDone {
        /// Where the journal ended then: (partition, first offset after the end).
        ends: Vec<(u32, u64)>,
    },
    /// Somebody wants a savepoint.
    Savepoint {
        /// Its label.
        label: Arc<str>,
        /// Gets what came of it.
        reply: oneshot::Sender<Saved>,
    },
    /// A receiver has given up.
    ReceiverFailed {
        /// Name of the source.
        source: Arc<str>,
        /// Why.
        error: String,
    },
}

/// One thing that happened to a partition.
#[derive(Debug)]
pub enum PartitionEvent {
    /// A turn is over and its output released.
    Turn {
        /// How far it is.
        complete_to: Mark,
        /// Its account up to there.
        totals: Totals,
        /// What its operators have done since it was hosted.
        meters: Vec<NodeMeter>,
        /// Device actors in memory.
        active_devices: usize,
        /// Device actors whose state lies on disk.
        passivated_devices: u64,
        /// Newest event time in the turn's input, microseconds since the epoch.
        event_us: Option<i64>,
    },
    /// A turn panicked; the partition takes no more turns until it is restored.
    Panicked {
        /// The operator, if one was running.
        node: String,
        /// The panic's message.
        message: String,
        /// The row, where rows are stepped one by one.
        position: Option<Position>,
        /// First offset after what the turn was to handle.
        reached: u64,
    },
    /// The state of passivated devices cannot be read.
    Failed {
        /// Why.
        error: ColdError,
    },
    /// State was copied.
    Snapshot {
        /// The copy.
        data: Box<CheckpointData>,
        /// Bytes of keyed state in memory.
        state_bytes: usize,
    },
    /// The files of a snapshot are durable, or not.
    Stored(Result<PendingCheckpoint, StoreError>),
    /// A manifest is durable, or not.
    Committed {
        /// Position of the checkpoint.
        at: Mark,
        /// Its name and layers, or what went wrong.
        result: Result<(CheckpointId, Vec<Layer>), StoreError>,
    },
}

/// A partition's share of a sink's commit.
#[derive(Debug)]
pub struct DurableShare {
    /// The incarnation that opened the sink.
    pub generation: Generation,
    /// What is durable.
    pub committed: Committed,
    /// Rows in it, and rows of a replay that were durable already.
    pub accounted: u64,
}
