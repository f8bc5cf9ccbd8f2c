//! A checkpoint's files: tables as Arrow IPC files, and the manifest that names each with its checksum.
//!
//! Files first, manifest last. The manifest is the commit point: a checkpoint whose manifest does not exist does not exist.

use std::fmt;
use std::io::Cursor;

use arrow::array::{Array as _, ArrayRef, RecordBatch};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use bytes::Bytes;
use fieldstream_engine_api::{Generation, Mark, Space};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::cold::ColdSegment;

/// Bytes that a file takes without any rows.
const FILE_OVERHEAD: u64 = 1024;

/// Name of a checkpoint of one partition. A later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointId {
    /// Owner that wrote it.
    pub generation: Generation,
    /// Its number within the generation, from 0.
    pub number: u64,
}

impl std::str::FromStr for CheckpointId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('-').and_then(|(generation, number)| Some((generation.parse().ok()?, number.parse().ok()?)));
        let (generation, number) = numbers.ok_or("a checkpoint's name is two numbers, as `checkpoint ls` prints them: 3-17")?;
        Ok(Self { generation: Generation(generation), number })
    }
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
    /// True when tables and states hold only devices that changed since the snapshot before; the others are in the layers
    /// below. See [`crate::layers`].
    pub delta: bool,
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

    /// Bytes of the files it has written; those of the layers below are older.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.manifest.layers.last().map_or(0, Layer::bytes)
    }

    /// Its layers, oldest first: the next delta lies over them.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.manifest.layers
    }
}

/// Files with the state of the devices that had changed, written with one checkpoint and named by later ones, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The checkpoint it was written with.
    pub(crate) id: CheckpointId,
    pub(crate) files: Vec<FileEntry>,
}

impl Layer {
    /// Bytes of its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// Devices in it.
    #[must_use]
    pub fn devices(&self) -> u64 {
        let devices = |file: &&FileEntry| matches!(&file.content, Content::Table { name } if name == crate::tables::DEVICES);
        self.files.iter().filter(devices).map(|file| file.rows).sum()
    }
}

/// What the manifest file says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) id: CheckpointId,
    pub(crate) at: Mark,
    pub(crate) plan_digest: String,
    /// The one layer of a checkpoint that was written before there were several. No longer written: a program from then
    /// misses it and says so, where it would else take one layer for everything.
    #[serde(default, skip_serializing)]
    files: Vec<FileEntry>,
    /// Oldest first. The newest row of a device counts.
    #[serde(default)]
    pub(crate) layers: Vec<Layer>,
    #[serde(default)]
    pub(crate) cold: Vec<ColdEntry>,
    #[serde(default)]
    pub(crate) absent: u64,
    pub(crate) extras: serde_json::Value,
}

impl Manifest {
    pub(crate) fn new(id: CheckpointId, data: &CheckpointData, layers: Vec<Layer>, cold: Vec<ColdEntry>) -> Self {
        let (plan_digest, extras) = (data.plan_digest.clone(), data.extras.clone());
        Self { id, at: data.at, plan_digest, files: Vec::new(), layers, cold, absent: data.absent, extras }
    }

    /// Brings the old form into the new one.
    pub(crate) fn modern(mut self) -> Self {
        let files = std::mem::take(&mut self.files);
        if self.layers.is_empty() && !files.is_empty() {
            self.layers.push(Layer { id: self.id, files });
        }
        self
    }
}

/// One file of the cold store; several checkpoints may name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ColdEntry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) crc32: u32,
}

/// One file of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
    pub(crate) rows: u64,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    Table { name: String },
    State { node: String, state: u32, space: SpaceName, layout: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Tables and states without anything around them: one layer, or several laid over each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tables {
    pub(crate) tables: Vec<Table>,
    pub(crate) states: Vec<StateTable>,
}

impl Tables {
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
    pub(crate) fn table(&self, name: &str) -> Option<&RecordBatch> {
        self.tables.iter().find(|t| t.name == name).map(|t| &t.rows)
    }

    /// About how many bytes its files will have.
    pub(crate) fn bytes(&self) -> u64 {
        // Buffers may be larger than what is in them.
        let column = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default() as u64;
        self.contents().map(|(_, rows)| FILE_OVERHEAD + rows.columns().iter().map(column).sum::<u64>()).sum()
    }
}

impl CheckpointData {
    /// What `manifest` says, with the tables of its layers.
    pub(crate) fn of(manifest: &Manifest, tables: Tables) -> Self {
        let Tables { tables, states } = tables;
        Self {
            at: manifest.at,
            plan_digest: manifest.plan_digest.clone(),
            tables,
            states,
            cold: Vec::new(),
            absent: manifest.absent,
            delta: false,
            extras: manifest.extras.clone(),
        }
    }

    pub(crate) fn layer(&self) -> Tables {
        Tables { tables: self.tables.clone(), states: self.states.clone() }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{StringArray, UInt32Array};

    use super::*;

    #[test]
    fn every_changed_or_missing_byte_of_a_table_is_found() {
        let key = Path::from("k");
        let slots: ArrayRef = Arc::new(UInt32Array::from(vec![0, 1]));
        let names: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        let bytes = encode(&key, &RecordBatch::try_from_iter([("slot", slots), ("name", names)]).unwrap()).unwrap();
        let content = Content::Table { name: "t".into() };
        let entry = FileEntry { name: "t".into(), bytes: bytes.len() as u64, crc32: crc32fast::hash(&bytes), rows: 2, content };
        assert_eq!(decode(&key, &entry, bytes.clone()).unwrap().num_rows(), 2);
        for at in 0..bytes.len() {
            assert!(decode(&key, &entry, bytes.slice(..at)).is_err(), "cut at {at}");
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << (at % 8);
            assert!(decode(&key, &entry, flipped.into()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_manifest_of_one_layer_without_a_name_is_read() {
        let old = r#"{"id":{"generation":2,"number":5},"at":{"next_offset":7,"next_decision":1},"plan_digest":"d",
            "files":[{"name":"00000.arrow","bytes":10,"crc32":3,"rows":1,"content":{"table":{"name":"devices"}}}],"extras":null}"#;
        let manifest = serde_json::from_str::<Manifest>(old).unwrap().modern();
        let [layer] = manifest.layers.as_slice() else { panic!("one layer: {:?}", manifest.layers) };
        assert_eq!((layer.id, layer.bytes(), layer.devices()), (manifest.id, 10, 1));
        assert!(serde_json::to_value(&manifest).unwrap().get("files").is_none(), "the old form is not written");
    }
}
