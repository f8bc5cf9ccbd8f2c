//! `fieldstream schema`: the JSON Schema of pipeline files, for editors.

use std::process::ExitCode;

use anyhow::Result;
use fieldstream_pipelines::{Catalogue, schema_text};

use crate::output;

/// Prints the schema with every kind this program was built with.
pub(crate) fn schema() -> Result<ExitCode> {
    output::text(&schema_text(&Catalogue::built_in()))?;
    Ok(ExitCode::SUCCESS)
}
