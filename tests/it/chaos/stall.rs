//! Stall: the database stands still for minutes while a fleet goes on sending. The journal fills, memory stays flat, and what was held
//! back is stored promptly once the database goes on.
//!
//! `cargo xtask stall --minutes M [--report FILE]`. Too long for a plain `cargo test`, which leaves it out; `overload.rs` has a short one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::field::Services;
use super::report;
use super::soak::{Look, look, mean, pipeline, slope, start};
use super::{Folder, drained, setting};
use crate::node::Node;
use crate::services::{Database, service};

/// Devices of the fleet; each sends about 2.7 readings a second.
const DEVICES: u64 = 4_000;
/// Time before the stall, in which the process takes the memory that it needs anyway.
const WARM_UP: Duration = Duration::from_secs(60);
/// Time between two looks at the process.
const LOOK: Duration = Duration::from_secs(2);
/// What the sinks may hold back in memory until their pipeline pauses, queues and batches under way.
const ALLOWANCE_MIB: f64 = 64.0;
/// Growth a minute of a process whose queues are full.
const GROWTH_MIB: f64 = 1.0;

fn looks_for(node: &Node, began: Instant, time: Duration) -> Vec<Look> {
    let (mut looks, from) = (Vec::new(), Instant::now());
    while from.elapsed() < time {
        std::thread::park_timeout(LOOK);
        looks.extend(look(node, began));
    }
    looks
}

#[test]
fn stall() {
    let Some(minutes) = setting::<f64>("FIELDSTREAM_STALL_MINUTES") else { return };
    let Some(script) = service("FIELDSTREAM_TEST_CTL") else { return };
    let folder = Folder::new();
    let services = Services::up(Path::new(&script), &folder.0.join("services"), &["postgres"]);
    let database = Database::on(services.value("FIELDSTREAM_TEST_POSTGRES"), "stall");
    let node = start(&folder.0.join("stall"), &database.url(), &pipeline(DEVICES, "1", 400));
    let began = Instant::now();
    let before = looks_for(&node, began, WARM_UP);
    services.run("pause", "postgres");
    let during = looks_for(&node, began, Duration::from_secs_f64(minutes * 60.0));
    services.run("resume", "postgres");
    let (thawed, usual) = (Instant::now(), before.iter().map(|l| l.in_flight).max().unwrap_or_default());
    let held_back = during.last().expect("looks").in_flight;
    while look(&node, began).is_none_or(|now| now.in_flight > usual.max(1) * 2) {
        assert!(thawed.elapsed().as_secs_f64() < minutes * 60.0, "it takes longer to store what was held back than it was held back");
        std::thread::park_timeout(LOOK / 10);
    }
    let recovery = thawed.elapsed();
    let account = drained(&node.stop_now());
    let stored = database.count("soak_rows");
    assert_eq!(account["settled"], stored, "{account}");
    judge(&before, &during, held_back, recovery, stored);
}

fn judge(before: &[Look], during: &[Look], held_back: u64, recovery: Duration, stored: u64) {
    let usual = mean(&before[before.len() / 2..], |l| l.rss_mib);
    let highest = during.iter().map(|l| l.rss_mib).fold(0.0, f64::max);
    // In the first third the queues fill.
    let full = &during[during.len() / 3..];
    let growth = slope(full, |l| l.rss_mib);
    let (first, last) = (during.first().expect("looks"), during.last().expect("looks"));
    let minutes = last.minutes - first.minutes;
    let rate = (held_back.saturating_sub(first.in_flight)) as f64 / minutes / 60.0;
    let summary = json!({
        "commit": report::commit(), "minutes": minutes, "held_back": held_back, "rate": rate, "rss_mib_before": usual,
        "rss_mib_highest": highest, "rss_slope_mib_min": growth, "recovery_s": recovery.as_secs_f64(), "stored": stored,
    });
    let page = format!(
        "# Stall\n\nWritten by `cargo xtask stall`. Commit {}, {}.\n\nA fleet of {DEVICES} devices -> journal -> validate, window, detect -> PostgreSQL, \
         which stood still for {minutes:.1} minutes. {held_back} readings ({rate:.0} a second) were held back in the journal; all {stored} of the run are \
         stored, once.\n\n| | seen | criterion |\n|---|---|---|\n| resident memory before, MiB | {usual:.1} | |\n\
         | resident memory at most, MiB | {highest:.1} | at most {ALLOWANCE_MIB:.0} more |\n\
         | change a minute once the queues are full, MiB | {growth:+.3} | at most {GROWTH_MIB:+.1} |\n\
         | until what was held back was stored, s | {:.1} | |\n",
        report::commit(),
        report::machine(),
        recovery.as_secs_f64(),
    );
    report::publish(&summary, &page, setting::<PathBuf>("FIELDSTREAM_STALL_REPORT").as_deref());
    assert!(highest <= usual + ALLOWANCE_MIB, "memory grew: {summary}");
    assert!(growth <= GROWTH_MIB, "memory grows: {summary}");
}
