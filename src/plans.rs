//! Pipeline files as plans, with their warnings on stderr.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fieldstream_pipelines::{Environment, Plan, load};

use crate::exit::BadPipeline;

/// The plans of `files`.
///
/// # Errors
/// Everything wrong with any of the files.
pub(crate) fn plans(files: &[PathBuf], environment: &Environment) -> Result<Vec<Plan>> {
    let mut plans = Vec::new();
    let mut problems = Vec::new();
    for file in files {
        match load(file, environment).into_result() {
            Ok((plan, warnings)) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                plans.push(plan);
            }
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(plans) } else { Err(BadPipeline(problems).into()) }
}

/// The plan of one file.
///
/// # Errors
/// Everything wrong with the file.
pub(crate) fn plan(file: &Path, environment: &Environment) -> Result<Plan> {
    match load(file, environment).into_result() {
        Ok((plan, warnings)) => {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            Ok(plan)
        }
        Err(problems) => Err(BadPipeline(problems).into()),
    }
}
