//! The speed bars as one table: each number is a ratio of a bare loop's CPU time to the engine's, in interleaved rounds.
//!
//! ```sh
//! taskset -c 1 cargo bench --bench ratios                          # everything that needs no other program
//! taskset -c 1 cargo bench --bench ratios -- reference DIR         # the reference job over DIR/p*.ndjson
//! taskset -c 1 cargo bench --bench ratios -- operators devices
//! taskset -c 1 cargo bench --bench ratios -- operators only=ewma
//! taskset -c 1 cargo bench --bench ratios -- commands DIR FAST BIN # whole programs: `FAST full-sonic DIR 1`, `BIN run ...`
//! ```
#![allow(clippy::print_stdout)] // a bench's table belongs on stdout

mod bare;
mod commands;
mod devices;
#[path = "../data/engine.rs"]
mod engine;
#[path = "../data/feed.rs"]
mod feed;
#[path = "../data/lines.rs"]
mod lines;
mod operators;
mod reference;
mod rounds;

use std::path::PathBuf;

/// Titles of the columns of [`rounds::Rounds`].
const TITLES: &str = "      bare    engine   ratio  (least .. most)";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let asked = |name: &str| arguments.iter().position(|a| a == name);
    let after = |at: usize, n: usize| arguments.get(at + n).map(PathBuf::from);
    if let Some(at) = asked("commands") {
        let (Some(folder), Some(fast), Some(binary)) = (after(at, 1), after(at, 2), after(at, 3)) else {
            println!("commands needs a folder with p*.ndjson, the yardstick's program and ours");
            return;
        };
        return commands::run(&folder, &fast, &binary);
    }
    let all = arguments.is_empty();
    // First, since it looks at the memory of the whole process.
    if all || asked("devices").is_some() {
        devices::run();
    }
    if all || asked("reference").is_some() {
        let folder = asked("reference").and_then(|at| after(at, 1)).filter(|folder| folder.is_dir());
        reference::run(folder.as_deref());
    }
    if all || asked("operators").is_some() {
        operators::run(arguments.iter().find_map(|argument| argument.strip_prefix("only=")).unwrap_or(""));
    }
}
