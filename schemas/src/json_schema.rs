//! JSON Schema (2020-12) of everything that leaves as JSON, made from the same columns the writer uses.

use arrow::datatypes::{DataType, Schema};
use serde_json::{Map, Value, json};

use crate::encode::cloudevents::EVENT_TYPES;
use crate::encode::json::{JSON_COLUMNS, member_name};
use crate::quality;
use crate::records::{alert_schema, dead_letter_schema, prediction_schema};

/// The published schemas: file name (`<name>.schema.json`) and contents.
#[must_use]
pub fn json_schemas() -> Vec<(&'static str, Value)> {
    let schemas = [
        ("reading.schema.json", reading()),
        ("alert.schema.json", record("Alert", "What a detect operator found.", &alert_schema())),
        ("prediction.schema.json", record("Prediction", "What a predict operator expects.", &prediction_schema())),
        ("dead-letter.schema.json", record("Dead letter", "A payload or row that was refused, with its bytes.", &dead_letter_schema())),
        ("cloudevent.schema.json", cloudevent()),
    ];
    schemas.into_iter().map(|(name, schema)| (name, sorted(schema))).collect()
}

/// Members in order of their names, so that the files do not depend on how `serde_json` was built.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.into_iter().collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().map(|(name, member)| (name, sorted(member))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        scalar => scalar,
    }
}

fn head(title: &str, description: &str) -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    schema.insert("title".into(), title.into());
    schema.insert("description".into(), description.into());
    schema.insert("type".into(), "object".into());
    schema
}

fn reading() -> Value {
    let quality_word = json!({ "enum": quality::NAMES });
    let mut schema = head("Reading", "One measured value of one sensor of one device at one event time, in canonical form.");
    schema.insert(
        "properties".into(),
        json!({
            "id": { "type": "string", "description": "The producer's id of the reading." },
            "deviceId": { "type": "string", "description": "Who measures." },
            "sensorId": { "type": "string", "description": "What on the device measures." },
            "sensorType": { "type": "string", "description": "Kind of quantity, such as temperature." },
            "timestamp": {
                "description": "Event time: RFC 3339, or milliseconds since the epoch. Left out, it becomes the ingest time.",
                "oneOf": [{ "type": "string", "format": "date-time" }, { "type": "number" }]
            },
            "value": { "type": ["number", "string", "boolean"] },
            "unit": { "type": "string", "description": "Unit of the value as sent, such as Cel." },
            "quality": {
                "description": "A score between 0 and 1, a class, or both. Left out, it is good.",
                "oneOf": [
                    { "type": "number" },
                    quality_word,
                    {
                        "type": "object",
                        "properties": { "status": quality_word, "score": { "type": "number" } },
                        "anyOf": [{ "required": ["status"] }, { "required": ["score"] }]
                    }
                ]
            },
            "tags": { "type": "object", "description": "Further members of the payload." },
            "ingestTimestamp": { "type": "string", "format": "date-time", "description": "When it was taken in." },
            "stamped": { "type": "boolean", "description": "True where the timestamp was missing and took the ingest time." }
        }),
    );
    schema.insert("required".into(), json!(["deviceId", "sensorId", "value"]));
    Value::Object(schema)
}

/// The schema of a record from its columns.
fn record(title: &str, description: &str, columns: &Schema) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in columns.fields() {
        let name = field.name().as_str();
        let mut member = member_name(name).to_owned();
        let kind = match field.data_type() {
            DataType::Float64 => json!({ "type": "number" }),
            DataType::UInt32 | DataType::UInt64 => json!({ "type": "integer", "minimum": 0 }),
            DataType::Int64 => json!({ "type": "integer" }),
            DataType::Timestamp(..) => json!({ "type": "string", "format": "date-time" }),
            DataType::Binary => {
                member.push_str("_base64");
                json!({ "type": "string", "contentEncoding": "base64" })
            }
            _ => text(name),
        };
        if !field.is_nullable() {
            required.push(member.clone());
        }
        properties.insert(member, kind);
    }
    let mut schema = head(title, description);
    schema.insert("properties".into(), Value::Object(properties));
    schema.insert("required".into(), required.into());
    Value::Object(schema)
}

fn text(column: &str) -> Value {
    match column {
        "state" => json!({ "enum": ["row", "raised", "updated", "cleared"] }),
        "severity" => json!({ "enum": ["low", "medium", "high", "critical"] }),
        "trend" => json!({ "enum": ["improving", "stable", "degrading"] }),
        "prediction_type" => json!({ "enum": ["limit_crossing", "health"] }),
        "payload_kind" => json!({ "enum": [crate::records::KIND_RAW, crate::records::KIND_READING] }),
        "actions" => json!({ "type": "array", "items": { "type": "string" } }),
        name if JSON_COLUMNS.contains(&name) => json!({ "type": "object" }),
        _ => json!({ "type": "string" }),
    }
}

fn cloudevent() -> Value {
    let mut schema = head("CloudEvent", "The CloudEvents 1.0 envelope in structured mode.");
    schema.insert(
        "properties".into(),
        json!({
            "specversion": { "const": "1.0" },
            "id": { "type": "string", "minLength": 1 },
            "source": { "type": "string", "format": "uri-reference", "minLength": 1 },
            "type": { "enum": EVENT_TYPES },
            "subject": { "type": "string", "description": "Device, or device/sensor." },
            "time": { "type": "string", "format": "date-time" },
            "datacontenttype": { "const": "application/json" },
            "data": { "type": "object", "description": "The row; its schema follows from the type." }
        }),
    );
    schema.insert("required".into(), json!(["specversion", "id", "source", "type", "datacontenttype", "data"]));
    Value::Object(schema)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `FIELDSTREAM_BLESS=1` writes them anew.
    #[test]
    fn published_files_are_up_to_date() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("json");
        for (name, schema) in json_schemas() {
            let text = format!("{schema:#}\n");
            if std::env::var_os("FIELDSTREAM_BLESS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(name), &text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(folder.join(name)).unwrap(), text, "run with FIELDSTREAM_BLESS=1");
        }
    }
}
