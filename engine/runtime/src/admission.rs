//! Which devices a source has brought: one that makes up ids must not fill memory and disk with device actors.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use fieldstream_schemas::{Decoded, PayloadBlock, Readings, Reject};

/// Code of readings of one device more than the source may bring.
pub(crate) const CODE_DEVICE_LIMIT: &str = "device_limit";

/// Devices let in since the source was opened, as hashes of their names: two of one hash count as one.
#[derive(Debug)]
pub(crate) struct Admission {
    known: HashSet<u64>,
    limit: usize,
}

impl Admission {
    pub(crate) fn new(limit: usize) -> Self {
        Self { known: HashSet::new(), limit }
    }

    /// Turns readings of devices beyond the limit into rejects with the payload they came in. `block` is what was decoded.
    pub(crate) fn admit(&mut self, decoded: Decoded, block: &PayloadBlock) -> Decoded {
        let Some(readings) = Readings::new(&decoded.rows) else { return decoded };
        let Some(names) = readings.device_id.values().as_string_opt::<i32>() else { return decoded };
        let admitted: Vec<bool> = names.iter().map(|name| self.knows(name.unwrap_or_default())).collect();
        if admitted.iter().all(|admitted| *admitted) {
            return decoded;
        }
        let keys = readings.device_id.keys().values();
        let mask: Vec<bool> = keys.iter().map(|key| admitted.get(*key as usize).is_some_and(|admitted| *admitted)).collect();
        // The mask has the batch's length, so filtering cannot fail.
        let Ok(rows) = filter_record_batch(&decoded.rows, &BooleanArray::from(mask.clone())) else { return decoded };
        let (mut positions, mut rejects) = (Vec::with_capacity(rows.num_rows()), decoded.rejects);
        for (position, admitted) in decoded.positions.into_iter().zip(mask) {
            if admitted {
                positions.push(position);
                continue;
            }
            let message = format!("the source has brought more than {} devices; this reading is of one more", self.limit);
            let payload = block.at_offset(position.offset).unwrap_or_default();
            rejects.push(Reject { position, code: CODE_DEVICE_LIMIT, message, payload });
        }
        rejects.sort_by_key(|reject| reject.position);
        Decoded { rows, positions, rejects }
    }

    fn knows(&mut self, name: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let hash = hasher.finish();
        self.known.contains(&hash) || self.known.len() < self.limit && self.known.insert(hash)
    }
}

#[cfg(test)]
mod tests {
    use fieldstream_schemas::decode::{DecodeConfig, Decoder};
    use fieldstream_schemas::{PayloadEntry, columns};

    use super::*;

    fn decoded(devices: &[&str]) -> (Decoded, PayloadBlock) {
        let (mut data, mut entries) = (String::new(), Vec::new());
        for (offset, device) in devices.iter().enumerate() {
            let payload = format!(r#"{{"deviceId":"{device}","sensorId":"s","timestamp":0,"value":1}}"#);
            let (start, len) = (data.len() as u32, payload.len() as u32);
            entries.push(PayloadEntry { offset: offset as u64, start, len, ingest_us: Some(1) });
            data.push_str(&payload);
        }
        let block = PayloadBlock { data: data.into(), entries, ..PayloadBlock::default() };
        let mut decoder = Decoder::new(&DecodeConfig::default()).expect("the default is sound");
        (decoder.decode(&block), block)
    }

    #[test]
    fn devices_beyond_the_limit_are_refused_with_their_payload_and_known_ones_go_on() {
        let mut admission = Admission::new(2);
        let (first, block) = decoded(&["a", "b", "a"]);
        assert_eq!(admission.admit(first, &block).rejects.len(), 0);
        let (second, block) = decoded(&["c", "b", "d", "a"]);
        let second = admission.admit(second, &block);
        let names: Vec<&str> = (0..second.rows.num_rows()).filter_map(|row| columns::name_at(second.rows.column(0), row)).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(second.positions.iter().map(|p| p.offset).collect::<Vec<_>>(), [1, 3]);
        let refused: Vec<(u64, &str)> = second.rejects.iter().map(|r| (r.position.offset, r.code)).collect();
        assert_eq!(refused, [(0, CODE_DEVICE_LIMIT), (2, CODE_DEVICE_LIMIT)]);
        assert!(second.rejects[0].payload.starts_with(br#"{"deviceId":"c""#));
    }
}
