//! The golden cases of the operators, as a user runs them.

use std::path::Path;

use crate::node::fieldstream;

#[test]
fn golden_cases_pass_through_the_binary() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(folder).expect("tests/golden is there");
    let mut files: Vec<_> = entries.map(|e| e.expect("an entry").path()).filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    let output = fieldstream().arg("test").args(&files).output().expect("the binary runs");
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}");
}
