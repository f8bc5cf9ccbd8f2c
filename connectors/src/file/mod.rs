//! Files as a finite log and as a sink: newline-delimited JSON, CSV and Parquet in, newline-delimited JSON out.

mod blocks;
mod inputs;
mod rows;
mod sidecar;
pub mod sink;
pub mod source;
mod template;
mod writer;
