//! Files of the cold store as objects: created once, named by every checkpoint that needs them, deleted when none does.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path as FsPath, PathBuf};

use fieldstream_engine_api::Generation;

use crate::StoreError;
use crate::cold::ColdSegment;
use crate::objects::segment;
use crate::snapshot::ColdEntry;
use crate::store::{PartitionStore, numbered};

pub(crate) const KIND: &str = "cold";

impl PartitionStore {
    /// A folder under `root` for the cold store of this owner. What earlier owners left there is removed.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn cold_folder(&self, root: &FsPath, generation: Generation) -> Result<PathBuf, StoreError> {
        let folder = self.tail.iter().fold(root.to_owned(), |folder, part| folder.join(part));
        let fail = |error: io::Error| StoreError::io(format!("prepare {}", folder.display()), error);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let own = folder.join(segment(&generation.0.to_string()));
        fs::create_dir_all(&own).map_err(fail)?;
        Ok(own)
    }

    /// Makes the files durable under names of their own; most are there from an earlier checkpoint.
    pub(crate) async fn keep_cold(&self, segments: &[ColdSegment]) -> Result<Vec<ColdEntry>, StoreError> {
        let mut entries = Vec::with_capacity(segments.len());
        // On a remote store, to find that a file is there already by creating it means to read and send it again.
        let there = if segments.is_empty() { Vec::new() } else { self.objects.list(&self.folder(KIND)).await? };
        for ColdSegment { name, path, bytes, rows, crc32, .. } in segments {
            let key = self.at(KIND, name);
            if there.binary_search(&key).is_err() {
                match self.objects.create_from(&key, path).await {
                    Ok(()) | Err(StoreError::Exists(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            entries.push(ColdEntry { name: name.clone(), bytes: *bytes, rows: *rows, crc32: *crc32 });
        }
        Ok(entries)
    }

    /// Puts the files into `folder`, verified.
    pub(crate) async fn fetch_cold(&self, entries: &[ColdEntry], folder: &FsPath) -> Result<Vec<ColdSegment>, StoreError> {
        let mut segments = Vec::with_capacity(entries.len());
        for ColdEntry { name, bytes, rows, crc32 } in entries {
            let (key, path) = (self.at(KIND, name), folder.join(segment(name)));
            // An older checkpoint is tried after a damaged one; they share files.
            let _ = fs::remove_file(&path);
            let found = self.objects.fetch(&key, &path).await?.ok_or_else(|| StoreError::damaged(&key, "it is gone"))?;
            if found != (*bytes, *crc32) {
                return Err(StoreError::damaged(&key, format!("it has {} bytes of {bytes}, or its checksum is wrong", found.0)));
            }
            segments.push(ColdSegment { name: name.clone(), path, bytes: *bytes, rows: *rows, crc32: *crc32, _held: None });
        }
        Ok(segments)
    }

    /// The content of a file, verified.
    pub(crate) async fn cold_bytes(&self, entry: &ColdEntry) -> Result<bytes::Bytes, StoreError> {
        let key = self.at(KIND, &entry.name);
        let bytes = self.objects.get(&key).await?.ok_or_else(|| StoreError::damaged(&key, "it is gone"))?;
        if (bytes.len() as u64, crc32fast::hash(&bytes)) != (entry.bytes, entry.crc32) {
            return Err(StoreError::damaged(&key, format!("it has {} bytes of {}, or its checksum is wrong", bytes.len(), entry.bytes)));
        }
        Ok(bytes)
    }

    /// Deletes files that none of the kept checkpoints needs. `kept` goes from the oldest to the newest.
    pub(crate) async fn prune_cold(&self, kept: &[Vec<ColdEntry>], generation: Generation) -> Result<(), StoreError> {
        let needed: HashSet<&str> = kept.iter().flatten().map(|entry| entry.name.as_str()).collect();
        let number = |name: &str| numbered(&self.at(KIND, name.trim_end_matches(".arrow")));
        let newest = kept.last().into_iter().flatten().filter_map(|entry| number(&entry.name)).max();
        for key in self.objects.list(&self.folder(KIND)).await? {
            let Some(name) = key.filename().filter(|name| !needed.contains(name)) else { continue };
            let Some(own) = number(name) else { continue };
            // What is newer than the newest checkpoint's may belong to one that this owner is writing.
            if own.0 < generation || newest.is_some_and(|newest| own < newest) {
                self.objects.delete(&key).await?;
            }
        }
        Ok(())
    }
}
