//! Rows to wire formats: JSON, CloudEvents and Arrow IPC.

pub mod cloudevents;
pub mod ipc;
pub mod json;
mod reading;
pub(crate) mod value;

pub use cloudevents::{CloudEvent, EventWriter};
pub use json::JsonWriter;

#[cfg(test)]
mod tests;
