//! Options as data: reading a node's configuration into a struct, and the small types that options share.

use std::fmt;
use std::time::Duration;

use arrow::datatypes::{DataType, SchemaRef};
use fieldstream_engine_api::{ConfigError, ConfigErrors};
use fieldstream_schemas::time::{format_rfc3339, parse_duration, parse_rfc3339};
use schemars::JsonSchema;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde_json::Value;
use serde_path_to_error::Segment;

/// Reads options. `null` (a node without options) reads as an empty object.
///
/// # Errors
/// One error with the JSON pointer of what does not fit; an unknown field or variant comes with a suggestion.
pub fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, ConfigErrors> {
    let empty = Value::Object(serde_json::Map::new());
    let value = if value.is_null() { &empty } else { value };
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = pointer(error.path());
        vec![explain(path, &error.into_inner().to_string())]
    })
}

/// The JSON Schema of options type `T`.
#[must_use]
pub fn schema<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    let mut out = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => out.push_str(&format!("/{index}")),
            Segment::Map { key } => out.push_str(&pointer_to(key)),
            // The variant is a key of the document already; an unknown segment has no name.
            Segment::Enum { variant } => out.push_str(&pointer_to(variant)),
            Segment::Unknown => {}
        }
    }
    out
}

/// `/key` with RFC 6901's escapes.
#[must_use]
pub fn pointer_to(key: &str) -> String {
    format!("/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Turns serde's words into ours: the first name in backticks is what was written, the others what is allowed.
fn explain(path: String, message: &str) -> ConfigError {
    let mut names = message.split('`').skip(1).step_by(2);
    let what = ["unknown field", "unknown variant"].into_iter().find(|w| message.starts_with(w));
    let (Some(what), Some(written)) = (what, names.next()) else {
        return ConfigError::new(path, message);
    };
    let allowed: Vec<&str> = names.collect();
    let what = if what == "unknown field" { "unknown field" } else { "unknown name" };
    let error = ConfigError::new(path, format!("{what} `{written}`"));
    if allowed.is_empty() {
        return error.hint("there are no options here");
    }
    error.hint(did_you_mean(written, allowed.iter().copied()).unwrap_or_else(|| format!("known: {}", allowed.join(", "))))
}

/// The words "did you mean `x`?" for the candidate nearest to `written`; `None` when none is near.
pub fn did_you_mean<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let lower = written.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lower, &c.to_lowercase()), c))
        .filter(|(distance, c)| *distance <= (c.chars().count().max(3) / 3).min(3))
        .min()
        .map(|(_, c)| format!("did you mean `{c}`?"))
}

/// The number of the column `name`.
///
/// # Errors
/// If there is no such column; the path is empty.
pub fn column_called(schema: &SchemaRef, name: &str) -> Result<usize, ConfigError> {
    schema.index_of(name).map_err(|_| {
        let mut error = ConfigError::new("", format!("there is no column `{name}`"));
        error.hint = did_you_mean(name, schema.fields().iter().map(|f| f.name().as_str()));
        error
    })
}

/// The number of the column `name`, which must have type `data_type`.
///
/// # Errors
/// If there is no such column, or it has another type; the path is empty.
pub fn column_of_type(schema: &SchemaRef, name: &str, data_type: &DataType) -> Result<usize, ConfigError> {
    let index = column_called(schema, name)?;
    let found = schema.field(index).data_type();
    if found == data_type { Ok(index) } else { Err(ConfigError::new("", format!("column `{name}` is {found}, {data_type} is needed"))) }
}

/// A length of time written as `250ms`, `5s`, `1.5h` or `14d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

impl TimeSpan {
    /// Whole microseconds, at most `i64::MAX`.
    #[must_use]
    pub fn us(self) -> i64 {
        i64::try_from(self.0.as_micros()).unwrap_or(i64::MAX)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = TimeSpan;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 250ms, 5s, 10m, 1h or 14d")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimeSpan, E> {
                parse_duration(text).map(TimeSpan).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TimeSpan".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A length of time: a number and one of us, ms, s, m, h, d.",
            "pattern": r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h|d)$",
        })
    }
}

/// A moment written in RFC 3339, as microseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_rfc3339(self.0))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Moment;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as 2026-01-31T00:00:00Z")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
                parse_rfc3339(text.as_bytes()).map(Moment).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time", "description": "A moment in RFC 3339." })
    }
}

/// Names and texts in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Named;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names with a text each")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Named(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl JsonSchema for Named {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Named".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "object", "additionalProperties": { "type": "string" } })
    }
}

/// How much an alarm matters (ISA-18.2 priorities).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Look at it some day.
    Low,
    /// Look at it soon.
    #[default]
    Medium,
    /// Act soon.
    High,
    /// Act now.
    Critical,
}

impl Severity {
    /// The name in options, columns and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read through Debug")]
    struct Options {
        max_age: Option<TimeSpan>,
        after: Option<Moment>,
        severity: Option<Severity>,
        rules: Option<Vec<Options>>,
        limit: Option<f64>,
    }

    fn errors(value: &Value) -> String {
        parse::<Options>(value).map_or_else(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), |o| format!("{o:?}"))
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        let cases = [
            (json!({"max_agee": "5s"}), "/max_agee: unknown field `max_agee` (did you mean `max_age`?)"),
            (json!({"zzz": 1}), "/zzz: unknown field `zzz` (known: max_age, after, severity, rules, limit)"),
            (json!({"rules": [{}, {"limt": 1}]}), "/rules/1/limt: unknown field `limt` (did you mean `limit`?)"),
            (json!({"rules": [{"severity": "hihg"}]}), "/rules/0/severity: unknown name `hihg` (did you mean `high`?)"),
            (
                json!({"max_age": "5 weeks"}),
                "/max_age: invalid value: string \"5 weeks\", expected a duration such as 250ms, 5s, 10m, 1h or 14d",
            ),
            (json!({"max_age": 5}), "/max_age: invalid type: integer `5`, expected a duration such as 250ms, 5s, 10m, 1h or 14d"),
            (
                json!({"after": "2026-02-30T00:00:00Z"}),
                "/after: invalid value: string \"2026-02-30T00:00:00Z\", expected a time such as 2026-01-31T00:00:00Z",
            ),
            (json!({"limit": "x"}), "/limit: invalid type: string \"x\", expected f64"),
        ];
        for (value, expected) in cases {
            assert_eq!(errors(&value), expected);
        }
    }

    #[test]
    fn what_fits_is_read() {
        let options: Options = parse(&json!({"max_age": "1.5s", "after": "1970-01-01T00:00:01Z", "severity": "critical"})).unwrap();
        assert_eq!(options.max_age.unwrap().us(), 1_500_000);
        assert_eq!(options.after, Some(Moment(1_000_000)));
        assert_eq!(options.severity.unwrap().name(), "critical");
        assert!(parse::<Options>(&Value::Null).is_ok());
    }

    #[test]
    fn pointers_escape_what_rfc_6901_says() {
        assert_eq!(pointer_to("a/b~c"), "/a~1b~0c");
    }
}
