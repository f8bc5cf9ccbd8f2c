//! A checkpoint's files: tables as Arrow IPC files, and the manifest that names each with its checksum.
//!
//! Files first, manifest last. The manifest is the commit point: a checkpoint whose manifest does not exist does not exist.

use std::fmt;
use std::io::Cursor;

use arrow::array::RecordBatch;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use bytes::Bytes;
use fieldstream_engine_api::{Generation, Mark, Space};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::cold::ColdSegment;

/// Name of a checkpoint of one partition. A later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointId {
    /// Owner that wrote it.
    pub generation: Generation,
    /// Its number within the generation, from 0.
    pub number: u64,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Padded, so that names sort like ids.
        write!(f, "{:020}-{:020}", self.generation.0, self.number)
    }
}

/// The state of one operator's [`fieldstream_engine_api::KeyedState`], or a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTable {
    /// Name of the operator in YAML.
    pub node: String,
    /// Number of the state in `Operator::states`.
    pub state: u32,
    /// Whose state it is.
    pub space: Space,
    /// Number of the column layout.
    pub layout: u32,
    /// The rows; the first column is `slot`.
    pub rows: RecordBatch,
}

/// Rows that belong to the partition and not to an operator: the names behind the slots, passivated devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Name, such as [`crate::tables::DEVICES`].
    pub name: String,
    /// The rows.
    pub rows: RecordBatch,
}

/// Everything that makes a partition continue where it was.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointData {
    /// Position: everything below it is in the state.
    pub at: Mark,
    /// Digest of the plan that wrote it, so that another plan is noticed.
    pub plan_digest: String,
    /// Names behind slots, and other tables of the partition.
    pub tables: Vec<Table>,
    /// Operator states, in any order; a large state may come as several tables.
    pub states: Vec<StateTable>,
    /// Files of the cold store, oldest first: state of devices that are not among the tables.
    pub cold: Vec<ColdSegment>,
    /// Devices whose state is in the cold store only.
    pub absent: u64,
    /// Small things: clocks, ledger totals, tick numbers.
    pub extras: serde_json::Value,
}

/// A checkpoint read back and verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its name.
    pub id: CheckpointId,
    /// What is in it.
    pub data: CheckpointData,
}

/// A checkpoint whose files are durable, and which is not true yet. Dropping it leaves files that a later prune removes.
#[derive(Debug)]
pub struct PendingCheckpoint {
    pub(crate) manifest: Manifest,
}

impl PendingCheckpoint {
    /// Its position.
    #[must_use]
    pub fn at(&self) -> Mark {
        self.manifest.at
    }

    /// Bytes of its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.manifest.files.iter().map(|f| f.bytes).sum()
    }
}

/// What the manifest file says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) id: CheckpointId,
    pub(crate) at: Mark,
    pub(crate) plan_digest: String,
    pub(crate) files: Vec<FileEntry>,
    #[serde(default)]
    pub(crate) cold: Vec<ColdEntry>,
    #[serde(default)]
    pub(crate) absent: u64,
    pub(crate) extras: serde_json::Value,
}

/// One file of the cold store; several checkpoints may name it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ColdEntry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) crc32: u32,
}

/// One file of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
    pub(crate) rows: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    Table { name: String },
    State { node: String, state: u32, space: SpaceName, layout: u32 },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SpaceName {
    Stateless,
    Device,
    Series,
}

impl From<Space> for SpaceName {
    fn from(space: Space) -> Self {
        match space {
            Space::Stateless => Self::Stateless,
            Space::Device => Self::Device,
            Space::Series => Self::Series,
        }
    }
}

impl From<SpaceName> for Space {
    fn from(space: SpaceName) -> Self {
        match space {
            SpaceName::Stateless => Self::Stateless,
            SpaceName::Device => Self::Device,
            SpaceName::Series => Self::Series,
        }
    }
}

impl CheckpointData {
    /// Position, digest and extras of `manifest`, with no tables yet.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        Self {
            at: manifest.at,
            plan_digest: manifest.plan_digest.clone(),
            tables: Vec::new(),
            states: Vec::new(),
            cold: Vec::new(),
            absent: manifest.absent,
            extras: manifest.extras.clone(),
        }
    }

    /// The tables to be written, one at a time, so that only one is in memory twice.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (Content, &RecordBatch)> {
        let tables = self.tables.iter().map(|t| (Content::Table { name: t.name.clone() }, &t.rows));
        tables.chain(self.states.iter().map(|s| {
            let (node, space) = (s.node.clone(), s.space.into());
            (Content::State { node, state: s.state, space, layout: s.layout }, &s.rows)
        }))
    }

    /// Puts a table back.
    pub(crate) fn add(&mut self, content: &Content, rows: RecordBatch) {
        match content.clone() {
            Content::Table { name } => self.tables.push(Table { name, rows }),
            Content::State { node, state, space, layout } => {
                self.states.push(StateTable { node, state, space: space.into(), layout, rows });
            }
        }
    }

    /// The rows of the table `name`.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&RecordBatch> {
        self.tables.iter().find(|t| t.name == name).map(|t| &t.rows)
    }

    /// The tables of state `state` of the operator `node`, in the order they were saved.
    pub fn states_of<'a>(&'a self, node: &'a str, state: u32) -> impl Iterator<Item = &'a StateTable> {
        self.states.iter().filter(move |s| s.node == node && s.state == state)
    }
}

/// One table as an Arrow IPC file.
pub(crate) fn encode(key: &Path, rows: &RecordBatch) -> Result<Bytes, StoreError> {
    let fail = |e: arrow::error::ArrowError| StoreError::Encode { key: key.to_string(), cause: e.to_string() };
    let mut out = Vec::with_capacity(rows.get_array_memory_size() + 4096);
    let mut writer = FileWriter::try_new(&mut out, rows.schema_ref()).map_err(fail)?;
    writer.write(rows).map_err(fail)?;
    writer.finish().map_err(fail)?;
    drop(writer);
    Ok(out.into())
}

/// Reads what [`encode`] wrote, after checking it against the manifest's entry.
pub(crate) fn decode(key: &Path, entry: &FileEntry, data: Bytes) -> Result<RecordBatch, StoreError> {
    if data.len() as u64 != entry.bytes {
        return Err(StoreError::damaged(key, format!("it has {} bytes instead of {}", data.len(), entry.bytes)));
    }
    if crc32fast::hash(&data) != entry.crc32 {
        return Err(StoreError::damaged(key, "its checksum is wrong"));
    }
    let fail = |e: arrow::error::ArrowError| StoreError::damaged(key, e.to_string());
    let mut reader = FileReader::try_new(Cursor::new(data), None).map_err(fail)?;
    match reader.next() {
        Some(rows) => rows.map_err(fail),
        None => Ok(RecordBatch::new_empty(reader.schema())),
    }
}
