//! Files as a finite log and as a sink: newline-delimited JSON, CSV and Parquet in, newline-delimited JSON out.

mod blocks;
mod inputs;
pub mod source;
