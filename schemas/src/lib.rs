//! What data looks like: the columns of a reading, wire formats turned into rows and rejects, and the records that leave.
//!
//! This room does no I/O, knows no operator and never panics on any payload.

pub mod columns;
pub mod decode;
pub mod encode;
mod json_schema;
pub mod origin;
pub mod payload;
pub mod position;
pub mod quality;
pub mod records;
mod size;
pub mod time;

pub use columns::{Readings, readings_schema};
pub use json_schema::json_schemas;
pub use payload::{Decoded, PayloadBlock, PayloadEntry, Reject};
pub use position::Position;
pub use quality::{Quality, QualityScale};
pub use size::Size;
