//! Objects of a `parquet` sink in a local directory: created once, on disk when told so.

use std::fs::{self, File};
use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use fieldstream_engine_api::{SinkError, is_shortage};
use futures::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions};
use tokio::task::spawn_blocking;

/// Time until a fsync is tried again for which there was no file handle.
const SHORTAGE: Duration = Duration::from_secs(1);

/// The directory.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    objects: LocalFileSystem,
}

/// The same thing will be tried again.
pub(crate) fn retry(context: String, cause: &dyn std::fmt::Display) -> SinkError {
    SinkError::Retry { context, cause: cause.to_string() }
}

/// A person must act.
pub(crate) fn fatal(context: String, cause: &dyn std::fmt::Display) -> SinkError {
    SinkError::Fatal { context, cause: cause.to_string() }
}

impl Store {
    /// Opens the directory, and makes it if need be.
    pub(crate) fn open(root: &FsPath) -> Result<Self, SinkError> {
        let context = || format!("open the directory {}", root.display());
        fs::create_dir_all(root).map_err(|e| if is_shortage(&e) { retry(context(), &e) } else { fatal(context(), &e) })?;
        let root = root.canonicalize().map_err(|e| fatal(context(), &e))?;
        let objects = LocalFileSystem::new_with_prefix(&root).map_err(|e| fatal(context(), &e))?;
        Ok(Self { root, objects })
    }

    /// Creates `key` durably; false when it exists already, and then nothing is changed.
    pub(crate) async fn create(&self, key: &Path, data: Bytes) -> Result<bool, SinkError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(key, data.into(), options).await {
            Ok(_) => self.sync(key).await.map(|()| true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(retry(format!("create {key}"), &error)),
        }
    }

    /// Waits until `key` and its name are on disk.
    async fn sync(&self, key: &Path) -> Result<(), SinkError> {
        loop {
            let (root, path) = (self.root.clone(), self.root.join(key.as_ref()));
            let done = spawn_blocking(move || sync_up(&root, &path)).await;
            match done.map_err(io::Error::other).flatten() {
                Ok(()) => return Ok(()),
                // The object is there: whoever created it anew would take it for somebody else's.
                Err(error) if is_shortage(&error) => {
                    tracing::warn!("fsync {key}: {error}; trying again in {SHORTAGE:?}");
                    tokio::time::sleep(SHORTAGE).await;
                }
                // After a failed fsync the kernel may have dropped the pages: nobody knows what is on disk.
                Err(error) => return Err(fatal(format!("fsync {key}"), &error)),
            }
        }
    }

    /// The bytes of `key`; `None` when it does not exist.
    pub(crate) async fn get(&self, key: &Path) -> Result<Option<Bytes>, SinkError> {
        let failed = |e: Error| retry(format!("read {key}"), &e);
        match self.objects.get(key).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// All keys, or those under `prefix`, sorted.
    pub(crate) async fn list(&self, prefix: Option<&Path>) -> Result<Vec<Path>, SinkError> {
        let found: Result<Vec<Path>, Error> = self.objects.list(prefix).map_ok(|meta| meta.location).try_collect().await;
        let mut keys = found.map_err(|e| retry(format!("list {}", self.root.display()), &e))?;
        keys.sort();
        Ok(keys)
    }

    /// Removes `key`; one that is gone already is no error.
    pub(crate) async fn delete(&self, key: &Path) -> Result<(), SinkError> {
        match self.objects.delete(key).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(retry(format!("delete {key}"), &error)),
        }
    }
}

/// Syncs a file, and the directories above it up to `root`, which may be new.
fn sync_up(root: &FsPath, path: &FsPath) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    for directory in path.ancestors().skip(1) {
        File::open(directory)?.sync_all()?;
        if directory == root {
            break;
        }
    }
    Ok(())
}

/// A name as one part of a key: letters, digits, `-`, `_` and inner dots stay, every other byte becomes `=XX`.
pub(crate) fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || (byte == b'.' && at > 0) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("={byte:02X}"));
        }
    }
    out
}
