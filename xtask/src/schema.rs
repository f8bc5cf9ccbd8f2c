//! The published JSON schemas. The crates that own the types write them in a test, so that they are built once, with the tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Writes the schema files, or with `check` compares them with the types.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["test", "--quiet", "--package", "fieldstream", "--test", "schemas"]).current_dir(root);
    if check {
        command.env_remove("FIELDSTREAM_WRITE_SCHEMAS");
    } else {
        command.env("FIELDSTREAM_WRITE_SCHEMAS", "1");
    }
    let status = command.status().context("cargo could not be run")?;
    if status.success() {
        Ok(())
    } else {
        bail!("the schema files do not say what the types say; run `cargo xtask schema` and look at the difference")
    }
}
