//! Who the journal is: its id, and how devices were spread when it was made.

use std::fs;
use std::io;
use std::path::Path;

use fieldstream_engine_api::LogId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::segment::{replace_sealed, unsealed};
use fieldstream_engine_api::partitioner;

const FILE: &str = "journal.json";
const FORMAT: u32 = 1;

/// `journal.json`: written once, when the journal is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    format: u32,
    #[serde(serialize_with = "write_id", deserialize_with = "read_id")]
    pub(crate) id: Uuid,
    pub(crate) partitions: u32,
    hash: String,
}

fn write_id<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn read_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

impl Identity {
    /// Reads it, or makes a new journal with `partitions`.
    pub(crate) fn open(folder: &Path, partitions: u32) -> io::Result<Self> {
        let text = match fs::read(folder.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::create(folder, partitions),
            Err(error) => return Err(error),
        };
        let identity: Self =
            serde_json::from_slice(unsealed(FILE, &text)?).map_err(|e| io::Error::other(format!("{FILE} is damaged: {e}")))?;
        if identity.format != FORMAT || identity.hash != partitioner::NAME || identity.partitions == 0 {
            let Self { format, hash, partitions, .. } = &identity;
            let what = format!("{FILE} has format {format}, hash {hash} and {partitions} partitions, which this program cannot read");
            return Err(io::Error::other(what));
        }
        // 0: whoever only looks wants no number.
        if identity.partitions != partitions && partitions > 0 {
            let recorded = identity.partitions;
            tracing::warn!(recorded, wanted = partitions, "the journal keeps the partition count it was made with");
        }
        Ok(identity)
    }

    fn create(folder: &Path, partitions: u32) -> io::Result<Self> {
        let identity = Self { format: FORMAT, id: Uuid::new_v4(), partitions: partitions.max(1), hash: partitioner::NAME.to_owned() };
        replace_sealed(folder, FILE, &serde_json::to_vec_pretty(&identity)?)?;
        Ok(identity)
    }

    /// Reads it; `None` when there is no journal.
    pub(crate) fn look(folder: &Path) -> io::Result<Option<Self>> {
        if folder.join(FILE).exists() { Self::open(folder, 0).map(Some) } else { Ok(None) }
    }

    /// The id under which pipelines know the log.
    pub(crate) fn log_id(&self) -> LogId {
        LogId(self.id.to_string().into())
    }

    /// Start value of all checksums.
    pub(crate) fn seed(&self) -> u32 {
        crc32fast::hash(self.id.as_bytes())
    }
}
