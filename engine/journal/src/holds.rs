//! Who still needs the log: each registered pipeline, and how far it has acknowledged each partition.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::segment::{replace_sealed, unsealed};

pub(crate) const FILE: &str = "holds.json";

/// `holds.json`. Acknowledgements in it may be old, which only holds more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Holds(BTreeMap<String, BTreeMap<u32, u64>>);

impl Holds {
    /// Reads them; none in a new journal.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        match fs::read(folder.join(FILE)) {
            Ok(text) => {
                let damaged = |e| io::Error::other(format!("{FILE} is damaged ({e}): `fieldstream state fsck --repair` makes it anew"));
                let json = unsealed(FILE, &text).map_err(|e| damaged(e.to_string()))?;
                serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        replace_sealed(folder, FILE, &serde_json::to_vec_pretty(self)?)
    }

    /// True when the pipeline was not registered before.
    pub(crate) fn register(&mut self, pipeline: &str) -> bool {
        let known = self.0.contains_key(pipeline);
        self.0.entry(pipeline.to_owned()).or_default();
        !known
    }

    /// True when the pipeline was registered.
    pub(crate) fn unregister(&mut self, pipeline: &str) -> bool {
        self.0.remove(pipeline).is_some()
    }

    /// Takes note that `pipeline` needs nothing of `partition` below `offset`. It never goes back.
    pub(crate) fn acknowledge(&mut self, pipeline: &str, partition: u32, offset: u64) {
        if let Some(partitions) = self.0.get_mut(pipeline) {
            let known = partitions.entry(partition).or_default();
            *known = (*known).max(offset);
        }
    }

    /// True when at least one pipeline is registered, and all have acknowledged every partition up to `end`.
    pub(crate) fn released(&self, end: &[u64]) -> bool {
        let done = |partitions: &BTreeMap<u32, u64>| {
            (0_u32..).zip(end).all(|(partition, end)| partitions.get(&partition).copied().unwrap_or_default() >= *end)
        };
        !self.0.is_empty() && self.0.values().all(done)
    }

    /// Names of the registered pipelines.
    pub(crate) fn pipelines(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}
