//! The embedded log: one write-ahead log for all receivers and partitions of a node.
//!
//! Each group commit is one frame and one fsync; a producer is acknowledged after it. Frames lie in segment files,
//! which are deleted when every registered pipeline has acknowledged everything in them, and never before: a full journal
//! refuses, it does not forget. [`JournalLog`] reads it as an ordinary [`fieldstream_engine_api::Log`]. This room reads no
//! wall clock. See `docs/adr/0006-journal-storage.md`.

pub mod error;
pub(crate) mod frame;
pub mod fsck;
pub(crate) mod holds;
pub(crate) mod identity;
pub mod journal;
pub mod log;
pub(crate) mod read;
pub(crate) mod recovery;
pub(crate) mod scan;
pub(crate) mod segment;
pub(crate) mod shared;
pub(crate) mod stage;
pub mod stats;
pub(crate) mod tables;
pub(crate) mod writer;

pub use error::JournalError;
pub use fieldstream_engine_api::partition_of;
pub use journal::{Journal, JournalOptions};
pub use log::JournalLog;
pub use stats::{FSYNC_BOUNDS_US, JournalStats};

#[cfg(test)]
mod tests;
