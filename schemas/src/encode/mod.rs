//! Rows to wire formats: JSON, CloudEvents, CSV and Arrow IPC.

pub mod cloudevents;
pub mod csv;
pub mod ipc;
pub mod json;
mod reading;
pub(crate) mod value;

pub use cloudevents::{CloudEvent, EventWriter};
pub use csv::CsvWriter;
pub use json::JsonWriter;

#[cfg(test)]
mod tests;
