//! Objects that are created once and never overwritten, and sealed JSON in them.
//!
//! On a remote store "create once" is the store's conditional put. On the local disk it is our own: write a temporary file,
//! fsync it, hard-link it to its name (which fails when the name exists), fsync the directory. So a name appears with its
//! whole content or not at all, also after power loss.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::StoreError;

/// Folder of temporary files under the root of a local store.
const TEMPORARY: &str = "tmp";

/// Bytes of a file read at once.
const READ: usize = 1 << 20;

/// An object store whose keys are created once.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    local: Option<Arc<PathBuf>>,
    location: Arc<str>,
    /// Held shared by everybody who uses a local store, and alone by who repairs it.
    _lock: Option<Arc<File>>,
}

impl Objects {
    /// A folder on the local disk, made if need be.
    pub(crate) fn local(root: &FsPath) -> Result<Self, StoreError> {
        let location: Arc<str> = root.display().to_string().into();
        fs::create_dir_all(root.join(TEMPORARY)).map_err(|e| StoreError::io(format!("create {location}"), e))?;
        let fail = |e: io::Error| StoreError::io(format!("open {location}"), e);
        let root = root.canonicalize().map_err(fail)?;
        let lock = lock_file(&root).map_err(fail)?;
        lock.try_lock_shared().map_err(|e| StoreError::io(format!("open {location}"), format!("it is being repaired ({e})")))?;
        Self::in_folder(root, location, lock)
    }

    /// A folder that exists, for nobody else as long as this lives.
    pub(crate) fn local_alone(root: &FsPath) -> Result<Self, StoreError> {
        let location: Arc<str> = root.display().to_string().into();
        let fail = |e: io::Error| StoreError::io(format!("open {location}"), e);
        let root = root.canonicalize().map_err(fail)?;
        fs::create_dir_all(root.join(TEMPORARY)).map_err(fail)?;
        let lock = lock_file(&root).map_err(fail)?;
        lock.try_lock().map_err(|e| StoreError::io(format!("open {location}"), format!("a node has it open, stop it first ({e})")))?;
        Self::in_folder(root, location, lock)
    }

    fn in_folder(root: PathBuf, location: Arc<str>, lock: File) -> Result<Self, StoreError> {
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|e| StoreError::io(format!("open {location}"), e))?;
        Ok(Self { store: Arc::new(store), local: Some(Arc::new(root)), location, _lock: Some(Arc::new(lock)) })
    }

    /// Any store with conditional put.
    pub(crate) fn remote(store: Arc<dyn ObjectStore>, location: &str) -> Self {
        Self { store, local: None, location: location.into(), _lock: None }
    }

    /// Creates one key twice: the second time must be refused.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        let key = Path::from_iter(["probe".to_owned(), Uuid::new_v4().to_string()]);
        self.create(&key, Bytes::from_static(b"first")).await?;
        let second = self.create(&key, Bytes::from_static(b"second")).await;
        let read = self.get(&key).await?;
        self.delete(&key).await?;
        match (second, read.as_deref()) {
            (Err(StoreError::Exists(_)), Some(b"first")) => Ok(()),
            (Err(error @ (StoreError::Io { .. } | StoreError::Full { .. })), _) => Err(error),
            _ => Err(StoreError::Unsuitable { location: self.location.to_string(), what: "it overwrites a key that exists".to_owned() }),
        }
    }

    /// Creates `key`, durably.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the key exists; nothing is changed then.
    pub(crate) async fn create(&self, key: &Path, data: Bytes) -> Result<(), StoreError> {
        if let Some(root) = &self.local {
            let (root, key) = (Arc::clone(root), key.clone());
            let context = format!("create {key}");
            let done = tokio::task::spawn_blocking(move || create_local(&root, &key, &data)).await;
            return done.map_err(|e| StoreError::io(context, e))?;
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(key, data.into(), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => Err(StoreError::Exists(key.to_string())),
            Err(error) => Err(StoreError::io(format!("create {key}"), error)),
        }
    }

    /// Creates `key` from a file, durably. On the local disk that costs a name and no copy, so `file` must not be written to again.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) async fn create_from(&self, key: &Path, file: &FsPath) -> Result<(), StoreError> {
        let (root, key, file) = (self.local.clone(), key.clone(), file.to_owned());
        let context = format!("create {key}");
        let Some(root) = root else {
            let read = tokio::task::spawn_blocking(move || fs::read(file)).await.map_err(|e| StoreError::io(context.clone(), e))?;
            return self.create(&key, read.map_err(|e| StoreError::io(context, e))?.into()).await;
        };
        let done = tokio::task::spawn_blocking(move || link_local(&root, &key, &file)).await;
        done.map_err(|e| StoreError::io(context, e))?
    }

    /// Puts the content of `key` into `file`, which must not exist, and gives its length and CRC32. `false`: there is no such key.
    pub(crate) async fn fetch(&self, key: &Path, file: &FsPath) -> Result<Option<(u64, u32)>, StoreError> {
        let context = format!("read {key}");
        let Some(root) = self.local.clone() else {
            let Some(data) = self.get(key).await? else { return Ok(None) };
            fs::write(file, &data).map_err(|e| StoreError::io(format!("create {}", file.display()), e))?;
            return Ok(Some((data.len() as u64, crc32fast::hash(&data))));
        };
        let (source, file) = (root.join(key.as_ref()), file.to_owned());
        let done = tokio::task::spawn_blocking(move || match fs::hard_link(&source, &file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !source.exists() => Ok(None),
            Err(error) => Err(error),
            Ok(()) => checksum(&file).map(Some),
        });
        done.await.map_err(|e| StoreError::io(context.clone(), e))?.map_err(|e| StoreError::io(context, e))
    }

    /// The bytes of `key`; `None` when it does not exist.
    pub(crate) async fn get(&self, key: &Path) -> Result<Option<Bytes>, StoreError> {
        match self.store.get(key).await {
            Ok(found) => found.bytes().await.map(Some).map_err(|e| StoreError::io(format!("read {key}"), e)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::io(format!("read {key}"), error)),
        }
    }

    /// Deletes `key`; a key that is gone already is no error.
    pub(crate) async fn delete(&self, key: &Path) -> Result<(), StoreError> {
        match self.store.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::io(format!("delete {key}"), error)),
        }
    }

    /// All keys under `prefix`, sorted.
    pub(crate) async fn list(&self, prefix: &Path) -> Result<Vec<Path>, StoreError> {
        let found: Result<Vec<Path>, _> = self.store.list(Some(prefix)).map_ok(|meta| meta.location).try_collect().await;
        let mut keys = found.map_err(|e| StoreError::io(format!("list {prefix}"), e))?;
        keys.sort();
        Ok(keys)
    }

    /// Names of the folders in `prefix`, sorted.
    pub(crate) async fn folders(&self, prefix: &Path) -> Result<Vec<String>, StoreError> {
        let found = self.store.list_with_delimiter(Some(prefix)).await.map_err(|e| StoreError::io(format!("list {prefix}"), e))?;
        let mut names: Vec<String> = found.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Moves `key` to where nobody looks for it, so that it can still be looked at.
    pub(crate) async fn quarantine(&self, key: &Path) -> Result<(), StoreError> {
        let Some(data) = self.get(key).await? else { return Ok(()) };
        let aside = Path::from_iter(std::iter::once("quarantine".into()).chain(key.parts()));
        match self.create(&aside, data).await {
            Ok(()) | Err(StoreError::Exists(_)) => self.delete(key).await,
            Err(error) => Err(error),
        }
    }

    /// Temporary files of a local store.
    pub(crate) fn temporaries(&self) -> Vec<PathBuf> {
        let folder = self.local.as_ref().map(|root| root.join(TEMPORARY));
        let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        found.sort();
        found
    }

    /// Removes temporary files that a crash may have left for the folder `prefix`.
    pub(crate) fn sweep(&self, prefix: &Path) {
        let Some(root) = &self.local else { return };
        let wanted = format!("{}~", flat(prefix));
        for entry in fs::read_dir(root.join(TEMPORARY)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&wanted) {
                // A file that stays behind costs disk and nothing else.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn lock_file(root: &FsPath) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(root.join("lock"))
}

/// The folder as one file name.
fn flat(folder: &Path) -> String {
    folder.as_ref().replace('/', "~")
}

fn create_local(root: &FsPath, key: &Path, data: &[u8]) -> Result<(), StoreError> {
    let folder = Path::from_iter(key.parts().take(key.parts().count().saturating_sub(1)));
    let temporary = root.join(TEMPORARY).join(format!("{}~{}", flat(&folder), Uuid::new_v4()));
    let written = write_synced(&temporary, data).map_err(|e| StoreError::unwritten(format!("create {key}"), &e));
    let linked = written.and_then(|()| link_local(root, key, &temporary));
    let _ = fs::remove_file(&temporary);
    linked
}

/// Gives `file`, which is synced, the name `key` too.
fn link_local(root: &FsPath, key: &Path, file: &FsPath) -> Result<(), StoreError> {
    let target = root.join(key.as_ref());
    let context = |what: &str| format!("{what} {}", target.display());
    let parent = target.parent().unwrap_or(root);
    create_folders(root, parent).map_err(|e| StoreError::unwritten(context("create folder of"), &e))?;
    // Before the link: without a handle for its fsync there must be no link.
    let folder = File::open(parent).map_err(|e| StoreError::unwritten(context("open folder of"), &e))?;
    match fs::hard_link(file, &target) {
        Ok(()) => folder.sync_all().map_err(|e| StoreError::io(context("sync folder of"), e)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StoreError::Exists(key.to_string())),
        Err(error) => Err(StoreError::unwritten(context("create"), &error)),
    }
}

fn write_synced(path: &FsPath, data: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(data)?;
    file.sync_all()
}

/// Length and CRC32 of a file, without holding it in memory.
fn checksum(file: &FsPath) -> io::Result<(u64, u32)> {
    let (mut file, mut hasher, mut buffer) = (File::open(file)?, crc32fast::Hasher::new(), vec![0; READ]);
    let mut length = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((length, hasher.finalize())),
            read => {
                hasher.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
}

/// Makes `folder` and what is missing above it, each entry durable in its parent.
fn create_folders(root: &FsPath, folder: &FsPath) -> io::Result<()> {
    if folder == root || folder.is_dir() {
        return Ok(());
    }
    let Some(parent) = folder.parent() else { return Ok(()) };
    create_folders(root, parent)?;
    let above = File::open(parent)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => above.sync_all(),
    }
}

/// A name as one path segment: letters, digits, `-`, `_` and inner dots stay, every other byte becomes `=XX`.
pub(crate) fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || (byte == b'.' && i > 0) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("={byte:02X}"));
        }
    }
    out
}

/// The name that [`segment`] made `segment` of.
pub(crate) fn name_of(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex =
            (*first == b'=').then(|| after.get(..2).and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok())).flatten();
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// JSON under a checksum: a first line `fieldstream 1 <crc32> <length>`, then the JSON. Any changed byte is found.
pub(crate) fn seal<T: Serialize>(key: &Path, value: &T) -> Result<Bytes, StoreError> {
    let json = serde_json::to_vec(value).map_err(|e| StoreError::Encode { key: key.to_string(), cause: e.to_string() })?;
    let mut out = header(&json).into_bytes();
    out.extend_from_slice(&json);
    Ok(out.into())
}

fn header(json: &[u8]) -> String {
    format!("fieldstream 1 {:08x} {}\n", crc32fast::hash(json), json.len())
}

/// Reads what [`seal`] wrote.
pub(crate) fn unseal<T: DeserializeOwned>(key: &Path, data: &[u8]) -> Result<T, StoreError> {
    let split = data.iter().position(|b| *b == b'\n').map_or(data.len(), |at| at + 1);
    let (head, json) = data.split_at(split);
    if head != header(json).as_bytes() {
        return Err(StoreError::damaged(key, "checksum or length is wrong"));
    }
    serde_json::from_slice(json).map_err(|e| StoreError::damaged(key, format!("unknown form: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_or_missing_byte_of_a_sealed_file_is_found() {
        let key = Path::from("k");
        let sealed = seal(&key, &serde_json::json!({ "number": 17, "name": "d\u{e9}" })).unwrap().to_vec();
        assert!(unseal::<serde_json::Value>(&key, &sealed).is_ok());
        for at in 0..sealed.len() {
            assert!(unseal::<serde_json::Value>(&key, &sealed[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = sealed.clone();
                flipped[at] ^= 1 << bit;
                assert!(unseal::<serde_json::Value>(&key, &flipped).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_name_becomes_a_segment_and_back() {
        for name in ["plain-1_x.y", ".hidden", "a/b c", "größe=1", ""] {
            let made = segment(name);
            assert!(made.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.=".contains(&b)), "{made}");
            assert_eq!(name_of(&made), name);
        }
    }
}
