//! Dead letters as a `file` sink wrote them, and where they can be sent again.

pub(crate) mod done;
pub(crate) mod letter;
pub(crate) mod target;
