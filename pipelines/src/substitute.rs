//! `${env:NAME:-default}`, `${secret:path}` and `${var:name}` in scalars, after parsing.
//!
//! A scalar that is one whole reference is typed again: `"${var:limit}"` may be a number. Text never becomes structure.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::problem::{Problem, did_you_mean};
use crate::yaml::{Kind, Node, pointer_segment};

/// Stands for a value that lint does not have.
pub const PLACEHOLDER: &str = "placeholder";

/// Where references get their values.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// Environment variables of the process.
    pub env: BTreeMap<String, String>,
    /// Variables given by `--var name=value`; they replace those of the file.
    pub vars: BTreeMap<String, String>,
    /// Folder of the secret files; `None`: there are no secrets.
    pub secrets_dir: Option<PathBuf>,
    /// True at lint: what is missing is stood in for, and not an error.
    pub lenient: bool,
}

/// What substitution made of a document.
#[derive(Clone, Debug, Default)]
pub struct Substituted {
    /// JSON pointers of scalars that hold a stand-in.
    pub placeholders: Vec<String>,
    /// Values of secrets, so that no message shows them.
    pub secrets: Vec<String>,
    /// Pointer, message and hint of each reference that cannot be resolved.
    pub errors: Vec<(String, String, Option<String>)>,
}

impl Substituted {
    /// `text` without the value of any secret.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.secrets.iter().filter(|s| !s.is_empty()).fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }

    /// `problem` without the value of any secret.
    pub(crate) fn redact_problem(&self, mut problem: Problem) -> Problem {
        problem.message = self.redact(&problem.message);
        problem.hint = problem.hint.map(|hint| self.redact(&hint));
        problem
    }
}

/// A reference resolved.
enum Resolved {
    Found(Value),
    Missing(String, Option<String>),
}

struct Walk<'a> {
    environment: &'a Environment,
    vars: BTreeMap<String, Option<Value>>,
    done: Substituted,
}

/// Replaces all references in `root`, the whole file. Variables come from its `vars:`.
pub fn substitute(root: &mut Node, environment: &Environment) -> Substituted {
    let mut walk = Walk { environment, vars: BTreeMap::new(), done: Substituted::default() };
    let Kind::Map(entries) = &mut root.kind else { return walk.done };
    if let Some(vars) = entries.iter_mut().find(|e| e.key == "vars") {
        walk.node(&mut vars.value, "/vars");
        walk.declare(&mut vars.value);
    }
    for name in environment.vars.keys().filter(|name| !walk.vars.contains_key(*name)) {
        let hint = did_you_mean(name, walk.vars.keys().map(String::as_str));
        walk.done.errors.push(("/vars".to_owned(), format!("variable `{name}` is given but the file does not declare it"), hint));
    }
    for entry in entries.iter_mut().filter(|e| e.key != "vars") {
        walk.node(&mut entry.value, &pointer_segment(&entry.key));
    }
    walk.done
}

impl Walk<'_> {
    /// Takes the file's variables, replaced by the given ones. A given value keeps the type of a declared string.
    fn declare(&mut self, vars: &mut Node) {
        let Kind::Map(entries) = &mut vars.kind else { return };
        for entry in entries {
            let given = self.environment.vars.get(&entry.key);
            let value = match (&entry.value.kind, given) {
                (Kind::Scalar(Value::String(_)), Some(text)) => Some(Value::String(text.clone())),
                (_, Some(text)) => Some(retype(text)),
                (Kind::Scalar(value), None) => Some(value.clone()),
                (_, None) => None,
            };
            if let Some(value) = &value {
                entry.value.kind = Kind::Scalar(value.clone());
            }
            self.vars.insert(entry.key.clone(), value);
        }
    }

    fn node(&mut self, node: &mut Node, path: &str) {
        match &mut node.kind {
            Kind::Null => {}
            Kind::Seq(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.node(item, &format!("{path}/{i}"));
                }
            }
            Kind::Map(entries) => {
                for entry in entries {
                    self.node(&mut entry.value, &format!("{path}{}", pointer_segment(&entry.key)));
                }
            }
            Kind::Scalar(value) => {
                let Some(text) = value.as_str().filter(|t| t.contains("${")).map(str::to_owned) else { return };
                // A wrong reference is told once: what would follow from it is not judged.
                *value = self.text(&text, path).unwrap_or_else(|| {
                    self.done.placeholders.push(path.to_owned());
                    Value::String(PLACEHOLDER.to_owned())
                });
            }
        }
    }

    /// The value of a scalar with references; `None` when one of them is wrong.
    fn text(&mut self, text: &str, path: &str) -> Option<Value> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            out.push_str(&rest[..start]);
            let Some(end) = rest[start..].find('}').map(|e| start + e) else {
                self.fail(path, format!("`{}` has no closing brace", &rest[start..]), None);
                return None;
            };
            let value = self.reference(&rest[start + 2..end], path)?;
            let whole = start == 0 && end + 1 == rest.len() && rest.len() == text.len();
            if whole {
                return Some(value);
            }
            match value {
                Value::String(text) => out.push_str(&text),
                other => out.push_str(&other.to_string()),
            }
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Some(Value::String(out))
    }

    fn fail(&mut self, path: &str, message: String, hint: Option<String>) {
        self.done.errors.push((path.to_owned(), message, hint));
    }

    fn reference(&mut self, body: &str, path: &str) -> Option<Value> {
        let (scheme, name) = body.split_once(':').unwrap_or((body, ""));
        let resolved = match scheme {
            "env" => self.env(name),
            "var" => match self.vars.get(name) {
                Some(Some(value)) => Resolved::Found(value.clone()),
                Some(None) => Resolved::Missing(format!("variable `{name}` has no value"), Some(format!("give one with --var {name}=..."))),
                None => {
                    let hint = did_you_mean(name, self.vars.keys().map(String::as_str));
                    let hint = hint.or_else(|| Some(format!("declare it: `vars: {{ {name}: ... }}`")));
                    self.fail(path, format!("variable `{name}` is not declared"), hint);
                    return None;
                }
            },
            "secret" => self.secret(name),
            _ => {
                self.fail(path, format!("unknown reference `${{{body}}}`"), Some("known: env, secret, var".to_owned()));
                return None;
            }
        };
        match resolved {
            Resolved::Found(value) => Some(value),
            Resolved::Missing(..) if self.environment.lenient => {
                self.done.placeholders.push(path.to_owned());
                Some(Value::String(PLACEHOLDER.to_owned()))
            }
            Resolved::Missing(message, hint) => {
                self.fail(path, message, hint);
                None
            }
        }
    }

    /// The default is taken when the variable is unset or empty, as in a shell.
    fn env(&self, body: &str) -> Resolved {
        let (name, default) = match body.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (body, None),
        };
        let value = self.environment.env.get(name).map(String::as_str);
        match (value.filter(|v| !v.is_empty()).or(default), value) {
            (Some(text), _) | (None, Some(text)) => Resolved::Found(retype(text)),
            (None, None) => Resolved::Missing(
                format!("environment variable `{name}` is not set"),
                Some(format!("set it, or give a default: ${{env:{name}:-value}}")),
            ),
        }
    }

    /// A secret is always text, without the line end of its file.
    fn secret(&mut self, name: &str) -> Resolved {
        let missing = |why: &str| Resolved::Missing(format!("secret `{name}` cannot be read: {why}"), None);
        let relative = Path::new(name);
        if name.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_))) {
            return missing("its name must be a path below the secrets folder");
        }
        let Some(dir) = &self.environment.secrets_dir else {
            return missing("no secrets folder is set");
        };
        match std::fs::read_to_string(dir.join(relative)) {
            Ok(text) => {
                let text = text.trim_end_matches(['\r', '\n']).to_owned();
                self.done.secrets.push(text.clone());
                Resolved::Found(Value::String(text))
            }
            Err(error) => missing(&error.to_string()),
        }
    }
}

/// A number or boolean where `text` is exactly one, else the text.
fn retype(text: &str) -> Value {
    match serde_json::from_str::<Value>(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// What a stand-in could be, tried in this order until its place accepts one.
#[must_use]
pub fn stand_ins(text: &str) -> Vec<Value> {
    if text != PLACEHOLDER {
        return [PLACEHOLDER, "1", "1s"].iter().map(|with| Value::String(text.replace(PLACEHOLDER, with))).collect();
    }
    let texts = ["1s", "1MiB", "localhost:1", "placeholder://localhost:1/placeholder", "2026-01-01T00:00:00Z"];
    let mut all = vec![Value::from(PLACEHOLDER), Value::from(1), Value::from(true)];
    all.extend(texts.map(Value::from));
    all
}

#[cfg(test)]
#[path = "substitute_tests.rs"]
mod tests;
