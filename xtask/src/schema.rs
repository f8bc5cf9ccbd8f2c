//! The published JSON schemas. The crates that own the types compare them in a test, so that nothing is built for it alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Package, and the test in it that compares (or writes) its schema files.
const TESTS: &[(&str, &str)] =
    &[("fieldstream-schemas", "published_files_are_up_to_date"), ("fieldstream-pipelines", "the_published_schema_is_that_of_the_code")];

/// Writes the schema files, or with `check` compares them with the types.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    for (package, test) in TESTS {
        let mut command = Command::new("cargo");
        command.args(["test", "--quiet", "--package", package, "--", test]).current_dir(root);
        for variable in ["FIELDSTREAM_BLESS", "UPDATE_EXPECT"] {
            if check {
                command.env_remove(variable);
            } else {
                command.env(variable, "1");
            }
        }
        let status = command.status().context("cargo could not be run")?;
        if !status.success() {
            bail!("the schema files of {package} do not say what its types say; run `cargo xtask schema` and look at the difference");
        }
    }
    Ok(())
}
