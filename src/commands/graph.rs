//! `fieldstream graph`: a pipeline as a picture.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::cli::VariableArgs;
use crate::output;
use crate::plans::plan;

/// Arguments of `graph`.
#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    /// Pipeline file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    variables: VariableArgs,
    /// What to draw for.
    #[arg(long, value_enum, default_value_t = Format::Dot)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Graphviz: `fieldstream graph FILE | dot -Tsvg > pipeline.svg`.
    Dot,
    /// Mermaid, for Markdown pages.
    Mermaid,
    /// Nodes and edges as data.
    Json,
}

/// Draws the file's plan; no variable or secret needs to be there.
pub(crate) fn graph(args: &GraphArgs) -> Result<ExitCode> {
    let graph = fieldstream_pipelines::graph(&plan(&args.file, &args.variables.environment(true))?);
    match args.format {
        Format::Dot => output::text(&graph.dot())?,
        Format::Mermaid => output::text(&graph.mermaid())?,
        Format::Json => output::json_pretty(&graph)?,
    }
    Ok(ExitCode::SUCCESS)
}
