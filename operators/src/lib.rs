//! What happens to rows: one file per operator, synchronous, clock-free, without I/O.
//!
//! A new operator is one file here, one line in [`catalogue`], its laws and one golden case.

pub mod batch;
pub mod catalogue;
pub mod deadband;
pub mod dedupe;
pub mod detect;
pub mod expr;
mod expr_functions;
pub mod filter;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod layout_tests;
pub mod map;
pub mod options;
pub mod predict;
pub mod route;
mod state;
pub mod units;
pub mod validate;
pub mod window;
