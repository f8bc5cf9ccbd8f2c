//! Dead letters from a file with one JSON object a line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// A member of the record that a redriven reading carries: the dead letter's id.
const REDRIVEN_FROM: &str = "redrivenFrom";

/// One dead letter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Letter {
    /// The record without its payload, members in the order of the file.
    pub(crate) record: Map<String, Value>,
    /// What was refused: the bytes as they came, or the row as JSON (`payloadKind`).
    pub(crate) payload: Vec<u8>,
}

impl Letter {
    /// Reads a line; `None` if it is no dead letter.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let mut record: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let payload = record.remove("payload_base64")?;
        let letter = Self { payload: STANDARD.decode(payload.as_str()?).ok()?, record };
        letter.text("id").and(letter.text("code")).is_some().then_some(letter)
    }

    /// A text member of the record.
    pub(crate) fn text(&self, member: &str) -> Option<&str> {
        self.record.get(member)?.as_str()
    }

    /// Its id; the same after every replay.
    pub(crate) fn id(&self) -> &str {
        self.text("id").unwrap_or_default()
    }

    /// The device it belongs to: as the record says, else as the payload does.
    pub(crate) fn device(&self) -> Option<String> {
        let known = |id: &str| (!id.is_empty()).then(|| id.to_owned());
        let said = self.text("deviceId").and_then(known);
        said.or_else(|| known(serde_json::from_slice::<Value>(&self.payload).ok()?.get("deviceId")?.as_str()?))
    }

    /// The payload for a person: the JSON it is, else the text it is, else base64.
    pub(crate) fn shown_payload(&self) -> Value {
        if let Ok(json) = serde_json::from_slice(&self.payload) {
            return json;
        }
        let text = std::str::from_utf8(&self.payload).map(str::to_owned);
        Value::String(text.unwrap_or_else(|_| format!("base64:{}", STANDARD.encode(&self.payload))))
    }

    /// The payload as it is sent again: a JSON object also says where it comes from, anything else stays as it is.
    pub(crate) fn redriven_payload(&self) -> Vec<u8> {
        let Ok(mut object) = serde_json::from_slice::<Map<String, Value>>(&self.payload) else { return self.payload.clone() };
        if object.remove(REDRIVEN_FROM).is_some() {
            // Redriven before and refused again: the newer origin counts.
            let rest = Self { payload: Value::Object(object).to_string().into_bytes(), record: self.record.clone() };
            return rest.redriven_payload();
        }
        // Put in front as text, so that every number keeps its digits. Line feeds in JSON lie between its parts.
        let open = self.payload.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
        let (head, tail) = self.payload.split_at(open);
        let comma = if object.is_empty() { "" } else { "," };
        let member = format!("{}:{}{comma}", Value::from(REDRIVEN_FROM), Value::from(self.id()));
        let flat = |byte: &u8| if *byte == b'\n' { b' ' } else { *byte };
        head.iter().copied().chain(member.into_bytes()).chain(tail.iter().map(flat)).collect()
    }
}

/// Which dead letters a command is about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Selection<'a> {
    /// Only the one with this id.
    pub(crate) id: Option<&'a str>,
    /// Only those with this code.
    pub(crate) code: Option<&'a str>,
}

/// Calls `each` with every selected dead letter of the file, in its order. Lines that are no dead letters are told on stderr
/// and passed over.
///
/// # Errors
/// If the file cannot be read, or `each` fails.
pub(crate) fn for_each(path: &Path, selection: Selection<'_>, mut each: impl FnMut(Letter) -> Result<()>) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut strange = 0_u64;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let Some(letter) = Letter::parse(&line) else {
            strange += 1;
            continue;
        };
        let wanted = selection.id.is_none_or(|id| id == letter.id()) && selection.code.is_none_or(|code| Some(code) == letter.text("code"));
        if wanted {
            each(letter)?;
        }
    }
    if strange > 0 {
        tracing::warn!("{}: {strange} lines are no dead letters", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(payload: &[u8]) -> Letter {
        let line = serde_json::json!({ "id": "x1", "code": "range", "offset": 7, "payload_base64": STANDARD.encode(payload) });
        Letter::parse(line.to_string().as_bytes()).expect("a dead letter")
    }

    #[test]
    fn what_is_sent_again_says_where_it_comes_from_and_keeps_its_bytes() {
        let sent = |payload: &str| String::from_utf8(letter(payload.as_bytes()).redriven_payload()).expect("text");
        assert_eq!(sent(r#"{"value":200.10}"#), r#"{"redrivenFrom":"x1","value":200.10}"#);
        assert_eq!(sent("{ \n\"a\": 1\n}"), r#"{"redrivenFrom":"x1",  "a": 1 }"#);
        assert_eq!(sent("{}"), r#"{"redrivenFrom":"x1"}"#);
        assert_eq!(sent(r#"{"redrivenFrom":"x0","a":1}"#), r#"{"redrivenFrom":"x1","a":1}"#);
        assert_eq!(sent(r#"{"value":"#), r#"{"value":"#);
        assert_eq!(sent("[1]"), "[1]");
    }

    #[test]
    fn the_device_is_the_record_s_or_else_the_payload_s() {
        let mut letter = letter(br#"{"deviceId":"p","value":1}"#);
        assert_eq!(letter.device().as_deref(), Some("p"));
        letter.record.insert("deviceId".to_owned(), Value::from("r"));
        assert_eq!(letter.device().as_deref(), Some("r"));
        letter.record.remove("deviceId");
        letter.payload.truncate(5);
        assert_eq!(letter.device(), None);
    }

    #[test]
    fn payloads_are_shown_as_what_they_are() {
        assert_eq!(letter(b"{\"a\":1}").shown_payload(), serde_json::json!({ "a": 1 }));
        assert_eq!(letter(b"{\"a\":").shown_payload(), serde_json::json!("{\"a\":"));
        assert_eq!(letter(&[0xff, 0]).shown_payload(), serde_json::json!("base64:/wA="));
    }

    #[test]
    fn other_lines_are_no_dead_letters() {
        for line in ["", "{}", "[]", r#"{"id":"a","code":"b"}"#, r#"{"id":"a","code":"b","payload_base64":"?"}"#] {
            assert_eq!(Letter::parse(line.as_bytes()), None, "{line}");
        }
    }
}
