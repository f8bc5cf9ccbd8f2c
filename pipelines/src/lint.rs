//! `lint`: all problems of several files, nothing run and nothing connected.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::load::{load, load_text};
use crate::nodes::Catalogue;
use crate::problem::{Problem, Severity};
use crate::substitute::Environment;

/// What lint found in one file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// The file.
    pub file: String,
    /// Name of the pipeline, where it could be planned.
    pub pipeline: Option<String>,
    /// Errors and warnings in file order.
    pub problems: Vec<Problem>,
}

/// What lint found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One entry per file, in the order given.
    pub files: Vec<FileReport>,
}

impl Report {
    /// Number of errors in all files.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.files.iter().flat_map(|f| &f.problems).filter(|p| p.severity == Severity::Error).count()
    }

    /// True when every file can run.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.errors() == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            for problem in &file.problems {
                writeln!(f, "{problem}")?;
            }
            if let Some(name) = &file.pipeline {
                writeln!(f, "{}: ok ({name})", file.file)?;
            }
        }
        Ok(())
    }
}

/// Checks `files`. What the environment lacks is stood in for.
#[must_use]
pub fn lint(files: &[PathBuf], environment: &Environment) -> Report {
    let environment = Environment { lenient: true, ..environment.clone() };
    let files = files.iter().map(|path| report(&path.display().to_string(), load(path, &environment))).collect();
    Report { files }
}

/// Checks one text against `catalogue`, for editors and tests.
#[must_use]
pub fn lint_text(file: &Path, text: &str, environment: &Environment, catalogue: &Catalogue<'_>) -> FileReport {
    let environment = Environment { lenient: true, ..environment.clone() };
    let file = file.display().to_string();
    let loaded = load_text(&file, text, &environment, catalogue);
    report(&file, loaded)
}

fn report(file: &str, loaded: crate::load::Loaded) -> FileReport {
    FileReport { file: file.to_owned(), pipeline: loaded.plan.map(|p| p.name.to_string()), problems: loaded.problems }
}
