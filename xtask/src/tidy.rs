//! The habits of the house: module docs, short files and functions, no left-overs, a golden case per operator.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::scan;
use crate::sources::{self, Source};

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;
const EXCEPTIONS: &str = "xtask/tidy-exceptions.txt";

/// This file has to name what it forbids.
const SELF: &str = "xtask/src/tidy.rs";

/// Code that must not be committed, and why.
const LEFT_OVERS: &[(&str, &str)] = &[
    ("todo!(", "finish it, or do not offer it"),
    ("unimplemented!(", "finish it, or do not offer it"),
    ("dbg!(", "use tracing"),
    ("#[ignore", "a test that does not run proves nothing"),
    ("macro_rules!", "write a function or a table"),
];

/// Text that is true on one machine only.
const FOREIGN: &[&str] = &["/root/", "/home/"];

/// All findings of the workspace at `root`.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let sources = sources::read_all(root)?;
    let text = sources.iter().find(|s| s.path == EXCEPTIONS).with_context(|| format!("{EXCEPTIONS} is missing; it may be empty"))?;
    let exceptions = read_exceptions(&text.text)?;
    let mut findings = module_docs(&sources);
    findings.extend(lengths(&sources, &exceptions));
    findings.extend(left_overs(&sources));
    findings.extend(foreign_words(&sources));
    findings.extend(golden_cases(&sources));
    Ok(findings)
}

fn module_docs(sources: &[Source]) -> Vec<String> {
    let bare = sources.iter().filter(|s| s.is_rust() && !s.text.starts_with("//! "));
    bare.map(|s| format!("{}:1: begins without a `//!` line that says what the file is for", s.path)).collect()
}

/// `file PATH LINES` and `fn PATH NAME LINES`, keyed by everything but the lines.
fn read_exceptions(text: &str) -> Result<BTreeMap<String, usize>> {
    let mut exceptions = BTreeMap::new();
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let Some((key, Ok(lines))) = line.rsplit_once(' ').map(|(key, lines)| (key, lines.parse())) else {
            bail!("{EXCEPTIONS}: `{line}` is neither `file PATH LINES` nor `fn PATH NAME LINES`");
        };
        exceptions.insert(key.to_owned(), lines);
    }
    Ok(exceptions)
}

/// Files and functions above the limit that are no exception, and exceptions that could shrink.
fn lengths(sources: &[Source], exceptions: &BTreeMap<String, usize>) -> Vec<String> {
    let (mut findings, mut long) = (Vec::new(), BTreeMap::new());
    for source in sources.iter().filter(|s| s.is_rust()) {
        let code = scan::code_only(&source.text);
        let file_lines = source.text.lines().count() - (code.lines().count() - scan::without_tests(&code).lines().count());
        if file_lines > FILE_LINES {
            long.insert(
                format!("file {}", source.path),
                (file_lines, format!("{}:1: {file_lines} lines, more than {FILE_LINES}", source.path)),
            );
        }
        for function in scan::functions(&code).into_iter().filter(|f| f.lines > FUNCTION_LINES) {
            let scan::Function { name, line, lines } = function;
            let finding = format!("{}:{line}: {name} has {lines} lines, more than {FUNCTION_LINES}", source.path);
            long.insert(format!("fn {} {name}", source.path), (lines, finding));
        }
    }
    for (key, (lines, finding)) in &long {
        match exceptions.get(key) {
            None => findings.push(format!("{finding}: divide it")),
            Some(allowed) if lines > allowed => findings.push(format!("{finding}, and its exception allows {allowed} only: divide it")),
            Some(allowed) if lines < allowed => findings.push(format!("{EXCEPTIONS}: `{key}` may shrink: lower {allowed} to {lines}")),
            Some(_) => {}
        }
    }
    let over = exceptions.keys().filter(|key| !long.contains_key(*key));
    findings.extend(over.map(|key| format!("{EXCEPTIONS}: `{key}` is no longer needed: take it out")));
    findings
}

fn left_overs(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        for (number, line) in scan::code_only(&source.text).lines().enumerate() {
            let found = LEFT_OVERS.iter().filter(|(word, _)| line.contains(word));
            findings.extend(found.map(|(word, why)| format!("{}:{}: `{word}`: {why}", source.path, number + 1)));
        }
    }
    for source in sources.iter().filter(|s| s.path != SELF) {
        for (number, line) in source.text.lines().enumerate() {
            let bare = ["TODO", "FIXME", "XXX"].iter().find(|mark| has_word(line, mark) && !line.contains(&format!("{mark}(")));
            findings
                .extend(bare.map(|mark| format!("{}:{}: {mark} without a reason: write {mark}(why it waits)", source.path, number + 1)));
        }
    }
    findings
}

fn has_word(line: &str, word: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '.');
    line.match_indices(word).any(|(at, _)| edge(line[..at].chars().next_back()) && edge(line[at + word.len()..].chars().next()))
}

fn foreign_words(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|s| s.path != SELF && s.path != "Cargo.lock") {
        for (number, line) in source.text.lines().enumerate() {
            let found = FOREIGN.iter().filter(|word| line.contains(**word));
            findings
                .extend(found.map(|word| format!("{}:{}: `{word}` has no meaning in a clone of this repository", source.path, number + 1)));
        }
    }
    findings
}

/// Every operator kind has a golden case `tests/golden/<kind>*.yaml`.
fn golden_cases(sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust() && s.path.starts_with("operators/src/")) {
        let kinds = source.text.match_indices(": OperatorKind = OperatorKind {").filter_map(|(at, _)| {
            let rest = &source.text[at..];
            rest.split("name: \"").nth(1)?.split('"').next()
        });
        for kind in kinds {
            let prefix = format!("tests/golden/{kind}");
            if !sources.iter().any(|s| s.path.starts_with(&prefix) && s.path.ends_with(".yaml")) {
                findings.push(format!("operator `{kind}` ({}) has no golden case {prefix}*.yaml", source.path));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_function(lines: usize) -> String {
        format!("//! A file.\nfn long() {{\n{}}}\n", "    step();\n".repeat(lines - 2))
    }

    #[test]
    fn a_file_without_docs_is_found() {
        let sources = [Source::new("a.rs", "//! Doc.\n"), Source::new("b.rs", "use a;\n"), Source::new("c.md", "text")];
        assert_eq!(module_docs(&sources), ["b.rs:1: begins without a `//!` line that says what the file is for"]);
    }

    #[test]
    fn long_functions_and_files_are_found() {
        let none = BTreeMap::new();
        assert_eq!(lengths(&[Source::new("a.rs", &long_function(70))], &none), Vec::<String>::new());
        assert_eq!(lengths(&[Source::new("a.rs", &long_function(71))], &none), ["a.rs:2: long has 71 lines, more than 70: divide it"]);
        let long = "//! A file.\n".to_owned() + &"// line\n".repeat(500);
        assert_eq!(lengths(&[Source::new("a.rs", &long)], &none), ["a.rs:1: 501 lines, more than 500: divide it"]);
        let tests = "//! A file.\n#[cfg(test)]\nmod tests {\n".to_owned() + &"    // line\n".repeat(600) + "}\n";
        assert_eq!(lengths(&[Source::new("a.rs", &tests)], &none), Vec::<String>::new());
    }

    #[test]
    fn exceptions_may_only_shrink() {
        let with = |text: &str, lines| lengths(&[Source::new("a.rs", &long_function(lines))], &read_exceptions(text).expect("a list"));
        assert_eq!(with("# why\nfn a.rs long 90\n", 90), Vec::<String>::new());
        assert_eq!(with("fn a.rs long 90", 91), ["a.rs:2: long has 91 lines, more than 70, and its exception allows 90 only: divide it"]);
        assert_eq!(with("fn a.rs long 90", 80), ["xtask/tidy-exceptions.txt: `fn a.rs long` may shrink: lower 90 to 80"]);
        assert_eq!(with("fn a.rs long 90", 60), ["xtask/tidy-exceptions.txt: `fn a.rs long` is no longer needed: take it out"]);
        assert!(read_exceptions("fn a.rs long").is_err());
    }

    #[test]
    fn left_overs_are_found_in_code_and_marks_anywhere() {
        let text = "//! todo!() in a comment is no left-over.\nfn a() { todo!() }\n// TODO later\n// TODO(needs topic ids): later\nlet TODOS = 1;\n";
        assert_eq!(
            left_overs(&[Source::new("a.rs", text)]),
            ["a.rs:2: `todo!(`: finish it, or do not offer it", "a.rs:3: TODO without a reason: write TODO(why it waits)"]
        );
    }

    #[test]
    fn foreign_paths_are_found() {
        let sources = [Source::new("README.md", "see /home/me/x\nnothing here\n"), Source::new("Cargo.lock", "/root/")];
        assert_eq!(foreign_words(&sources), ["README.md:1: `/home/` has no meaning in a clone of this repository"]);
    }

    #[test]
    fn an_operator_without_a_golden_case_is_found() {
        let kind = |name: &str| format!("pub const KIND: OperatorKind = OperatorKind {{\n    name: \"{name}\",\n}};\n");
        let sources = [
            Source::new("operators/src/filter.rs", &kind("filter")),
            Source::new("operators/src/map.rs", &kind("map")),
            Source::new("tests/golden/filter_nulls.yaml", ""),
        ];
        assert_eq!(golden_cases(&sources), ["operator `map` (operators/src/map.rs) has no golden case tests/golden/map*.yaml"]);
    }
}
