//! The files of the repository: what git tracks or would track.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A text file.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Path relative to the workspace, with `/`.
    pub(crate) path: String,
    /// Contents.
    pub(crate) text: String,
}

impl Source {
    #[cfg(test)]
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// All text files below `root` that git does not ignore. Binary files are left out.
pub(crate) fn read_all(root: &Path) -> Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git could not be run")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut sources = Vec::new();
    for path in names.split_terminator('\0') {
        // A file that is tracked but deleted in the work tree has nothing to check.
        if let Ok(Ok(text)) = std::fs::read(root.join(path)).map(String::from_utf8) {
            sources.push(Source { path: path.into(), text });
        }
    }
    Ok(sources)
}
