//! Test rig for operators: rows in and tables out as text, and the laws that every operator obeys.
//!
//! ```
//! use fieldstream_testkit::text::readings;
//! let rows = readings("device sensor ts value\n a t 0 1.5\n b t 1 NaN");
//! assert_eq!(rows.num_rows(), 2);
//! ```

pub mod generate;
pub mod laws;
pub mod rig;
#[cfg(test)]
mod tests;
pub mod text;

pub use laws::{Laws, laws};
pub use rig::{Parked, Rig, Turn, context, readings_edge};
