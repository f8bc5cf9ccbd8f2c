//! Files as users write them: examples plan and pass their tests, golden cases pass, wrong ones say what is wrong and where.

use std::path::{Path, PathBuf};

use expect_test::expect_file;
use fieldstream_pipelines::{Catalogue, Environment, lint, schema_text, test};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn yaml_files(name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder(name)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {name}");
    files
}

/// All failures of all files of a folder.
fn failures(name: &str) -> String {
    let mut out = String::new();
    for file in yaml_files(name) {
        let report = lint(std::slice::from_ref(&file), &Environment::default());
        let tests = test(&file, &Environment::default());
        if !report.files.iter().all(|f| f.problems.is_empty()) {
            out.push_str(&report.to_string());
        } else if !tests.ok() {
            out.push_str(&tests.to_string());
        }
    }
    out
}

#[test]
fn examples_lint_without_a_word_and_pass_their_tests() {
    let failures = failures("examples");
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn golden_cases_pass() {
    let failures = failures("../tests/golden");
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn every_operator_has_a_golden_case() {
    let text: String = yaml_files("../tests/golden").iter().map(|f| std::fs::read_to_string(f).unwrap()).collect();
    let missing: Vec<&str> =
        Catalogue::built_in().operators.iter().map(|o| o.name).filter(|name| !text.contains(&format!("\n    {name}:"))).collect();
    assert!(missing.is_empty(), "no golden case in tests/golden for {missing:?}");
}

#[test]
fn wrong_files_say_what_is_wrong_and_where() {
    for file in yaml_files("tests/wrong") {
        let report = lint(std::slice::from_ref(&file), &Environment::default());
        assert!(!report.ok(), "{} is not wrong", file.display());
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = report.to_string().replace(&file.display().to_string(), &name);
        expect_file![file.with_extension("txt")].assert_eq(&text);
    }
}

#[test]
fn the_published_schema_is_that_of_the_code() {
    expect_file![folder("pipeline.schema.json")].assert_eq(&schema_text(&Catalogue::built_in()));
}
