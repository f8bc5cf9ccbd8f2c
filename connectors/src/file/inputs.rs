//! Which files a source reads, which partition each one is, and the identity they have together as a log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fieldstream_engine_api::LogId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The files of a source: by partition number, and the log's identity. Kept in the data directory for a resumed run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inputs {
    /// Identity of the log.
    pub(crate) log_id: LogId,
    /// Path by partition number.
    pub(crate) files: BTreeMap<u32, PathBuf>,
}

/// Why the files of a source cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputsError {
    #[error("no file matches {patterns}: check `path`")]
    NoMatch { patterns: String },
    #[error("{path}: {cause}")]
    Io { path: String, cause: io::Error },
    #[error("{path} was read by the run to be resumed and is gone: restore it, or start afresh without --resume")]
    Gone { path: String },
    #[error("{path} does not hold what an earlier run wrote ({cause}): start afresh without --resume")]
    Record { path: String, cause: String },
}

fn io_error(path: &Path, cause: io::Error) -> InputsError {
    InputsError::Io { path: path.display().to_string(), cause }
}

impl Inputs {
    /// Finds the files. A fresh run gets a random log id; a resumed one keeps what `record` says, and files that are new
    /// since then become further partitions. The result is durable in `record` before it is returned.
    pub(crate) fn find(patterns: &[String], endings: &[&str], record: &Path, resume: bool) -> Result<Self, InputsError> {
        let mut paths = BTreeSet::new();
        for pattern in patterns {
            paths.extend(expand(pattern, endings)?);
        }
        if paths.is_empty() {
            return Err(InputsError::NoMatch { patterns: patterns.join(", ") });
        }
        let earlier = if resume { Self::load(record)? } else { None };
        let inputs = match earlier {
            Some(earlier) => earlier.extended(&paths)?,
            None => Self { log_id: LogId(Arc::from(Uuid::new_v4().to_string())), files: number(&paths) },
        };
        inputs.store(record)?;
        Ok(inputs)
    }

    fn extended(mut self, paths: &BTreeSet<PathBuf>) -> Result<Self, InputsError> {
        if let Some(gone) = self.files.values().find(|path| !paths.contains(*path)) {
            return Err(InputsError::Gone { path: gone.display().to_string() });
        }
        let known: BTreeSet<PathBuf> = self.files.values().cloned().collect();
        for path in paths.difference(&known) {
            let next = self.files.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
            let number = trailing_number(path).filter(|n| !self.files.contains_key(n)).unwrap_or(next);
            self.files.insert(number, path.clone());
        }
        Ok(self)
    }

    fn load(record: &Path) -> Result<Option<Self>, InputsError> {
        let bytes = match fs::read(record) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(record, error)),
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|e| InputsError::Record { path: record.display().to_string(), cause: e.to_string() })
    }

    fn store(&self, record: &Path) -> Result<(), InputsError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| InputsError::Record { path: record.display().to_string(), cause: e.to_string() })?;
        replace(record, &text).map_err(|e| io_error(record, e))
    }
}

/// Replaces `path` by `bytes` atomically and durably: write beside it, fsync, rename, fsync the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    // Before the rename: without a handle for its fsync nothing may change.
    let folder = fs::File::open(directory)?;
    let mut file = fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    folder.sync_all()
}

/// Numbers files: by the number their name ends in when all have one and all differ, else in sorted order from 0.
fn number(paths: &BTreeSet<PathBuf>) -> BTreeMap<u32, PathBuf> {
    let named: BTreeMap<u32, PathBuf> = paths.iter().filter_map(|p| Some((trailing_number(p)?, p.clone()))).collect();
    if named.len() == paths.len() { named } else { (0..).zip(paths.iter().cloned()).collect() }
}

/// The number at the end of a file's name, its extension left out.
fn trailing_number(path: &Path) -> Option<u32> {
    let stem = path.file_stem()?.to_str()?;
    let digits = stem.len() - stem.bytes().rev().take_while(u8::is_ascii_digit).count();
    stem.get(digits..)?.parse().ok()
}

/// The files that `pattern` names: one file, all files of a directory with one of `endings`, or those matching `*` and `?`.
fn expand(pattern: &str, endings: &[&str]) -> Result<Vec<PathBuf>, InputsError> {
    let path = PathBuf::from(pattern);
    if path.is_file() {
        return Ok(vec![path]);
    }
    if path.is_dir() {
        let mut found = children(&path)?;
        found.retain(|p| p.is_file() && p.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e)));
        return Ok(found);
    }
    let mut found = vec![PathBuf::new()];
    for component in path.components() {
        found = step(found, component)?;
    }
    found.retain(|p| p.is_file());
    Ok(found)
}

fn step(bases: Vec<PathBuf>, component: Component<'_>) -> Result<Vec<PathBuf>, InputsError> {
    let text = component.as_os_str().to_string_lossy();
    if !text.contains(['*', '?']) {
        let joined = bases.into_iter().map(|base| base.join(component));
        return Ok(joined.filter(|p| p.exists()).collect());
    }
    let mut found = Vec::new();
    for base in bases.into_iter().filter(|b| b.as_os_str().is_empty() || b.is_dir()) {
        for child in children(&base)? {
            let matched = child.file_name().and_then(|n| n.to_str()).is_some_and(|n| glob(text.as_bytes(), n.as_bytes()));
            if matched {
                found.push(child);
            }
        }
    }
    Ok(found)
}

/// The entries of a directory that are not hidden; an empty path is the current directory.
fn children(directory: &Path) -> Result<Vec<PathBuf>, InputsError> {
    let listed = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let mut found = Vec::new();
    for entry in fs::read_dir(listed).map_err(|e| io_error(listed, e))? {
        let name = entry.map_err(|e| io_error(listed, e))?.file_name();
        if !name.to_string_lossy().starts_with('.') {
            found.push(directory.join(name));
        }
    }
    Ok(found)
}

/// Whether `name` matches `pattern`, where `*` is any run of bytes and `?` is one byte. Linear but for the last `*`.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == b'?' || *c == name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("p*.ndjson", "p0.ndjson", true),
            ("p*.ndjson", "p0.ndjson.bak", false),
            ("*", "", true),
            ("p?.nd*n", "p7.ndjson", true),
            ("p?.ndjson", "p17.ndjson", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    fn numbered(names: &[&str]) -> Vec<(u32, String)> {
        let paths = names.iter().map(PathBuf::from).collect();
        number(&paths).into_iter().map(|(n, p)| (n, p.display().to_string())).collect()
    }

    #[test]
    fn the_number_in_the_name_is_the_partition_when_all_have_one_and_all_differ() {
        assert_eq!(numbered(&["d/p10.ndjson", "d/p2.ndjson"]), [(2, "d/p2.ndjson".into()), (10, "d/p10.ndjson".into())]);
        assert_eq!(numbered(&["d/a1.csv", "d/b1.csv"]), [(0, "d/a1.csv".into()), (1, "d/b1.csv".into())]);
        assert_eq!(numbered(&["d/a1.csv", "d/b.csv"]), [(0, "d/a1.csv".into()), (1, "d/b.csv".into())]);
        assert_eq!(numbered(&["99999999999.csv"]), [(0, "99999999999.csv".into())], "too large for a partition number");
    }

    #[test]
    fn a_resumed_run_keeps_id_and_numbers_and_a_fresh_one_does_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let record = dir.path().join("state/log.json");
        let pattern = [format!("{}/in/*.ndjson", dir.path().display())];
        let find = |resume| Inputs::find(&pattern, &["ndjson"], &record, resume);
        fs::create_dir(dir.path().join("in")).expect("mkdir");
        assert!(matches!(find(false), Err(InputsError::NoMatch { .. })));

        fs::write(dir.path().join("in/b.ndjson"), "").expect("write");
        let first = find(false).expect("one file");
        fs::write(dir.path().join("in/a.ndjson"), "").expect("write");
        let resumed = find(true).expect("two files");
        assert_eq!(resumed.log_id, first.log_id);
        let names: Vec<_> = resumed.files.iter().map(|(n, p)| (*n, p.file_name().and_then(|n| n.to_str()).expect("name"))).collect();
        assert_eq!(names, [(0, "b.ndjson"), (1, "a.ndjson")], "the known file keeps its number");

        let fresh = find(false).expect("two files");
        assert_ne!(fresh.log_id, first.log_id);
        fs::remove_file(dir.path().join("in/a.ndjson")).expect("rm");
        assert!(matches!(find(true), Err(InputsError::Gone { .. })));
    }
}
