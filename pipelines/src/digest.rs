//! What a plan does, as short text for checkpoints: another text says that the pipeline has changed, and where.

use std::fmt::Write as _;

use fieldstream_runtime::digest::fnv1a;
use serde_json::{Value, json};

use crate::change::{self, node_of};
use crate::plan::{Plan, PlannedSource};

/// One line `part=hash` for event time, what stands for the journal, each source, operator and sink, in plan order. The text of a part is its kind, its inputs
/// and its options, maps in the order of the file. Options of operators are resolved, with secrets left out; those of sources
/// and sinks stand as they are written, since their references name servers and passwords.
#[must_use]
pub fn digest(plan: &Plan) -> String {
    let mut lines = String::new();
    let mut line = |part: &str, of: &Value| {
        let text = plan.document.redact(&of.to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{part}={:016x}", fnv1a(text.as_bytes()));
    };
    line("time", &json!(format!("{:?}", plan.time)));
    if let Some(journal) = &plan.journal {
        line("journal", &change::journal(plan, journal));
    }
    for source in &plan.sources {
        let at = format!("/sources/{}", source.name);
        line(&format!("source {}", source.name), &json!([source.kind.name, plan.document.as_written(&at)]));
    }
    for operator in &plan.operators {
        let inputs: Vec<String> = operator.inputs.iter().map(|port| plan.port_name(*port)).collect();
        line(&format!("operator {}", operator.name), &json!([operator.kind.name, inputs, operator.options]));
    }
    for sink in &plan.sinks {
        line(&format!("sink {}", sink.name), &change::sink(plan, sink));
    }
    lines
}

/// What the plan's receivers are, decoding and what stands for the journal included: between two plans with one text they need not be
/// interrupted. Empty for a log.
#[must_use]
pub fn receivers(plan: &Plan) -> String {
    let receivers = plan.sources.iter().filter(|source| !source.is_log());
    let written =
        |s: &PlannedSource| json!([s.name, s.kind.name, plan.document.as_written(node_of(&s.options_at)), plan.max_devices_per_source]);
    let journal = plan.journal.iter().map(|journal| change::journal(plan, journal).to_string());
    receivers.map(|s| written(s).to_string()).chain(journal).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Catalogue, Environment, load_text};

    const FILE: &str = r#"
version: 1
pipeline: changing
vars: { limit: 5, secret: none }
time: { out_of_orderness: 5s }
sources:
  in: { file: { path: "*.ndjson" } }
operators:
  clean: { validate: { rules: [{ id: range, range: { min: 0, max: 100 } }] }, inputs: [in] }
  high: { filter: { where: "value > ${var:limit}" }, inputs: [clean] }
  marked: { map: { set: { mark: "'${var:secret}'" } }, inputs: [high] }
sinks:
  out: { stdout: {}, inputs: [marked] }
discard: [in.rejected, clean.rejected, high.rejected, marked.rejected]
"#;

    fn of(text: &str, vars: &[(&str, &str)]) -> Vec<String> {
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let loaded = load_text("changing.yaml", text, &Environment { vars, ..Environment::default() }, &Catalogue::built_in());
        let (plan, _) = loaded.into_result().expect("a plan");
        digest(&plan).lines().map(str::to_owned).collect()
    }

    /// Parts whose lines differ.
    fn changed(a: &[String], b: &[String]) -> Vec<String> {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).filter(|(a, b)| a != b).map(|(a, _)| a.split('=').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn a_change_shows_in_its_own_part() {
        let first = of(FILE, &[]);
        assert_eq!(first, of(FILE, &[]), "the same in every reading");
        let parts: Vec<&str> = first.iter().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(parts, ["time", "source in", "operator clean", "operator high", "operator marked", "sink out"]);
        assert_eq!(changed(&first, &of(&FILE.replace("max: 100", "max: 101"), &[])), ["operator clean"]);
        assert_eq!(changed(&first, &of(FILE, &[("limit", "6")])), ["operator high"], "a variable counts as what it is");
        assert_eq!(changed(&first, &of(&FILE.replace("inputs: [high]", "inputs: [clean]"), &[])), ["operator marked"]);
        assert_eq!(changed(&first, &of(&FILE.replace("out_of_orderness: 5s", "out_of_orderness: 6s"), &[])), ["time"]);
        assert_eq!(changed(&first, &of(&FILE.replace("*.ndjson", "*.json"), &[])), ["source in"]);
        assert_eq!(changed(&first, &of(&FILE.replace("stdout", "blackhole"), &[])), ["sink out"]);
    }

    #[test]
    fn a_secret_is_not_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = FILE.replace("${var:secret}", "${secret:word}");
        let with = |word: &str| {
            std::fs::write(dir.path().join("word"), word).expect("a file");
            let environment = Environment { secrets_dir: Some(dir.path().to_owned()), ..Environment::default() };
            let (plan, _) = load_text("changing.yaml", &text, &environment, &Catalogue::built_in()).into_result().expect("a plan");
            digest(&plan)
        };
        assert_eq!(with("swordfish"), with("haddock"));
    }
}
