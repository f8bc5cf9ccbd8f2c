//! The walls between the rooms: who may use whom, compared with what cargo and the sources say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::scan;
use crate::sources::{self, Source};
use crate::table::{DOORS, NEVER_REACH, ONE_COPY, ROOMS, Room, USE_WALLS, UseWall};

/// All findings of the workspace at `root`.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .context("cargo metadata could not be run")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
    let mut findings = edges(&metadata, ROOMS);
    findings.extend(reaches(&metadata));
    findings.extend(copies(&metadata));
    findings.extend(uses(&sources::read_all(root)?, USE_WALLS));
    Ok(findings)
}

fn texts<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Direct dependencies that the table does not allow, and lines of the table that allow what is not there.
fn edges(metadata: &Value, rooms: &[Room]) -> Vec<String> {
    let mut findings = Vec::new();
    for package in list(metadata, "packages").iter().filter(|p| p["source"].is_null()) {
        let name = texts(package, "name");
        let Some(room) = rooms.iter().find(|room| room.package == name) else {
            findings.push(format!("{name} is no room of xtask/src/table.rs: say there what it may use"));
            continue;
        };
        let used = |dev: bool| -> BTreeSet<&str> {
            let kind = |d: &Value| d["kind"].as_str() == Some("dev");
            list(package, "dependencies").iter().filter(|d| kind(d) == dev).map(|d| texts(d, "name")).collect()
        };
        for (section, used, allowed) in [("dependencies", used(false), room.uses), ("dev-dependencies", used(true), room.tests_use)] {
            let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
            findings.extend(used.difference(&allowed).map(|d| format!("{name} must not use {d} ({section}): {}", room.why)));
            findings.extend(
                allowed.difference(&used).map(|d| format!("{name} uses {d} no longer: take it out of {section} in xtask/src/table.rs")),
            );
        }
    }
    findings
}

/// Crates that a room gets at through others. Behind a door (such as the SQL expressions) nobody looks.
fn reaches(metadata: &Value) -> Vec<String> {
    let names: BTreeMap<&str, &str> = list(metadata, "packages").iter().map(|p| (texts(p, "id"), texts(p, "name"))).collect();
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in list(&metadata["resolve"], "nodes") {
        let from = names.get(texts(node, "id")).copied().unwrap_or_default();
        let normal = |d: &&Value| list(d, "dep_kinds").iter().any(|k| k["kind"].is_null());
        let to = list(node, "deps").iter().filter(normal).filter_map(|d| names.get(texts(d, "pkg")).copied());
        next.entry(from).or_default().extend(to);
    }
    let mut findings = Vec::new();
    for (room, banned) in NEVER_REACH {
        let (mut seen, mut todo) = (BTreeSet::from([*room]), vec![vec![*room]]);
        while let Some(path) = todo.pop() {
            let last = path.last().copied().unwrap_or_default();
            if banned.contains(&last) {
                findings.push(format!("{room} must not reach {last}, but does: {}", path.join(" -> ")));
                continue;
            }
            if DOORS.iter().any(|door| last.starts_with(door)) {
                continue;
            }
            for &to in next.get(last).map_or(&[][..], Vec::as_slice) {
                if seen.insert(to) {
                    todo.push(path.iter().copied().chain([to]).collect());
                }
            }
        }
    }
    findings
}

/// Crates that are in the tree more than once and must not be.
fn copies(metadata: &Value) -> Vec<String> {
    let versions_of = |name: &str| -> Vec<&str> {
        list(metadata, "packages").iter().filter(|p| p["name"] == name).map(|p| texts(p, "version")).collect()
    };
    let all = ONE_COPY.iter().map(|name| (name, versions_of(name))).filter(|(_, versions)| versions.len() > 1);
    all.map(|(name, versions)| format!("{name} is in the tree as {}: two copies are two incompatible types", versions.join(" and ")))
        .collect()
}

/// Words that code may use in some files only. Tests are free.
fn uses(sources: &[Source], walls: &[UseWall]) -> Vec<String> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust() && !is_test(&s.path)) {
        let code = scan::without_tests(&scan::code_only(&source.text));
        for wall in walls {
            let inside = wall.inside.iter().any(|prefix| source.path.starts_with(prefix));
            if !inside || wall.allowed.iter().any(|allowed| source.path.starts_with(allowed)) {
                continue;
            }
            let word = wall.words.iter().find(|word| code.contains(**word));
            findings.extend(word.map(|word| format!("{} must not say `{word}`: {}", source.path, wall.why)));
        }
    }
    findings
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.contains("/benches/") || path.ends_with("tests.rs")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ROOM: Room = Room { package: "operators", uses: &["api", "arrow"], tests_use: &["proptest"], why: "operators are pure" };

    fn package(name: &str, uses: &[&str]) -> Value {
        let dependencies: Vec<_> = uses.iter().map(|d| json!({ "name": d, "kind": null })).collect();
        let dev = json!({ "name": "proptest", "kind": "dev" });
        json!({ "id": name, "name": name, "source": null, "dependencies": dependencies.into_iter().chain([dev]).collect::<Vec<_>>() })
    }

    #[test]
    fn the_right_edges_hold() {
        let metadata = json!({ "packages": [package("operators", &["api", "arrow"])] });
        assert_eq!(edges(&metadata, &[ROOM]), Vec::<String>::new());
    }

    #[test]
    fn a_forbidden_edge_an_unused_line_and_an_unknown_room_are_found() {
        let metadata = json!({ "packages": [package("operators", &["arrow", "tokio"]), package("helpers", &[])] });
        assert_eq!(
            edges(&metadata, &[ROOM]),
            [
                "operators must not use tokio (dependencies): operators are pure",
                "operators uses api no longer: take it out of dependencies in xtask/src/table.rs",
                "helpers is no room of xtask/src/table.rs: say there what it may use",
            ]
        );
    }

    #[test]
    fn a_crate_reached_through_another_is_found_but_not_behind_a_door() {
        let node = |id: &str, to: &[&str]| {
            let deps: Vec<_> = to.iter().map(|d| json!({ "pkg": d, "dep_kinds": [{ "kind": null }] })).collect();
            json!({ "id": id, "deps": deps })
        };
        let name = |n: &str| json!({ "id": n, "name": n });
        let packages: Vec<_> = ["fieldstream-operators", "helper", "tokio", "datafusion-expr", "actix"].map(name).to_vec();
        let nodes = [
            node("fieldstream-operators", &["helper", "datafusion-expr"]),
            node("helper", &["actix"]),
            node("datafusion-expr", &["tokio"]),
        ];
        let found = reaches(&json!({ "packages": packages, "resolve": { "nodes": nodes } }));
        assert_eq!(found, ["fieldstream-operators must not reach actix, but does: fieldstream-operators -> helper -> actix"]);
    }

    #[test]
    fn a_second_copy_of_arrow_is_found() {
        let package = |name: &str, version: &str| json!({ "name": name, "version": version });
        let packages = [package("arrow", "59.0.0"), package("arrow", "60.0.0"), package("rand", "0.8.5"), package("rand", "0.9.0")];
        let found = copies(&json!({ "packages": packages }));
        assert_eq!(found, ["arrow is in the tree as 59.0.0 and 60.0.0: two copies are two incompatible types"]);
    }

    #[test]
    fn a_word_on_the_wrong_side_is_found_in_code_only() {
        let wall = UseWall { words: &["actix::"], inside: &["engine/"], allowed: &["engine/runtime/src/shard.rs"], why: "one actor file" };
        let bad = Source::new("engine/runtime/src/queue.rs", "use actix::Addr;\n");
        let good = [
            Source::new("engine/runtime/src/shard.rs", "use actix::Addr;\n"),
            Source::new("engine/api/src/lib.rs", "//! not actix::Addr\n#[cfg(test)]\nmod tests {\n    use actix::Addr;\n}\n"),
            Source::new("engine/runtime/src/queue_tests.rs", "use actix::Addr;\n"),
            Source::new("src/main.rs", "use actix::Addr;\n"),
        ];
        assert_eq!(uses(&[bad], &[wall]), ["engine/runtime/src/queue.rs must not say `actix::`: one actor file"]);
        assert_eq!(uses(&good, &[wall]), Vec::<String>::new());
    }
}
