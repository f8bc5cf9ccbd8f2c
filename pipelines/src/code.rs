//! Stable codes of what can be wrong with a pipeline file. Each has a section in `docs/errors/pipelines.md`.

use std::fmt;

use serde::{Serialize, Serializer};

/// A kind of problem. A code keeps its meaning for ever; one that is given up is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The file cannot be read, or is no YAML map.
    File,
    /// A `${...}` reference cannot be resolved.
    Reference,
    /// A section or field is missing, unknown or of the wrong type.
    Shape,
    /// A name cannot be used, or is used twice.
    Name,
    /// A node does not say what it is, or says what nobody knows.
    Kind,
    /// An option of a source, operator or sink does not fit.
    Options,
    /// An input names a port that cannot be read.
    Input,
    /// Operators feed each other.
    Cycle,
    /// Inputs of one node have different columns.
    Columns,
    /// Rows of a port would go nowhere.
    LooseEnd,
    /// A pipeline reads more than one log.
    OneLog,
    /// Two sinks write to one path.
    OnePath,
    /// One of the file's own tests is not well formed.
    Tests,
    /// This program was built without connectors.
    Build,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::File,
        Self::Reference,
        Self::Shape,
        Self::Name,
        Self::Kind,
        Self::Options,
        Self::Input,
        Self::Cycle,
        Self::Columns,
        Self::LooseEnd,
        Self::OneLog,
        Self::OnePath,
        Self::Tests,
        Self::Build,
    ];

    /// As it is shown, such as `FS-1007`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::File => "FS-1001",
            Self::Reference => "FS-1002",
            Self::Shape => "FS-1003",
            Self::Name => "FS-1004",
            Self::Kind => "FS-1005",
            Self::Options => "FS-1006",
            Self::Input => "FS-1007",
            Self::Cycle => "FS-1008",
            Self::Columns => "FS-1009",
            Self::LooseEnd => "FS-1010",
            Self::OneLog => "FS-1011",
            Self::OnePath => "FS-1012",
            Self::Tests => "FS-1013",
            Self::Build => "FS-1014",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_one_of_a_kind_and_has_a_section() {
        let page = include_str!("../../docs/errors/pipelines.md");
        for (number, code) in Code::ALL.iter().enumerate() {
            assert!(page.contains(&format!("\n## {code}\n")), "docs/errors/pipelines.md says nothing of {code}");
            assert!(!Code::ALL[..number].iter().any(|other| other.text() == code.text()), "{code} is given twice");
        }
        assert_eq!(page.matches("\n## FS-").count(), Code::ALL.len(), "a section of a code that is not there");
    }
}
