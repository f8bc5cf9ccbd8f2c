//! Options of connectors: JSON values into structs, with every error at its place.

use std::time::Duration;

use fieldstream_engine_api::{Built, ConfigError};
use fieldstream_schemas::Size;
use fieldstream_schemas::time::parse_duration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Reads `value` into `T`; the error's path is a JSON pointer to what is wrong.
pub(crate) fn parse<T: DeserializeOwned>(value: &Value) -> Built<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().iter().filter_map(pointer_step).collect();
        vec![ConfigError { path, message: error.into_inner().to_string(), hint: None }]
    })
}

fn pointer_step(segment: &serde_path_to_error::Segment) -> Option<String> {
    match segment {
        serde_path_to_error::Segment::Seq { index } => Some(format!("/{index}")),
        serde_path_to_error::Segment::Map { key } => Some(format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
        serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
    }
}

/// A length of time, written `250ms`, `5s`, `1h` or `14d`. For `#[serde(deserialize_with)]`.
pub(crate) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    parse_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no duration; write 250ms, 5s, 1h or 14d")))
}

/// A number of bytes, written `512`, `64KiB`, `16MiB` or `1GiB`. For `#[serde(deserialize_with)]`.
pub(crate) fn size<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(input)?;
    let bytes = value.as_u64().or_else(|| Size::parse(value.as_str()?.trim()).map(|size| size.0 as u64));
    bytes.ok_or_else(|| serde::de::Error::custom(format!("`{value}` is no size; write 512, 64KiB, 16MiB or 1GiB")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        #[serde(deserialize_with = "duration")]
        wait: Duration,
        #[serde(deserialize_with = "size")]
        room: u64,
    }

    #[derive(Debug, Deserialize)]
    struct Whole {
        parts: Vec<Part>,
    }

    #[test]
    fn values_are_read_and_errors_point_at_their_place() {
        let good = serde_json::json!({ "parts": [{ "wait": "250ms", "room": "16MiB" }, { "wait": "1h", "room": 7 }] });
        let whole: Whole = parse(&good).expect("good options");
        let read: Vec<_> = whole.parts.iter().map(|p| (p.wait.as_millis(), p.room)).collect();
        assert_eq!(read, [(250, 16 << 20), (3_600_000, 7)]);

        let bad = serde_json::json!({ "parts": [{ "wait": "1s", "room": "16 apples" }] });
        let errors = parse::<Whole>(&bad).expect_err("no size");
        assert_eq!(errors[0].path, "/parts/0/room");
        assert!(errors[0].message.contains("no size"), "{}", errors[0].message);
    }
}
