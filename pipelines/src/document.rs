//! One pipeline file as read: its text as a tree, with and without its references resolved, and the way from pointers to places.

use std::sync::Arc;

use fieldstream_engine_api::{ConfigError, ConfigErrors};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::code::Code;
use crate::problem::{Problem, Problems, Severity, Span, split_serde_message};
use crate::substitute::{Environment, Substituted, stand_ins, substitute};
use crate::yaml::{self, Kind, Node, pointer_segment};

/// A pipeline file.
#[derive(Clone, Debug)]
pub struct Document {
    /// The name the caller gave.
    pub file: Arc<str>,
    /// Its content.
    pub text: Arc<str>,
    /// As written, references unresolved: what dumps show.
    pub source: Node,
    /// With references resolved.
    pub root: Node,
    substituted: Substituted,
}

/// What came of values that may hold stand-ins.
#[derive(Debug)]
pub enum Outcome<T> {
    /// Accepted, with the value that was accepted.
    Good(T, Value),
    /// Only what stands in for a missing value was refused: nothing can be said.
    Unknown,
    /// Refused.
    Wrong(ConfigErrors),
}

impl Document {
    /// Reads `text`, the content of `file`.
    ///
    /// # Errors
    /// One problem if it is no YAML map; otherwise references that cannot be resolved are in the second part, beside the document.
    pub fn read(file: &str, text: &str, environment: &Environment) -> Result<(Self, Problems), Problem> {
        let file: Arc<str> = file.into();
        let broken = |span, message: String| Problem {
            severity: Severity::Error,
            code: Code::File,
            file: Arc::clone(&file),
            span,
            path: String::new(),
            message,
            hint: None,
        };
        let source = yaml::parse(text).map_err(|(span, message)| broken(span, message))?;
        if !matches!(source.kind, Kind::Map(_)) {
            return Err(broken(source.span, "a pipeline file is a map that begins with `version: 1`".to_owned()));
        }
        let mut root = source.clone();
        let substituted = substitute(&mut root, environment);
        let document = Self { file, text: text.into(), source, root, substituted };
        let problems = document
            .substituted
            .errors
            .iter()
            .map(|(path, message, hint)| document.problem(Code::Reference, path, message, hint.clone()))
            .collect();
        Ok((document, problems))
    }

    /// An error at `pointer`.
    #[must_use]
    pub fn problem(&self, code: Code, pointer: &str, message: &str, hint: Option<String>) -> Problem {
        let (message, unknown) = split_serde_message(message);
        let span = self.root.locate(pointer, message.starts_with("unknown field"));
        let problem = Problem {
            severity: Severity::Error,
            code,
            file: Arc::clone(&self.file),
            span,
            path: pointer.to_owned(),
            message,
            hint: hint.or(unknown),
        };
        self.substituted.redact_problem(problem)
    }

    /// A warning at `pointer`.
    #[must_use]
    pub fn warning(&self, code: Code, pointer: &str, message: &str, hint: Option<String>) -> Problem {
        Problem { severity: Severity::Warning, ..self.problem(code, pointer, message, hint) }
    }

    /// A node's errors at their places; `base` is the pointer of what was checked.
    #[must_use]
    pub fn problems(&self, code: Code, base: &str, errors: &[ConfigError]) -> Problems {
        errors.iter().map(|e| self.problem(code, &format!("{base}{}", e.path), &e.message, e.hint.clone())).collect()
    }

    /// `text` without the value of any secret.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.substituted.redact(text)
    }

    /// The value at `pointer` with its references as they are written.
    #[must_use]
    pub fn as_written(&self, pointer: &str) -> Option<Value> {
        self.source.to_value().pointer(pointer).cloned()
    }

    /// True when lint stands in for a value at or below `pointer`.
    #[must_use]
    pub fn stands_in(&self, pointer: &str) -> bool {
        let below = |p: &String| p.strip_prefix(pointer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.substituted.placeholders.iter().any(below)
    }

    /// Where something is, for callers that make their own messages.
    #[must_use]
    pub fn locate(&self, pointer: &str) -> Span {
        self.root.locate(pointer, false)
    }

    /// Checks the value at `base` with `check`. Where a stand-in is refused, the next one is tried, so that lint can type-check
    /// a file without knowing its variables.
    pub fn check<T>(&self, base: &str, mut value: Value, mut check: impl FnMut(&Value) -> Result<T, ConfigErrors>) -> Outcome<T> {
        let below = |p: &String| p.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with('/')).map(str::to_owned);
        let mut open: Vec<(String, Vec<Value>)> = self.substituted.placeholders.iter().filter_map(below).map(|p| (p, Vec::new())).collect();
        for (pointer, stand_ins_left) in &mut open {
            let text = value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            *stand_ins_left = stand_ins(text);
            stand_ins_left.reverse();
            stand_ins_left.pop();
        }
        loop {
            let errors = match check(&value) {
                Ok(good) => return Outcome::Good(good, value),
                Err(errors) => errors,
            };
            let mut moved = false;
            for (pointer, left) in &mut open {
                let blamed = errors.iter().any(|e| pointer.starts_with(e.path.as_str()));
                let Some(next) = left.pop().filter(|_| blamed) else { continue };
                if let Some(place) = value.pointer_mut(pointer) {
                    *place = next;
                    moved = true;
                }
            }
            if !moved {
                let real: ConfigErrors = errors.into_iter().filter(|e| !open.iter().any(|(pointer, _)| *pointer == e.path)).collect();
                return if real.is_empty() { Outcome::Unknown } else { Outcome::Wrong(real) };
            }
        }
    }
}

/// Reads `value` as `T`; the error's path is a JSON pointer into `value`.
///
/// # Errors
/// The first thing that does not fit.
pub fn read_value<T: DeserializeOwned>(value: &Value) -> Result<T, ConfigErrors> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().iter().filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(format!("/{index}")),
            serde_path_to_error::Segment::Map { key } => Some(pointer_segment(key)),
            serde_path_to_error::Segment::Enum { variant } => Some(pointer_segment(variant)),
            serde_path_to_error::Segment::Unknown => None,
        });
        let path: String = path.collect();
        vec![ConfigError::new(path, error.into_inner().to_string())]
    })
}
