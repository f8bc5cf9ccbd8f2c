//! YAML text to a tree that remembers where everything stood.
//!
//! Duplicate keys, alias bombs and deep nesting are refused by the parser (`docs/adr/0005-yaml-crate.md`).

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Options, Spanned};

use crate::problem::Span;

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line and column of its first character.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    /// A string, number or boolean.
    Scalar(Value),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in file order. Keys are distinct.
    Map(Vec<Entry>),
}

/// One entry of a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key as text.
    pub key: String,
    /// Where the key begins.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

impl Node {
    /// The value under `key`, if this is a map that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// The entries of a map; none for anything else.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The plain value, in file order where `serde_json` keeps it.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Scalar(value) => value.clone(),
            Kind::Seq(items) => Value::Array(items.iter().map(Node::to_value).collect()),
            Kind::Map(entries) => Value::Object(entries.iter().map(|e| (e.key.clone(), e.value.to_value())).collect::<Map<_, _>>()),
        }
    }

    /// Where `pointer` (RFC 6901) leads, as far as the tree goes along it. `key` asks for the last key instead of its value,
    /// which is also the answer for maps and lists: a person looks for the name.
    #[must_use]
    pub fn locate(&self, pointer: &str, key: bool) -> Span {
        let mut node = self;
        let mut name = None;
        for segment in pointer.split('/').skip(1) {
            let segment = segment.replace("~1", "/").replace("~0", "~");
            let next = match &node.kind {
                Kind::Map(entries) => entries.iter().find(|e| e.key == segment).map(|e| (Some(e.key_span), &e.value)),
                Kind::Seq(items) => segment.parse::<usize>().ok().and_then(|i| items.get(i)).map(|n| (None, n)),
                Kind::Null | Kind::Scalar(_) => None,
            };
            let Some(found) = next else { break };
            (name, node) = found;
        }
        let container = !matches!(node.kind, Kind::Scalar(_));
        if key || container { name.unwrap_or(node.span) } else { node.span }
    }
}

/// One step of a JSON pointer, escaped.
#[must_use]
pub fn pointer_segment(key: &str) -> String {
    format!("/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Parses one YAML document.
///
/// # Errors
/// Where it is no YAML, has a duplicate key, or is built to exhaust memory.
pub fn parse(text: &str) -> Result<Node, (Span, String)> {
    let mut options = Options::default();
    options.strict_booleans = true;
    options.with_snippet = false;
    match serde_saphyr::from_str_with_options::<Tree>(text, options) {
        Ok(tree) => Ok(tree.0),
        Err(error) => {
            let at = error.location().map_or(Span::default(), |l| Span { line: l.line() as u32, column: l.column() as u32 });
            Err((at, clean_message(&error.without_snippet().to_string())))
        }
    }
}

/// The parser's first line without its own "at line .., column ..", which we print in front.
fn clean_message(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let line = match line.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((place, rest)) if place.contains("column") => rest,
        _ => line,
    };
    if let Some(key) = line.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split(',').next()) {
        return format!("duplicate key `{key}`");
    }
    line.split(" at line ").next().unwrap_or(line).trim_end_matches([':', '.']).to_owned()
}

/// A node on its way through serde.
struct Tree(Node);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Bare>::deserialize(deserializer)?;
        Ok(Self(Node { span: span_of(&spanned), kind: spanned.value.0 }))
    }
}

fn span_of<T>(spanned: &Spanned<T>) -> Span {
    Span { line: spanned.referenced.line() as u32, column: spanned.referenced.column() as u32 }
}

/// A node's content without its place.
struct Bare(Kind);

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BareVisitor).map(Self)
    }
}

struct BareVisitor;

impl<'de> Visitor<'de> for BareVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Kind, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Kind::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(Tree(node)) = seq.next_element()? {
            items.push(node);
        }
        Ok(Kind::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let Tree(value) = map.next_value()?;
            entries.push(Entry { key_span: span_of(&key), key: key.value, value });
        }
        Ok(Kind::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version: 1\nsources:\n  field:\n    mqtt: { qos: 1, topics: [a/+, 'b'] }\n    empty:\n  other: { url: mqtt://x:1, f: 1.5, on: true, no: no }\n";

    #[test]
    fn every_value_remembers_its_place() {
        let node = parse(TEXT).unwrap();
        let at = |pointer: &str| {
            let span = node.locate(pointer, false);
            (span.line, span.column)
        };
        assert_eq!(at("/version"), (1, 10));
        assert_eq!(at("/sources/field/mqtt/topics/1"), (4, 35));
        assert_eq!(at("/sources/field/mqtt"), (4, 5), "a map is found by its key");
        assert_eq!(at("/sources/field/mqtt/nothing"), (4, 5), "as far as the tree goes");
        let key = node.locate("/sources/field/mqtt/qos", true);
        assert_eq!((key.line, key.column), (4, 13));
        let other = node.get("sources").and_then(|s| s.get("other")).unwrap();
        assert_eq!(other.to_value(), serde_json::json!({"url": "mqtt://x:1", "f": 1.5, "on": true, "no": "no"}));
    }

    #[test]
    fn duplicate_keys_bombs_and_broken_text_are_refused_with_a_place() {
        let (span, message) = parse("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!((span.line, span.column), (3, 1));
        assert!(message.contains("duplicate"), "{message}");
        let (span, _) = parse("a: [1, 2\nb: 3\n").unwrap_err();
        assert!(span.line >= 1);
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{list}]\n"));
        }
        parse(&bomb).unwrap_err();
        parse(&"[".repeat(100_000)).unwrap_err();
    }
}
