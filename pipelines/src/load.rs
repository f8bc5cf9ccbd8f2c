//! From a file to a plan.

use std::path::Path;
use std::sync::Arc;

use crate::code::Code;
use crate::document::Document;
use crate::nodes::{Catalogue, read};
use crate::plan::{Plan, plan};
use crate::problem::{Problem, Problems, Severity, Span};
use crate::substitute::Environment;

/// What came of a file: a plan when nothing is wrong, and all problems in file order.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// There when no problem is an error.
    pub plan: Option<Plan>,
    /// Errors and warnings.
    pub problems: Problems,
}

impl Loaded {
    /// The plan and the warnings, or everything that is wrong.
    ///
    /// # Errors
    /// When a problem is an error.
    pub fn into_result(self) -> Result<(Plan, Problems), Problems> {
        match self.plan {
            Some(plan) => Ok((plan, self.problems)),
            None => Err(self.problems),
        }
    }
}

/// Reads and checks the pipeline in `path` with everything this program was built with.
#[must_use]
pub fn load(path: &Path, environment: &Environment) -> Loaded {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => load_text(&file, &text, environment, &Catalogue::built_in()),
        Err(error) => {
            let file = Arc::from(file);
            let message = format!("the file cannot be read: {error}");
            let problem = Problem {
                severity: Severity::Error,
                code: Code::File,
                file,
                span: Span::default(),
                path: String::new(),
                message,
                hint: None,
            };
            Loaded { plan: None, problems: vec![problem] }
        }
    }
}

/// Checks `text`, the content of `file`, against `catalogue`.
#[must_use]
pub fn load_text(file: &str, text: &str, environment: &Environment, catalogue: &Catalogue<'_>) -> Loaded {
    let (document, mut problems) = match Document::read(file, text, environment) {
        Ok(read) => read,
        Err(problem) => return Loaded { plan: None, problems: vec![problem] },
    };
    let (config, wrong) = read(&document, catalogue);
    problems.extend(wrong);
    let (plan, problems) = plan(&document, &config, catalogue, problems);
    Loaded { plan, problems }
}
