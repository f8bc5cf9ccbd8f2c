//! References: found, missing, typed and kept secret.

use serde_json::json;

use super::*;
use crate::yaml::parse;

fn environment() -> Environment {
    let text = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Environment { env: text(&[("PORT", "1883"), ("HOST", "h"), ("EMPTY", "")]), vars: text(&[("limit", "5")]), ..Environment::default() }
}

#[test]
fn whole_references_are_typed_and_parts_stay_text() {
    let text = "vars: { limit: 1.5, name: pump }\na: ${env:PORT}\nb: x-${env:PORT}-${var:name}\nc: '${var:limit}'\nd: ${env:NONE:-true}\n\
                e: ${env:EMPTY:-7d}\nf: mqtt://${env:HOST:-x}:${env:PORT}\ng: ${env:NONE:-mqtt://localhost:1}\n";
    let mut node = parse(text).unwrap();
    let done = substitute(&mut node, &environment());
    assert_eq!(done.errors, []);
    let value = node.to_value();
    assert_eq!(
        value,
        json!({"vars": {"limit": 5, "name": "pump"}, "a": 1883, "b": "x-1883-pump", "c": 5, "d": true, "e": "7d", "f": "mqtt://h:1883",
               "g": "mqtt://localhost:1"})
    );
}

#[test]
fn what_is_missing_is_an_error_at_run_and_stood_in_for_at_lint() {
    let text = "vars: { input: ~ }\na: ${env:NONE}\nb: ['${var:input}/p*']\nc: ${secret:x/y}\nd: ${var:inptu}\ne: ${what:x}\nf: ${env:X\n";
    let mut node = parse(text).unwrap();
    let mut env = environment();
    env.vars.clear();
    let paths = |done: &Substituted| done.errors.iter().map(|e| e.0.clone()).collect::<Vec<_>>();
    let done = substitute(&mut node.clone(), &env);
    assert_eq!(paths(&done), ["/a", "/b/0", "/c", "/d", "/e", "/f"]);
    assert_eq!(done.errors[3].2.as_deref(), Some("did you mean `input`?"));
    env.lenient = true;
    let done = substitute(&mut node, &env);
    assert_eq!(paths(&done), ["/d", "/e", "/f"]);
    assert_eq!(done.placeholders, ["/a", "/b/0", "/c", "/d", "/e", "/f"]);
    assert_eq!(node.get("b").map(Node::to_value), Some(json!(["placeholder/p*"])));
}

#[test]
fn secrets_are_text_below_their_folder_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mqtt")).unwrap();
    std::fs::write(dir.path().join("mqtt/password"), "12345\n").unwrap();
    let env = Environment { secrets_dir: Some(dir.path().to_owned()), ..Environment::default() };
    let mut node = parse("a: ${secret:mqtt/password}\nb: ${secret:../mqtt/password}\nc: ${secret:/etc/passwd}\n").unwrap();
    let done = substitute(&mut node, &env);
    assert_eq!(node.get("a").map(Node::to_value), Some(json!("12345")));
    assert_eq!(done.errors.len(), 2);
    assert_eq!(done.redact("invalid value 12345"), "invalid value ***");
}

#[test]
fn a_given_variable_must_be_declared() {
    let mut node = parse("vars: { limits: 1 }\n").unwrap();
    let done = substitute(&mut node, &environment());
    assert_eq!(done.errors.len(), 1);
    assert_eq!(done.errors[0].2.as_deref(), Some("did you mean `limits`?"));
}
