//! YAML to plan to running pipeline: names, checks and wiring, no algorithms.
//!
//! The way of a file: [`mod@document`] (text to a tree with places, references resolved), [`mod@nodes`] (sections to typed
//! configuration), [`mod@plan`] (names to ports, every edge's schema, all errors at once), [`mod@build`] (constructors).

pub mod build;
pub mod change;
pub mod code;
pub mod config;
pub mod digest;
pub mod document;
pub mod explain;
pub mod graph;
pub mod lint;
pub mod load;
pub mod nodes;
pub mod plan;
mod planned;
pub mod problem;
pub mod schema;
pub mod substitute;
pub mod testing;
mod wiring;
pub mod yaml;

pub use build::{BuildOptions, build};
pub use change::{Change, change};
pub use code::Code;
pub use digest::{digest, receivers};
pub use explain::{Explanation, explain};
pub use graph::{Graph, graph};
pub use lint::{Report, lint};
pub use load::{Loaded, load, load_text};
pub use nodes::Catalogue;
pub use plan::Plan;
pub use problem::{Problem, Problems, Severity};
pub use schema::{schema, schema_text};
pub use substitute::Environment;
pub use testing::{FileTests, test};
