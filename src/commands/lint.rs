//! `fieldstream lint`: everything wrong with pipeline files, at its place.

use std::process::ExitCode;

use anyhow::Result;
use fieldstream_pipelines::{Problems, Severity, load};

use crate::cli::LintArgs;
use crate::exit::BadPipeline;

/// Checks the files; nothing outside the process is touched, and no variable or secret needs to be there.
#[allow(clippy::print_stdout)] // the findings are this command's output
pub(crate) fn lint(args: &LintArgs) -> Result<ExitCode> {
    let environment = args.variables.environment(true);
    let problems: Problems = args.files.iter().flat_map(|file| load(file, &environment).problems).collect();
    let failed = problems.iter().any(|p| p.severity == Severity::Error);
    if args.json {
        println!("{}", serde_json::to_string(&problems)?);
        return Ok(ExitCode::from(if failed { 78 } else { 0 }));
    }
    if failed {
        return Err(BadPipeline(problems).into());
    }
    problems.iter().for_each(|problem| println!("{problem}"));
    args.files.iter().for_each(|file| println!("{}: ok", file.display()));
    Ok(ExitCode::SUCCESS)
}
