//! Order and failure: shards host partitions, partitions host device actors and run the graph, sinks get rows and marks.

mod admission;
mod assign;
mod changes;
mod checkpointing;
pub mod clock;
mod dead_letters;
pub mod decisions;
pub mod digest;
pub mod durations;
pub mod engine;
pub mod error;
pub mod event;
mod gap;
mod giving_up;
pub mod graph;
mod ingest;
pub mod ingress;
pub mod input;
pub mod ledger;
pub mod losses;
mod memory;
pub mod metrics;
mod origins;
pub mod partition;
pub mod passivation;
pub mod pipeline;
pub mod queue;
pub mod reload;
pub mod savepoint;
pub mod shape;
pub mod shard;
pub mod sink_task;
pub mod snapshot;
pub mod spec;
pub mod status;
pub mod supervisor;
pub mod time;

#[cfg(test)]
mod delivery_tests;
