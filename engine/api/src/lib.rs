//! The contracts of the engine: what an operator, a log, a receiver and a sink are, and the words they share.
//!
//! This room names no async runtime, no client library and no configuration format; see `docs/ARCHITECTURE.md`.

pub mod batch;
pub mod catalogue;
pub mod config;
pub mod emitter;
pub mod identity;
pub mod log;
pub mod operator;
pub mod partitioner;
mod prefetch;
pub mod shared;
mod shortage;
pub mod sink;
pub mod slots;

pub use batch::{KeyedBatch, Keys, NO_SLOT};
pub use catalogue::{
    Built, BuiltJournal, BuiltLog, ConnectContext, JournalKind, OperatorKind, SinkInput, SinkKind, SourceBuild, SourceKind,
};
pub use config::{ConfigError, ConfigErrors};
pub use emitter::{Emitter, NodeCounts, Rejected};
pub use fieldstream_schemas::Position;
pub use identity::{Generation, LogId, Mark, PartitionKey};
pub use log::{Append, AppendError, Assignment, Log, LogBatch, LogError, LogEvent, Payloads, ReceiveError, Received, Receiver};
pub use operator::{BuildContext, Edge, KeyedState, Operator, Output, Space, StateError, Tick, TickTime, WindowTime};
pub use partitioner::partition_of;
pub use prefetch::{AHEAD, prefetch};
pub use shared::Shared;
pub use shortage::is_shortage;
pub use sink::{Committed, Guarantee, Sink, SinkBatch, SinkError, SinkRows, Sinks};
pub use slots::SlotDirectory;
