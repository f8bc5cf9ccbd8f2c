//! A device actor, to look at.

use arrow::array::RecordBatch;
use fieldstream_engine_api::Space;
use fieldstream_schemas::encode::JsonWriter;

use super::Partition;
use crate::passivation::Actors;

impl Partition {
    /// What is known of a device actor; `None` when there is none. Looking at a passivated device brings it into memory.
    pub fn inspect(&mut self, device: &str) -> Option<serde_json::Value> {
        if let Some(passivation) = &mut self.passivation
            && self.slots.find_device(device).is_none()
        {
            let mut actors = Actors { graph: &mut self.graph, slots: &mut self.slots, time: &mut self.time, changes: &mut self.changes };
            passivation.wake_one(device, &mut actors).ok()?;
        }
        let slot = self.slots.find_device(device)?;
        let series: Vec<u32> = self.slots.series_of(slot).collect();
        let sensors: serde_json::Map<String, serde_json::Value> =
            series.iter().map(|s| (self.slots.sensor_name(*s).to_owned(), serde_json::json!({ "slot": s }))).collect();
        let mut state = serde_json::Map::new();
        self.graph.for_each_state(|node, number, keyed| {
            let rows = keyed.snapshot(if keyed.space() == Space::Device { std::slice::from_ref(&slot) } else { &series });
            state.insert(format!("{node}/{number}"), serde_json::json!({ "layout": keyed.layout(), "rows": json_rows(&rows) }));
        });
        let seen = self.time.last_seen(slot);
        Some(serde_json::json!({
            "device": device, "partition": self.key.partition, "slot": slot, "sensors": sensors,
            "last_append_time": (seen > i64::MIN).then(|| fieldstream_schemas::time::format_rfc3339(seen)),
            "position": self.complete_to.to_string(), "state": state,
        }))
    }
}

fn json_rows(rows: &RecordBatch) -> Vec<serde_json::Value> {
    let writer = JsonWriter::new(&rows.schema());
    let mut text = Vec::new();
    let json = |row| {
        text.clear();
        writer.write_row(rows, row, &mut text);
        serde_json::from_slice(&text).unwrap_or_default()
    };
    (0..rows.num_rows()).map(json).collect()
}
