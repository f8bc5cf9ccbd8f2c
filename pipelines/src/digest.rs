//! What a plan does, as short text for checkpoints: another text says that the pipeline has changed, and where.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::plan::Plan;

/// One line `part=hash` for event time, each source and each operator, in plan order. The text of a part is its kind, its inputs
/// and its options, maps in the order of the file. Options of operators are resolved, with secrets left out; those of sources
/// stand as they are written, since their references name servers and passwords. Sinks decide no result and have no line.
#[must_use]
pub fn digest(plan: &Plan) -> String {
    let mut lines = String::new();
    let mut line = |part: &str, of: &Value| {
        let text = plan.document.redact(&of.to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{part}={:016x}", fnv1a(text.as_bytes()));
    };
    line("time", &json!(format!("{:?}", plan.time)));
    for source in &plan.sources {
        let at = format!("/sources/{}", source.name);
        line(&format!("source {}", source.name), &json!([source.kind.name, plan.document.as_written(&at)]));
    }
    for operator in &plan.operators {
        let inputs: Vec<String> = operator.inputs.iter().map(|port| plan.port_name(*port)).collect();
        line(&format!("operator {}", operator.name), &json!([operator.kind.name, inputs, operator.options]));
    }
    lines
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same in every process, which the hasher of the standard
/// library does not promise. It finds changes; it keeps nobody from making two plans of one hash.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
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
        assert_eq!(parts, ["time", "source in", "operator clean", "operator high", "operator marked"]);
        assert_eq!(changed(&first, &of(&FILE.replace("max: 100", "max: 101"), &[])), ["operator clean"]);
        assert_eq!(changed(&first, &of(FILE, &[("limit", "6")])), ["operator high"], "a variable counts as what it is");
        assert_eq!(changed(&first, &of(&FILE.replace("inputs: [high]", "inputs: [clean]"), &[])), ["operator marked"]);
        assert_eq!(changed(&first, &of(&FILE.replace("out_of_orderness: 5s", "out_of_orderness: 6s"), &[])), ["time"]);
        assert_eq!(changed(&first, &of(&FILE.replace("*.ndjson", "*.json"), &[])), ["source in"]);
        let nothing: [&str; 0] = [];
        assert_eq!(changed(&first, &of(&FILE.replace("stdout", "blackhole"), &[])), nothing);
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!((fnv1a(b""), fnv1a(b"a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
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
