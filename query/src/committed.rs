//! A view of a store's directory that holds committed files only, and that nobody can change.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path as FsPath, PathBuf};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde_json::Value;

use crate::QueryError;

/// Files whose size is asked for at the same time.
const AT_ONCE: usize = 32;

/// The committed files of one store.
#[derive(Debug)]
pub(crate) struct Committed {
    objects: std::sync::Arc<LocalFileSystem>,
    pub(crate) files: BTreeSet<Path>,
}

impl fmt::Display for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} committed files", self.files.len())
    }
}

impl Committed {
    /// Reads the commits of the store at `root`.
    pub(crate) fn read(root: &FsPath) -> std::result::Result<Self, QueryError> {
        let failed = |e: &dyn fmt::Display| QueryError::store(format!("read the store {}", root.display()), e);
        let objects = LocalFileSystem::new_with_prefix(root).map_err(|e| failed(&e))?;
        let mut commits = Vec::new();
        walk(&root.join("commits"), &mut commits).map_err(|e| failed(&e))?;
        let mut files = BTreeSet::new();
        for commit in commits {
            let bytes = fs::read(&commit).map_err(|e| failed(&e))?;
            // A commit that a loss of power cut was never told of: its rows come again.
            let Ok(commit) = serde_json::from_slice::<Value>(&bytes) else { continue };
            let names = commit["files"].as_array().into_iter().flatten().filter_map(Value::as_str);
            files.extend(names.filter_map(|name| Path::parse(name).ok()));
        }
        Ok(Self { objects: std::sync::Arc::new(objects), files })
    }

    /// Directories of the inputs that have rows.
    pub(crate) fn inputs(&self) -> BTreeSet<String> {
        self.files.iter().filter_map(|file| Some(file.parts().next()?.as_ref().to_owned())).collect()
    }
}

/// All `.json` files below a directory.
fn walk(directory: &FsPath, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, out)?;
        } else if path.extension().is_some_and(|ending| ending == "json") {
            out.push(path);
        }
    }
    Ok(())
}

fn refused<T>(operation: &str) -> Result<T> {
    Err(Error::NotImplemented { operation: operation.to_owned(), implementer: "a store that is only read".to_owned() })
}

#[async_trait]
impl ObjectStore for Committed {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        refused("put")
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        refused("put")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if self.files.contains(location) {
            return self.objects.get_opts(location, options).await;
        }
        Err(Error::NotFound { path: location.to_string(), source: "it is not committed".into() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations.map(|_| refused("delete")).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let wanted = |file: &&Path| prefix.is_none_or(|prefix| file.prefix_matches(prefix));
        let files: Vec<Path> = self.files.iter().filter(wanted).cloned().collect();
        let objects = std::sync::Arc::clone(&self.objects);
        // A committed file that is gone is an error: an answer without its rows would be wrong.
        let head = move |file: Path| {
            let objects = std::sync::Arc::clone(&objects);
            async move { objects.head(&file).await }
        };
        stream::iter(files).map(head).buffered(AT_ONCE).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        refused("list with delimiter")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        refused("copy")
    }
}
