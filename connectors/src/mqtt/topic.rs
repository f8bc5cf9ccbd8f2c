//! Topic filters and topic templates such as `alerts/{device_id}`.

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;

use crate::rows::text_at;

/// Longest topic MQTT can carry, bytes.
const MAX_TOPIC: usize = 65_535;

/// What a null or empty column value becomes: a topic level cannot be empty.
const NULL_LEVEL: &str = "_";

/// Checks a topic filter by the rules of MQTT 5, section 4.7, and of shared subscriptions, 4.8.2.
///
/// # Errors
/// What is wrong, for a person.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    let rest = match filter.strip_prefix("$share/") {
        Some(shared) => match shared.split_once('/') {
            Some((group, rest)) if !group.is_empty() && !group.contains(['+', '#']) => rest,
            _ => return Err("a shared subscription is written $share/group/filter".into()),
        },
        None => filter,
    };
    if rest.is_empty() || rest.len() > MAX_TOPIC || rest.contains('\0') {
        return Err("a topic filter is 1 to 65535 bytes without NUL".into());
    }
    let levels: Vec<&str> = rest.split('/').collect();
    for (index, level) in levels.iter().enumerate() {
        if level.contains('#') && (*level != "#" || index + 1 != levels.len()) {
            return Err("`#` must be the whole last level".into());
        }
        if level.contains('+') && *level != "+" {
            return Err("`+` must be a whole level".into());
        }
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Column(String),
}

/// A topic with columns in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TopicTemplate {
    parts: Vec<Part>,
}

impl TopicTemplate {
    /// Reads a template. A literal brace is not possible.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let (before, after) = rest.split_at(open);
            let (column, tail) = after[1..].split_once('}').ok_or("a `{` is not closed")?;
            if column.is_empty() || column.contains('{') {
                return Err("a column name must stand between braces".into());
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Column(column.to_owned()));
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let wrong = |part: &Part| matches!(part, Part::Text(t) if t.contains(['+', '#', '}', '\0']));
        if parts.is_empty() || parts.iter().any(wrong) {
            return Err("a topic to publish to must not be empty or hold `+`, `#`, `}` or NUL".into());
        }
        if text.starts_with('$') {
            return Err("topics that begin with `$` belong to the broker".into());
        }
        Ok(Self { parts })
    }

    /// Checks that every column is there.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(crate) fn check(&self, schema: &Schema, input: &str) -> Result<(), String> {
        for part in &self.parts {
            if let Part::Column(column) = part
                && schema.column_with_name(column).is_none()
            {
                let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
                return Err(format!("`{input}` has no column `{column}`; it has {}", names.join(", ")));
            }
        }
        Ok(())
    }

    /// The topic of row `row`. Characters that would change the topic's meaning are written `%XX`, so that no device id can
    /// publish outside its own level; the result is cut at no place: a topic that is too long is an error.
    ///
    /// # Errors
    /// If the topic would be longer than MQTT allows.
    pub(crate) fn topic(&self, batch: &RecordBatch, row: usize) -> Result<String, String> {
        let mut topic = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Column(column) => escape(&mut topic, text_at(batch, column, row).as_deref().unwrap_or_default()),
            }
        }
        if topic.len() > MAX_TOPIC {
            return Err(format!("a topic of {} bytes is too long for MQTT", topic.len()));
        }
        if topic.starts_with('$') {
            topic.replace_range(0..1, "%24");
        }
        Ok(topic)
    }
}

/// Percent-encodes what has a meaning in topics, and `%` itself; an empty value becomes [`NULL_LEVEL`].
fn escape(topic: &mut String, value: &str) {
    if value.is_empty() {
        topic.push_str(NULL_LEVEL);
    }
    for c in value.chars() {
        if matches!(c, '/' | '+' | '#' | '%') || c.is_control() {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                topic.push_str(&format!("%{byte:02X}"));
            }
        } else {
            topic.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, DictionaryArray, Int64Array, StringArray};
    use arrow::datatypes::UInt32Type;

    use super::*;

    fn batch() -> RecordBatch {
        let devices: DictionaryArray<UInt32Type> = vec![Some("pump-17"), Some("a/+/#\0%"), None, Some("$SYS")].into_iter().collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("device_id", Arc::new(devices)),
            ("state", Arc::new(StringArray::from(vec![Some("raised"), Some(""), Some("cleared"), Some("x")]))),
            ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
        ];
        RecordBatch::try_from_iter(columns).expect("equal lengths")
    }

    #[test]
    fn columns_fill_levels_and_can_not_leave_them() {
        let template = TopicTemplate::parse("alerts/{device_id}/{state}-{n}").expect("a good template");
        let batch = batch();
        let topics: Vec<String> = (0..3).map(|r| template.topic(&batch, r).expect("short")).collect();
        assert_eq!(topics, ["alerts/pump-17/raised-1", "alerts/a%2F%2B%2F%23%00%25/_-2", "alerts/_/cleared-3"]);
        let bare = TopicTemplate::parse("{device_id}").expect("a good template");
        assert_eq!(bare.topic(&batch, 3).expect("short"), "%24SYS");
    }

    #[test]
    fn wrong_templates_are_refused() {
        for text in ["", "a/+", "a/#", "a/{device_id", "a/{}", "a/}", "$SYS/x", "a/\0", "{a{b}}"] {
            assert!(TopicTemplate::parse(text).is_err(), "{text:?}");
        }
        let template = TopicTemplate::parse("a/{site}").expect("a good template");
        let error = template.check(&batch().schema(), "minute").expect_err("no such column");
        assert_eq!(error, "`minute` has no column `site`; it has device_id, state, n");
    }

    #[test]
    fn filters_follow_the_rules_of_mqtt() {
        for good in ["#", "+", "a/b", "devices/+/telemetry", "devices/#", "$share/g/devices/+", "/a", "a//b"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "a/#/b", "a#", "a/b+", "$share/g", "$share//a", "$share/+/a", "a\0"] {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
    }
}
