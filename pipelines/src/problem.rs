//! What is wrong with a pipeline file, where, and what to do about it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::code::Code;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The pipeline cannot run.
    Error,
    /// The pipeline runs, but probably not as meant.
    Warning,
}

/// A place in a YAML file, both counted from 1; 0 where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Span {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// One finding in a pipeline file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of problem it is.
    pub code: Code,
    /// The file as it was named by the caller.
    pub file: Arc<str>,
    /// Where in the file.
    #[serde(flatten)]
    pub span: Span,
    /// JSON pointer (RFC 6901) into the file.
    pub path: String,
    /// What is wrong, lower case, without a full stop.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.span.line > 0 {
            write!(f, ":{}:{}", self.span.line, self.span.column)?;
        }
        match self.severity {
            Severity::Error => write!(f, ": error[{}]: ", self.code)?,
            Severity::Warning => write!(f, ": warning[{}]: ", self.code)?,
        }
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for Problem {}

/// Everything wrong with a file, in file order.
pub type Problems = Vec<Problem>;

/// The name among `known` that `name` probably means, by edit distance.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    known.into_iter().map(|k| (strsim::damerau_levenshtein(name, k), k)).filter(|(distance, _)| *distance <= limit).min().map(|(_, k)| k)
}

/// The hint for an unknown name: the nearest of `known`, or all of them.
#[must_use]
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(name, known.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let mut all: Vec<&str> = known.into_iter().collect();
    all.sort_unstable();
    if all.is_empty() { None } else { Some(format!("known: {}", all.join(", "))) }
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a message and a hint; other messages pass unchanged.
#[must_use]
pub fn split_serde_message(message: &str) -> (String, Option<String>) {
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((name, known)) if unknown => {
            let what = if message.starts_with("unknown field") { "unknown field" } else { "unknown name" };
            (format!("{what} `{name}`"), did_you_mean(name, known.iter().copied()))
        }
        _ => (message.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_gets_the_nearest_name_or_all_of_them() {
        let (message, hint) = split_serde_message("unknown field `topcis`, expected one of `url`, `topics`, `qos`");
        assert_eq!((message.as_str(), hint.as_deref()), ("unknown field `topcis`", Some("did you mean `topics`?")));
        let (_, hint) = split_serde_message("unknown field `colour`, expected `url` or `qos`");
        assert_eq!(hint.as_deref(), Some("known: qos, url"));
        assert_eq!(split_serde_message("missing field `url`"), ("missing field `url`".to_owned(), None));
    }
}
