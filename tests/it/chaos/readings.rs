//! What the devices send: each reading is a function of its device and its number, so that nobody has to remember it.

use serde_json::{Value, json};

/// Event time between two readings of a device, milliseconds.
pub(crate) const STEP_MS: u64 = 150;

/// What a reading is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Good,
    OutOfRange,
    Malformed,
}

/// Number `seq` of device number `device`.
pub(crate) fn kind(device: u64, seq: u64) -> Kind {
    if (seq + device).is_multiple_of(53) {
        Kind::Malformed
    } else if (seq + device).is_multiple_of(41) {
        Kind::OutOfRange
    } else {
        Kind::Good
    }
}

/// Its value: an even noise with a spike now and then. Exact in binary.
pub(crate) fn value(device: u64, seq: u64) -> f64 {
    let base = 20.0 + (device % 16) as f64 / 16.0 + (seq * 5 % 7) as f64 / 8.0;
    match kind(device, seq) {
        Kind::OutOfRange => base + 200.0,
        _ if (seq + device * 7) % 211 == 100 => base + 70.0,
        _ => base,
    }
}

/// Its event time.
pub(crate) fn time_ms(start_ms: u64, seq: u64) -> u64 {
    start_ms + seq * STEP_MS
}

/// Its bytes.
pub(crate) fn payload(start_ms: u64, device: u64, seq: u64) -> Vec<u8> {
    if kind(device, seq) == Kind::Malformed {
        return format!(r#"{{"deviceId":"d{device}","id":"d{device}-{seq}","value":"#).into_bytes();
    }
    let reading: Value = json!({
        "id": format!("d{device}-{seq}"), "deviceId": format!("d{device}"), "sensorId": "t", "sensorType": "temperature",
        "timestamp": time_ms(start_ms, seq), "value": value(device, seq), "unit": "Cel", "quality": 0.9,
    });
    reading.to_string().into_bytes()
}

/// Device and number of an id such as `d3-17`.
pub(crate) fn parse_id(id: &str) -> Option<(u64, u64)> {
    let (device, seq) = id.strip_prefix('d')?.split_once('-')?;
    Some((device.parse().ok()?, seq.parse().ok()?))
}

/// Device and number in the bytes of a reading, also of a malformed one.
pub(crate) fn parse_payload(payload: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(payload).ok()?;
    parse_id(text.split(r#""id":""#).nth(1)?.split('"').next()?)
}
