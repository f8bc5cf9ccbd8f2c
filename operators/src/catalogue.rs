//! The operators a pipeline may name.

use fieldstream_engine_api::OperatorKind;

/// One line per operator, in the order of the documentation.
pub static OPERATORS: &[OperatorKind] = &[
    crate::validate::KIND,
    crate::filter::KIND,
    crate::map::KIND,
    crate::route::KIND,
    crate::batch::KIND,
    crate::dedupe::KIND,
    crate::deadband::KIND,
    crate::window::KIND,
    crate::detect::KIND,
    crate::predict::KIND,
];

/// The operator called `name` in YAML.
#[must_use]
pub fn find(name: &str) -> Option<&'static OperatorKind> {
    OPERATORS.iter().find(|kind| kind.name == name)
}
