//! A partition's state as files that any Arrow tool reads, with names instead of slots.

use std::fs;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Field, Schema};
use fieldstream_engine_api::Space;
use object_store::path::Path;

use crate::objects::segment;
use crate::snapshot::encode;
use crate::store::PartitionStore;
use crate::tables::{DEVICES, SERIES, number, text};
use crate::{CheckpointData, CheckpointId, StoreError};

/// Who has a slot.
struct Names {
    columns: Vec<(&'static str, StringArray)>,
    /// Row in the columns by slot.
    rows: Vec<Option<u32>>,
}

impl Names {
    fn new(slots: &UInt32Array, columns: Vec<(&'static str, StringArray)>) -> Self {
        let mut rows = vec![None; slots.values().iter().max().map_or(0, |most| *most as usize + 1)];
        for (row, slot) in (0..).zip(slots.values()) {
            if let Some(place) = rows.get_mut(*slot as usize) {
                *place = Some(row);
            }
        }
        Self { columns, rows }
    }

    fn row(&self, slot: u32) -> Option<u32> {
        self.rows.get(slot as usize).copied().flatten()
    }

    /// `rows` with names in the place of their first column, the slot.
    fn put_into(&self, rows: &RecordBatch) -> Result<RecordBatch, String> {
        let slots = number(rows, "slot")?;
        let places: UInt32Array = slots.values().iter().map(|slot| self.row(*slot)).collect();
        let (mut fields, mut columns): (Vec<Field>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
        for (name, values) in &self.columns {
            let column = take(values, &places, None).map_err(|e| e.to_string())?;
            fields.push(Field::new(*name, column.data_type().clone(), true));
            columns.push(column);
        }
        let schema = rows.schema();
        fields.extend(schema.fields().iter().skip(1).map(|field| field.as_ref().clone()));
        columns.extend(rows.columns().iter().skip(1).cloned());
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| e.to_string())
    }
}

fn names(data: &CheckpointData) -> Result<(Names, Names), String> {
    let table = |name: &str| data.table(name).ok_or_else(|| format!("table {name} is missing"));
    let (devices, series) = (table(DEVICES)?, table(SERIES)?);
    let devices = Names::new(&number(devices, "slot")?, vec![("device_id", text(devices, "device_id")?)]);
    let parents: UInt32Array = number(series, "device_slot")?.values().iter().map(|slot| devices.row(*slot)).collect();
    let Some((_, ids)) = devices.columns.first() else { return Err("there are no names".to_owned()) };
    let owners = take(ids, &parents, None).map_err(|e| e.to_string())?;
    let owners = owners.as_any().downcast_ref::<StringArray>().cloned().ok_or("device_id is no text")?;
    let columns = vec![("device_id", owners), ("sensor_id", text(series, "sensor_id")?)];
    Ok((devices, Names::new(&number(series, "slot")?, columns)))
}

impl PartitionStore {
    /// Writes checkpoint `id` into `folder`: `<operator>-<number>.arrow` for each state, `activity.arrow`, `devices.arrow`, the files of
    /// passivated devices under `cold/`, and `checkpoint.json`. Gives what it wrote.
    ///
    /// # Errors
    /// If the checkpoint cannot be read, or the folder cannot be written.
    pub async fn export(&self, id: CheckpointId, folder: &FsPath) -> Result<Vec<PathBuf>, StoreError> {
        let (data, _) = self.load(id, None).await?;
        let misfit = |what: String| StoreError::damaged(&self.at("manifests", &id.to_string()), what);
        let (devices, series) = names(&data).map_err(misfit)?;
        let mut files: Vec<(String, RecordBatch)> = Vec::new();
        for table in data.tables.iter().filter(|t| t.name != SERIES) {
            let rows = if table.name == DEVICES { series_of(&data) } else { devices.put_into(&table.rows) };
            files.push((segment(&table.name), rows.map_err(misfit)?));
        }
        for state in &data.states {
            let names = if state.space == Space::Series { &series } else { &devices };
            let alike = files.iter().filter(|(name, _)| name.starts_with(&format!("{}-{}", segment(&state.node), state.state))).count();
            let more = if alike > 0 { format!("-{alike}") } else { String::new() };
            files.push((format!("{}-{}{more}", segment(&state.node), state.state), names.put_into(&state.rows).map_err(misfit)?));
        }
        let io = |path: &FsPath, e: std::io::Error| StoreError::io(format!("write {}", path.display()), e);
        fs::create_dir_all(folder.join("cold")).map_err(|e| io(folder, e))?;
        let mut written = Vec::with_capacity(files.len() + 1);
        for (name, rows) in files {
            let path = folder.join(format!("{name}.arrow"));
            let bytes = encode(&Path::from(name), &rows)?;
            fs::write(&path, bytes).map_err(|e| io(&path, e))?;
            written.push(path);
        }
        let manifest = self.manifest(id).await?;
        for entry in &manifest.cold {
            let path = folder.join("cold").join(segment(&entry.name));
            let bytes = self.cold_bytes(entry).await?;
            fs::write(&path, bytes).map_err(|e| io(&path, e))?;
            written.push(path);
        }
        let about = folder.join("checkpoint.json");
        let text = serde_json::json!({
            "partition": self.key, "checkpoint": crate::list::short(id), "at": data.at, "plan_digest": data.plan_digest,
            "passivated": data.absent, "extras": data.extras,
        });
        fs::write(&about, format!("{text:#}\n")).map_err(|e| io(&about, e))?;
        written.push(about);
        Ok(written)
    }
}

/// Every series with its device: the table of devices, in which those without a series stand with a null.
fn series_of(data: &CheckpointData) -> Result<RecordBatch, String> {
    let (devices, series) = names(data)?;
    let mut rows: Vec<(&str, Option<&str>)> = Vec::new();
    let (ids, owners, sensors) = match (devices.columns.as_slice(), series.columns.as_slice()) {
        ([(_, ids)], [(_, owners), (_, sensors)]) => (ids, owners, sensors),
        _ => return Err("there are no names".to_owned()),
    };
    rows.extend(owners.iter().zip(sensors.iter()).filter_map(|(owner, sensor)| Some((owner?, sensor))));
    let known: std::collections::HashSet<&str> = owners.iter().flatten().collect();
    rows.extend(ids.iter().flatten().filter(|id| !known.contains(id)).map(|id| (id, None)));
    rows.sort_unstable();
    let ids: ArrayRef = Arc::new(rows.iter().map(|(id, _)| Some(*id)).collect::<StringArray>());
    let sensors: ArrayRef = Arc::new(rows.iter().map(|(_, sensor)| *sensor).collect::<StringArray>());
    RecordBatch::try_from_iter_with_nullable([("device_id", ids, false), ("sensor_id", sensors, true)]).map_err(|e| e.to_string())
}
