//! What a `file` sink has committed: length of every file and mark of every partition, in one file that is replaced whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fieldstream_engine_api::{Generation, Mark, PartitionKey};
use serde::{Deserialize, Serialize};

/// Committed lengths and marks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sidecar {
    /// Committed length in bytes, by path. What lies behind it in the file was never committed.
    pub(crate) files: BTreeMap<PathBuf, u64>,
    /// One entry per sink and partition.
    pub(crate) partitions: Vec<Entry>,
}

/// The mark of one partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Name of the sink.
    pub(crate) sink: String,
    /// The partition.
    pub(crate) key: PartitionKey,
    /// Its owner.
    pub(crate) generation: Generation,
    /// What is durable; `None` until the first commit.
    pub(crate) durable: Option<Durable>,
}

/// A durable mark and the rows delivered up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Durable {
    /// Everything below it is in the files.
    pub(crate) mark: Mark,
    /// Rows in the files.
    pub(crate) delivered: u64,
}

impl Sidecar {
    /// Reads the sidecar; an absent one is empty.
    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the sidecar durably.
    pub(crate) fn store(&self, path: &Path) -> io::Result<()> {
        super::inputs::replace(path, &serde_json::to_vec(self)?)
    }

    /// The entry of `key` for `sink`.
    pub(crate) fn entry(&self, sink: &str, key: &PartitionKey) -> Option<&Entry> {
        self.partitions.iter().find(|e| e.sink == sink && e.key == *key)
    }

    /// The entry of `key` for `sink`, to change.
    pub(crate) fn entry_mut(&mut self, sink: &str, key: &PartitionKey) -> Option<&mut Entry> {
        self.partitions.iter_mut().find(|e| e.sink == sink && e.key == *key)
    }
}

/// Takes the lock that guards a sidecar; it is free again when the file is dropped, also when the process dies.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(directory)?;
    }
    let file = File::options().create(true).write(true).truncate(false).open(path)?;
    file.lock()?;
    Ok(file)
}
