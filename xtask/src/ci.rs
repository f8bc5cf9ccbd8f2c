//! Everything continuous integration runs. The list itself is `.ci/run`, so that it needs nothing built to begin.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Runs `.ci/run` and fails as it does.
pub(crate) fn run(root: &Path) -> Result<()> {
    let status = Command::new(root.join(".ci/run")).current_dir(root).status().context(".ci/run could not be started")?;
    if status.success() { Ok(()) } else { bail!("a step failed, see above") }
}
