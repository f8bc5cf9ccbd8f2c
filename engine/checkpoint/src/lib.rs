//! Checkpoints: saved state and position of a partition, and the protocol that makes them true.
//!
//! [`progress`] is the pure protocol. [`store`] keeps claims, checkpoints and decisions in an object store, in which nothing
//! is ever overwritten: every key is created once, and the key that is created last makes the others true. [`cold`] keeps
//! devices that are not in memory on the local disk, in files that a checkpoint can name. This room reads no clock and knows
//! no operator, no connector and no actor. See `docs/adr/0004-delivery-by-marks.md`.

mod checkpoints;
pub mod cold;
mod cold_files;
pub mod decisions;
pub mod error;
pub mod export;
pub mod fsck;
pub mod layers;
pub mod list;
mod location;
pub(crate) mod objects;
pub mod progress;
mod prune;
pub mod savepoints;
pub mod snapshot;
pub mod store;
pub mod tables;

pub use checkpoints::Restored;
pub use decisions::{Decision, Lineage};
pub use error::StoreError;
pub use location::Location;
pub use progress::{Action, Fact, Progress};
pub use snapshot::{Checkpoint, CheckpointData, CheckpointId, Layer, PendingCheckpoint, StateTable, Table};
pub use store::{CheckpointStore, Claim, PartitionStore};
