//! The `parquet` sink itself: options, ownership and commits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fieldstream_engine_api::{
    Built, Committed, ConfigError, ConnectContext, Generation, Guarantee, Mark, PartitionKey, Sink, SinkBatch, SinkError, SinkInput,
    SinkKind,
};
use fieldstream_schemas::columns::{TS, time_type};
use object_store::path::Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::chain::{self, COMMITS, Commit};
use super::files::{by_day, day_name, encode};
use super::store::{Store, fatal, segment};
use crate::options;

/// Tries to take a partition that others take at the same time.
const TAKES: usize = 16;

/// The catalogue line of the `parquet` sink.
pub const KIND: SinkKind = SinkKind {
    name: "parquet",
    about: "Directory of Parquet files by input and day, for `fieldstream query` and others. Exactly once.",
    schema: || schemars::schema_for!(Options).to_value(),
    check: |value, inputs| read_options(value, inputs).map(|_| Guarantee::ExactlyOnce),
    place: |value| read_options(value, &[]).ok().map(|plan| plan.root),
    build,
};

/// Options of the `parquet` sink.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Directory of the store, as a path or `file:///...`; made if need be. Each sink needs its own.
    #[serde(alias = "path")]
    url: String,
    /// True: a run that starts anew removes the rows of earlier runs. For finite inputs that are read again and again.
    #[serde(default)]
    replace: bool,
}

/// Checked options.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    root: PathBuf,
    replace: bool,
}

pub(super) fn read_options(value: &Value, inputs: &[SinkInput]) -> Built<Plan> {
    let options: Options = options::parse(value)?;
    let mut errors = Vec::new();
    let root = options.url.strip_prefix("file://").unwrap_or(&options.url);
    if root.is_empty() || root.contains("://") {
        let error = ConfigError::new("/url", format!("`{}` is no directory on this machine", options.url));
        errors.push(error.hint("write a path such as ./store/readings"));
    }
    for input in inputs {
        if input.edge.schema.field_with_name(TS).map_or(true, |f| *f.data_type() != time_type()) {
            let error = ConfigError::new("", format!("rows go by day, but `{}` has no column `{TS}`", input.name));
            errors.push(error.hint(format!("keep `{TS}` in the operators before")));
        }
        if &*input.name == COMMITS {
            errors.push(ConfigError::new("", format!("an input cannot be called `{COMMITS}`: the store has a directory of that name")));
        }
    }
    if errors.is_empty() { Ok(Plan { root: PathBuf::from(root), replace: options.replace }) } else { Err(errors) }
}

fn build(value: &Value, inputs: &[SinkInput], context: &ConnectContext) -> Built<Box<dyn Sink>> {
    Ok(Box::new(ParquetSink::new(read_options(value, inputs)?, inputs, context)))
}

/// Whose the directory is; lies in it as `store.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    version: u32,
    pipeline: Arc<str>,
    sink: Arc<str>,
}

/// A partition of ours.
#[derive(Clone, Debug)]
struct Owned {
    generation: Generation,
    /// Number of the last commit.
    number: u64,
    mark: Option<Mark>,
    delivered: u64,
    /// True when the last commit was not told of, because another partition's failed.
    untold: bool,
}

impl Owned {
    fn committed(&self, partition: &PartitionKey) -> Option<Committed> {
        let told = |mark| Committed { partition: partition.clone(), mark, delivered: self.delivered, refused: 0 };
        self.mark.map(told)
    }
}

pub(super) struct ParquetSink {
    plan: Plan,
    marker: Marker,
    inputs: Vec<String>,
    /// True when rows of earlier runs are to be removed once.
    fresh: bool,
    store: Option<Arc<Store>>,
    owned: BTreeMap<PartitionKey, Owned>,
}

impl ParquetSink {
    pub(super) fn new(plan: Plan, inputs: &[SinkInput], context: &ConnectContext) -> Self {
        Self {
            fresh: plan.replace && !context.resume,
            plan,
            marker: Marker { version: 1, pipeline: Arc::clone(&context.pipeline), sink: Arc::clone(&context.node) },
            inputs: inputs.iter().map(|input| segment(&input.name)).collect(),
            store: None,
            owned: BTreeMap::new(),
        }
    }

    /// The directory; the first call makes sure that it is ours.
    async fn store(&mut self) -> Result<Arc<Store>, SinkError> {
        if let Some(store) = &self.store {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(Store::open(&self.plan.root)?);
        let key = Path::from("store.json");
        let context = || format!("open the store {}", self.plan.root.display());
        let bytes = serde_json::to_vec(&self.marker).map_err(|e| fatal(context(), &e))?;
        if !store.create(&key, Bytes::from(bytes)).await? {
            let found = store.get(&key).await?.unwrap_or_default();
            let found: Marker = serde_json::from_slice(&found).map_err(|e| fatal(context(), &format!("{key} cannot be read: {e}")))?;
            if found != self.marker {
                let cause = format!(
                    "it belongs to sink `{}` of pipeline `{}` (version {}): give every sink a directory of its own",
                    found.sink, found.pipeline, found.version
                );
                return Err(fatal(context(), &cause));
            }
        }
        self.store = Some(Arc::clone(&store));
        Ok(store)
    }

    fn commit_of(&self, partition: &PartitionKey, owned: &Owned) -> Commit {
        Commit {
            pipeline: Arc::clone(&self.marker.pipeline),
            sink: Arc::clone(&self.marker.sink),
            log_id: partition.log_id.clone(),
            partition: partition.partition,
            generation: owned.generation,
            from: owned.mark,
            to: owned.mark,
            delivered: owned.delivered,
            files: Vec::new(),
        }
    }

    /// Takes the next number of the chain with a commit of no files: from then on no earlier owner can commit.
    async fn take(&self, store: &Store, partition: &PartitionKey, generation: Generation) -> Result<Owned, SinkError> {
        for _ in 0..TAKES {
            let end = chain::end(store, partition).await?;
            let mut owned = Owned { generation, number: end.number + 1, mark: None, delivered: 0, untold: false };
            if let Some(commit) = end.commit {
                if commit.generation > generation {
                    return Err(SinkError::Fenced { partition: partition.clone(), owner: commit.generation });
                }
                (owned.mark, owned.delivered) = (commit.to, commit.delivered);
            }
            if chain::append(store, partition, owned.number, &self.commit_of(partition, &owned)).await? {
                return Ok(owned);
            }
        }
        Err(super::store::retry(format!("take partition {partition}"), &"others keep taking it"))
    }

    /// Commits one batch; the answer to a commit that was made but not told of is given again.
    async fn commit_one(&mut self, store: &Store, batch: &SinkBatch) -> Result<(), SinkError> {
        let partition = &batch.partition;
        let Some(owned) = self.owned.get(partition) else {
            return Err(fatal("commit".to_owned(), &format!("partition {partition} was not opened")));
        };
        if owned.untold && owned.mark.is_some_and(|mark| mark >= batch.complete_to) {
            return Ok(());
        }
        let mut next = owned.clone();
        next.number += 1;
        let mut commit = self.commit_of(partition, owned);
        commit.to = Some(owned.mark.map_or(batch.complete_to, |mark| mark.max(batch.complete_to)));
        commit.delivered += batch.rows.iter().map(|part| part.batch.len() as u64).sum::<u64>();
        commit.files = self.write_files(store, batch, next.number).await?;
        if !chain::append(store, partition, next.number, &commit).await? {
            let lost = commit.files.clone();
            commit = taken(store, &next, batch).await?;
            for file in lost.iter().filter(|file| !commit.files.contains(file)) {
                store.delete(&Path::from(file.as_str())).await?;
            }
        }
        (next.mark, next.delivered, next.untold) = (commit.to, commit.delivered, true);
        self.owned.insert(partition.clone(), next);
        Ok(())
    }

    async fn write_files(&self, store: &Store, batch: &SinkBatch, number: u64) -> Result<Vec<String>, SinkError> {
        let PartitionKey { log_id, partition, .. } = &batch.partition;
        let failed = |e: &dyn std::fmt::Display| fatal("write Parquet".to_owned(), e);
        let rows = batch.rows.clone();
        let encoded = spawn_blocking(move || {
            let days = by_day(&rows)?.into_iter();
            days.map(|(place, batches)| Ok((place, encode(&batches)?))).collect::<Result<Vec<_>, parquet::errors::ParquetError>>()
        });
        let encoded = encoded.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        let mut files = Vec::with_capacity(encoded.len());
        for ((input, day), bytes) in encoded {
            let input = self.inputs.get(input).ok_or_else(|| failed(&format!("there is no input {input}")))?;
            // The random part keeps the file of an owner that was pushed out from that of the new one.
            let name = format!("{}-{partition}-{number:010}-{}.parquet", segment(&log_id.0), Uuid::new_v4().simple());
            let key = Path::from_iter([input.clone(), day_name(day), name]);
            store.create(&key, Bytes::from(bytes)).await?;
            files.push(key.to_string());
        }
        Ok(files)
    }
}

/// What the chain holds where a commit of ours found its number taken: its own earlier self, or a newer owner.
async fn taken(store: &Store, ours: &Owned, batch: &SinkBatch) -> Result<Commit, SinkError> {
    let partition = &batch.partition;
    match chain::read(store, partition, ours.number).await? {
        Some(found) if found.generation > ours.generation => {
            Err(SinkError::Fenced { partition: partition.clone(), owner: found.generation })
        }
        Some(found) if found.generation == ours.generation && found.to.is_some_and(|to| to >= batch.complete_to) => Ok(found),
        _ => Err(fatal(format!("commit partition {partition}"), &format!("commit {} was made by somebody else: start again", ours.number))),
    }
}

/// Removes the files of a partition from `number` on: none of them was committed.
async fn sweep(store: &Store, partition: &PartitionKey, number: u64) -> Result<(), SinkError> {
    let prefix = format!("{}-{}-", segment(&partition.log_id.0), partition.partition);
    for key in store.list(None).await? {
        let of_ours = key.filename().and_then(|name| name.strip_prefix(&prefix)).and_then(|rest| rest.split('-').next());
        if of_ours.and_then(|found| found.parse::<u64>().ok()).is_some_and(|found| found >= number) {
            tracing::info!(file = %key, "removed a file that was never committed");
            store.delete(&key).await?;
        }
    }
    Ok(())
}

/// Removes the rows of earlier runs, unless this run's log has some already. Commits go first: without them files are nothing.
async fn replace(store: &Store, log: &str) -> Result<(), SinkError> {
    let keys = store.list(None).await?;
    let ours = Path::from_iter([COMMITS.to_owned(), segment(log)]);
    if keys.iter().any(|key| key.prefix_matches(&ours)) {
        return Ok(());
    }
    let is_commit = |key: &&Path| key.prefix_matches(&Path::from(COMMITS));
    for key in keys.iter().filter(is_commit) {
        store.delete(key).await?;
    }
    for key in keys.iter().filter(|key| key.extension() == Some("parquet")) {
        store.delete(key).await?;
    }
    Ok(())
}

#[async_trait]
impl Sink for ParquetSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, partition: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        let store = self.store().await?;
        if self.fresh {
            replace(&store, &partition.log_id.0).await?;
            self.fresh = false;
        }
        let owned = self.take(&store, partition, generation).await?;
        sweep(&store, partition, owned.number).await?;
        let committed = owned.committed(partition);
        self.owned.insert(partition.clone(), owned);
        Ok(committed)
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let store = self.store().await?;
        for batch in batches {
            self.commit_one(&store, batch).await?;
        }
        let mut done = Vec::with_capacity(batches.len());
        for batch in batches {
            if let Some(owned) = self.owned.get_mut(&batch.partition) {
                owned.untold = false;
                done.extend(owned.committed(&batch.partition));
            }
        }
        Ok(done)
    }
}
