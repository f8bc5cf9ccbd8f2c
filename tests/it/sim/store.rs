//! The simulated object store: one store in memory, seen by each process through its own failing connection.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

use super::mutants::Mutant;
use super::process::Process;

/// A process's connection to the store.
pub(super) struct SimStore {
    process: Arc<Process>,
    inner: Arc<InMemory>,
}

impl SimStore {
    pub(super) fn connect(process: &Arc<Process>) -> Arc<Self> {
        Arc::new(Self { process: Arc::clone(process), inner: Arc::clone(&process.world.objects) })
    }

    fn failure(what: &'static str) -> Error {
        Error::Generic { store: "simulated", source: what.into() }
    }

    /// On the way to the store: it may fail there.
    async fn there(process: &Process, key: &Path) -> Result<()> {
        process.way().await;
        let fails = !is_probe(key) && process.world.strikes(process.world.faults.store_fails);
        if fails { Err(Self::failure("the store failed")) } else { Ok(()) }
    }

    /// On the way back: the answer may be lost.
    async fn back<T>(process: &Process, key: &Path, answer: Result<T>) -> Result<T> {
        process.way().await;
        let mute = !is_probe(key) && process.world.strikes(process.world.faults.store_mute);
        if mute { Err(Self::failure("the answer was lost")) } else { answer }
    }

    async fn put(&self, key: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let world = &self.process.world;
        if world.is(Mutant::StoreOverwrites) && !is_probe(key) {
            options.mode = PutMode::Overwrite;
        }
        let put = self.inner.put_opts(key, payload.clone(), options).await;
        if !is_probe(key) {
            world.note(format_args!("{} puts {key}: {}", self.process.name, if put.is_ok() { "done" } else { "refused" }));
        }
        let kind = key.as_ref().split('/').next();
        if put.is_ok() && matches!(kind, Some("decisions" | "adoptions")) {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            // With a store that overwrites, what was there first has had its effects.
            let _ = world.history.put_opts(key, payload, options).await;
        }
        put
    }
}

/// The key of a store's probe at its opening: its name is random, so that nothing about it may show in the trace.
fn is_probe(key: &Path) -> bool {
    key.as_ref().starts_with("probe/")
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated")
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.process.world.is(Mutant::DecisionsLater) && key.as_ref().starts_with("decisions/") {
            let (late, key) = (Self { process: Arc::clone(&self.process), inner: Arc::clone(&self.inner) }, key.clone());
            tokio::spawn(async move {
                late.process.world.pause(500, 5_000).await;
                late.process.alive().await;
                let _ = late.put(&key, payload, options).await;
            });
            return Ok(PutResult { e_tag: None, version: None });
        }
        Self::there(&self.process, key).await?;
        let put = self.put(key, payload, options).await;
        Self::back(&self.process, key, put).await
    }

    async fn put_multipart_opts(&self, key: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotSupported { source: format!("{key} in parts").into() })
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        Self::there(&self.process, key).await?;
        if !is_probe(key) {
            self.process.world.note(format_args!("{} gets {key}", self.process.name));
        }
        let got = self.inner.get_opts(key, options).await;
        self.process.way().await;
        got
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (process, inner) = (Arc::clone(&self.process), Arc::clone(&self.inner));
        let delete = move |key: Result<Path>| {
            let (process, inner) = (Arc::clone(&process), Arc::clone(&inner));
            async move {
                let key = key?;
                Self::there(&process, &key).await?;
                if !is_probe(&key) {
                    process.world.note(format_args!("{} deletes {key}", process.name));
                }
                let deleted: Vec<_> = inner.delete_stream(stream::iter([Ok(key.clone())]).boxed()).collect().await;
                let deleted = deleted.into_iter().next().unwrap_or_else(|| Err(Self::failure("nothing was deleted")));
                Self::back(&process, &key, deleted).await
            }
        };
        keys.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (process, inner, prefix) = (Arc::clone(&self.process), Arc::clone(&self.inner), prefix.cloned());
        let listed = async move {
            if let Err(error) = Self::there(&process, prefix.as_ref().unwrap_or(&Path::default())).await {
                return stream::iter(vec![Err(error)]);
            }
            if let Some(prefix) = &prefix {
                process.world.note(format_args!("{} lists {prefix}", process.name));
            }
            let forgets =
                process.world.is(Mutant::ReplaysWithoutDecisions) && prefix.as_ref().is_some_and(|p| p.as_ref().starts_with("decisions"));
            let found: Vec<_> = if forgets { Vec::new() } else { inner.list(prefix.as_ref()).collect().await };
            process.way().await;
            stream::iter(found)
        };
        stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        Self::there(&self.process, prefix.unwrap_or(&Path::default())).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        Self::there(&self.process, from).await?;
        self.inner.copy_opts(from, to, options).await
    }
}
