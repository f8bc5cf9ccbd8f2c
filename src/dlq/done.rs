//! Which dead letters have been sent again: ids in a file beside theirs.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The ids that have been sent, one a line, in `<dead letters>.redriven`. One process at a time holds it.
#[derive(Debug)]
pub(crate) struct Done {
    path: PathBuf,
    file: File,
    ids: HashSet<String>,
}

impl Done {
    /// Opens the file beside `letters`, or begins it.
    ///
    /// # Errors
    /// If it cannot be used, another process has it, or there are no letters.
    pub(crate) fn open(letters: &Path) -> Result<Self> {
        if !letters.is_file() {
            bail!("{} is no file of dead letters", letters.display());
        }
        let mut name = letters.as_os_str().to_owned();
        name.push(".redriven");
        let path = PathBuf::from(name);
        let failed = || format!("cannot use {}", path.display());
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(failed)?;
        if file.try_lock().is_err() {
            bail!("another redrive of {} is running", letters.display());
        }
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(failed)?;
        // A crash may have cut the last line; that letter is sent again.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).with_context(failed)?;
        file.seek(SeekFrom::End(0)).with_context(failed)?;
        let ids = text.get(..whole).unwrap_or_default().lines().map(str::to_owned).collect();
        Ok(Self { path, file, ids })
    }

    /// True when the letter with `id` has been sent.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// Notes that the letters with `ids` have been sent; durable when this returns.
    ///
    /// # Errors
    /// If the file cannot be written: the letters may then be sent twice.
    pub(crate) fn add(&mut self, ids: Vec<String>) -> Result<()> {
        let lines: String = ids.iter().flat_map(|id| [id.as_str(), "\n"]).collect();
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_all());
        written.with_context(|| format!("cannot write {}; the last letters may be sent again", self.path.display()))?;
        self.ids.extend(ids);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kept_and_a_torn_one_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let letters = folder.path().join("dead-letters.ndjson");
        assert!(Done::open(&letters).is_err(), "nothing to note for");
        std::fs::write(&letters, "").expect("written");
        let mut done = Done::open(&letters).expect("new");
        assert!(Done::open(&letters).is_err(), "one at a time");
        done.add(vec!["a".to_owned(), "b".to_owned()]).expect("written");
        done.file.write_all(b"torn").expect("written");
        drop(done);
        let mut done = Done::open(&letters).expect("again");
        assert!(done.contains("a") && done.contains("b") && !done.contains("torn"));
        done.add(vec!["c".to_owned()]).expect("written");
        assert_eq!(std::fs::read_to_string(&done.path).expect("text"), "a\nb\nc\n");
    }
}
