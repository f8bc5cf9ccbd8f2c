//! Why a pipeline stopped before its end.

use std::sync::Arc;
use std::time::Duration;

use fieldstream_checkpoint::StoreError;
use fieldstream_engine_api::{LogError, LogId, SinkError};
use fieldstream_journal::JournalError;

use crate::passivation::ColdError;
use crate::snapshot::RestoreError;

/// Why a pipeline stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The log cannot go on.
    #[error("source: {0}")]
    Log(#[from] LogError),
    /// The journal cannot be used.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// A sink cannot go on.
    #[error("sink {sink}: {error}")]
    Sink {
        /// Name of the sink.
        sink: Arc<str>,
        /// Why.
        error: SinkError,
    },
    /// A receiver cannot go on.
    #[error("source {source_name}: {error}")]
    Receiver {
        /// Name of the source.
        source_name: Arc<str>,
        /// Why.
        error: String,
    },
    /// The checkpoint store cannot go on.
    #[error("checkpoints: {0}")]
    Store(#[from] StoreError),
    /// A checkpoint does not fit.
    #[error("partition {partition}: {error}")]
    Restore {
        /// Partition number.
        partition: u32,
        /// Why.
        error: RestoreError,
    },
    /// State of passivated devices cannot be read.
    #[error("partition {partition}: {error}")]
    Cold {
        /// Partition number.
        partition: u32,
        /// Why.
        error: ColdError,
    },
    /// Positions that cannot be right together.
    #[error("partition {partition}: {what}")]
    Position {
        /// Partition number.
        partition: u32,
        /// What does not fit, and what to do.
        what: String,
    },
    /// A reload led to another log.
    #[error(
        "partition {partition} is of the log {found}, which the pipeline did not read before: state and marks belong to a log. Run what reads another log under another pipeline name"
    )]
    OtherLog {
        /// Partition number.
        partition: u32,
        /// Identity of the log.
        found: LogId,
    },
    /// The parts of a plan could not be made.
    #[error("{0}")]
    Parts(String),
    /// The pipeline did not do as it was told in time, and was let go of.
    #[error("{0}; what is not durable yet will be replayed")]
    GivenUp(String),
    /// An operator could not be built; the planner has built it before, so this is a defect.
    #[error("operators: {0}")]
    Build(String),
    /// A panic that no row can be blamed for came again.
    #[error("operator {node} panicked on partition {partition} outside of any row, and did again after a restore: {message}")]
    Panic {
        /// Partition number.
        partition: u32,
        /// The operator.
        node: String,
        /// The panic's message.
        message: String,
    },
    /// The drain took longer than allowed; nothing is lost, the next start replays.
    #[error("draining took longer than {0:?}; what is not durable yet will be replayed at the next start")]
    DrainDeadline(Duration),
    /// A part of the runtime is gone.
    #[error("{0} has ended unexpectedly")]
    Gone(&'static str),
}
