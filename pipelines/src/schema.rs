//! `schema`: the JSON Schema of the pipeline language for editors, from the Rust types and the catalogue.

use serde_json::{Map, Value, json};

use crate::config::FileConfig;
use crate::nodes::Catalogue;

/// The JSON Schema of pipeline files (draft 2020-12) with the kinds of `catalogue`.
#[must_use]
pub fn schema(catalogue: &Catalogue<'_>) -> Value {
    let mut root = schemars::schema_for!(FileConfig).to_value();
    let mut defs = match root.get_mut("$defs").map(Value::take) {
        Some(Value::Object(defs)) => defs,
        _ => Map::new(),
    };
    let sinks: Vec<_> = catalogue.sinks.iter().map(|k| (k.name, k.about, k.schema)).collect();
    let sources: Vec<_> = catalogue.sources.iter().map(|k| (k.name, k.about, k.schema)).collect();
    let journals: Vec<_> = catalogue.journals.iter().map(|k| (k.name, k.about, k.schema)).collect();
    let operators: Vec<_> = catalogue.operators.iter().map(|k| (k.name, k.about, k.schema)).collect();
    add_kinds(&mut defs, "SourceConfig", "source", &sources);
    add_kinds(&mut defs, "JournalConfig", "journal", &journals);
    add_kinds(&mut defs, "OperatorConfig", "operator", &operators);
    add_kinds(&mut defs, "SinkConfig", "sink", &sinks);
    add_kinds(&mut defs, "DeadLetterConfig", "sink", &sinks);
    let mut defs = Value::Object(defs);
    allow_references(&mut defs);
    if let Some(object) = root.as_object_mut() {
        object.insert("$defs".to_owned(), defs);
    }
    sorted(root)
}

/// The schema as the published file holds it.
#[must_use]
pub fn schema_text(catalogue: &Catalogue<'_>) -> String {
    // A schema is plain JSON; printing it cannot fail.
    let mut text = serde_json::to_string_pretty(&schema(catalogue)).unwrap_or_default();
    text.push('\n');
    text
}

type Kind = (&'static str, &'static str, fn() -> Value);

/// Adds one property per kind to the node definition `node`, exactly one of which must be there.
fn add_kinds(defs: &mut Map<String, Value>, node: &str, sort: &str, kinds: &[Kind]) {
    let mut properties = Map::new();
    for (name, about, schema) in kinds {
        let mut schema = schema();
        let prefix = format!("{sort}.{name}.");
        if let Some(Value::Object(own)) = schema.as_object_mut().and_then(|s| s.remove("$defs")) {
            for (key, mut def) in own {
                prefix_references(&mut def, &prefix);
                defs.insert(format!("{prefix}{key}"), def);
            }
        }
        prefix_references(&mut schema, &prefix);
        if let Some(object) = schema.as_object_mut() {
            object.remove("$schema");
            object.remove("title");
            object.insert("description".to_owned(), json!(about));
        }
        let optional = schema.get("required").is_none_or(|r| r.as_array().is_some_and(Vec::is_empty));
        let options = format!("{sort}.{name}");
        defs.insert(options.clone(), schema);
        let reference = json!({ "$ref": format!("#/$defs/{options}") });
        properties.insert((*name).to_owned(), if optional { json!({ "anyOf": [reference, { "type": "null" }] }) } else { reference });
    }
    let Some(object) = defs.get_mut(node).and_then(Value::as_object_mut) else { return };
    let alternatives: Vec<Value> = kinds.iter().map(|(name, ..)| json!({ "required": [name] })).collect();
    object.insert("oneOf".to_owned(), Value::Array(alternatives));
    match object.get_mut("properties").and_then(Value::as_object_mut) {
        Some(existing) => existing.extend(properties),
        None => {
            object.insert("properties".to_owned(), Value::Object(properties));
        }
    }
}

/// A kind's own definitions get its name in front, so that two kinds may call theirs the same.
fn prefix_references(value: &mut Value, prefix: &str) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match value.as_str().and_then(|v| v.strip_prefix("#/$defs/")) {
                    Some(name) if key == "$ref" => *value = json!(format!("#/$defs/{prefix}{name}")),
                    _ => prefix_references(value, prefix),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| prefix_references(item, prefix)),
        _ => {}
    }
}

/// Where a number or boolean may stand, a reference such as `${var:limit}` may stand too.
fn allow_references(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(allow_references);
            let types: Vec<String> = match object.get("type") {
                Some(Value::String(one)) => vec![one.clone()],
                Some(Value::Array(many)) => many.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
                _ => return,
            };
            let typed = types.iter().any(|t| matches!(t.as_str(), "number" | "integer" | "boolean"));
            if typed && !types.iter().any(|t| t == "string") {
                let with_text: Vec<Value> = types.into_iter().map(Value::from).chain([json!("string")]).collect();
                object.insert("type".to_owned(), Value::Array(with_text));
                object.insert("pattern".to_owned(), json!("\\$\\{"));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(allow_references),
        _ => {}
    }
}

/// The same value with the keys of every object in order, whatever order `serde_json` keeps: the file must not depend on it.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<(String, Value)> = object.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
