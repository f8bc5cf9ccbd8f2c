//! Sockets and files: one folder and one feature per connector. No connector depends on another, none transforms values.
//!
//! A new connector is one folder here, one line in [`catalogue`] and one live test.

pub mod blackhole;
pub mod catalogue;
#[cfg(feature = "file")]
pub mod file;
#[cfg(feature = "generator")]
pub mod generator;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "mqtt")]
pub mod mqtt;
mod options;
#[cfg(feature = "parquet")]
pub mod parquet;
#[cfg(any(feature = "kafka", feature = "mqtt"))]
mod rows;
#[cfg(any(feature = "kafka", feature = "mqtt", feature = "timescale"))]
mod secret;
pub mod stdout;
mod tally;
#[cfg(feature = "timescale")]
pub mod timescale;
