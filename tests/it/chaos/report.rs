//! What a run found, as one line of JSON and as a page.
#![allow(clippy::print_stdout)] // the line is for whoever started the run

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::faults::Tally;
use super::oracle::Counts;

/// A whole run.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) disk: bool,
    pub(crate) tally: Tally,
    pub(crate) mqtt: Counts,
    pub(crate) kafka: Counts,
    /// Messages that the fleet on MQTT sent more than once.
    pub(crate) sent_again: u64,
    /// Readings from MQTT that were known already.
    pub(crate) deduplicated: u64,
    /// Ends of workers that nobody asked for, with their last words.
    pub(crate) deaths: Vec<String>,
    /// Ends for reasons that are known, by worker and reason.
    pub(crate) known: BTreeMap<String, u64>,
}

/// Median and worst of `seconds`.
fn middle_and_worst(seconds: &[f64]) -> (f64, f64) {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    (middle, sorted.last().copied().unwrap_or_default())
}

impl Run {
    /// Recoveries from kills outside of other faults.
    fn kills(&self) -> Vec<f64> {
        let of_kill = |name: &&String| name.contains("killed") && name.contains("worker");
        self.tally.recovery.keys().filter(of_kill).flat_map(|name| self.tally.recovery[name].clone()).collect()
    }

    fn json(&self) -> Value {
        let (median, worst) = middle_and_worst(&self.kills());
        let counts = |c: &Counts| {
            json!({
                "sent": c.sent, "rows": c.rows, "out_of_range": c.out_of_range, "malformed": c.malformed, "malformed_again": c.malformed_again,
                "windows": c.windows, "revisions": c.revisions, "alerts": c.alerts, "alerts_again": c.alerts_again,
            })
        };
        json!({
            "seed": self.seed, "seconds": self.seconds, "commit": commit(), "faults": self.tally.faults, "kills": self.tally.kills,
            "kills_within": self.tally.kills_within, "recovery_after_kill_s": { "median": median, "worst": worst },
            "mqtt": counts(&self.mqtt), "kafka": counts(&self.kafka), "sent_again": self.sent_again,
            "deduplicated": self.deduplicated, "deaths": self.deaths, "known_ends": self.known, "disk": self.disk,
        })
    }

    fn page(&self) -> String {
        let Self { seed, seconds, tally, mqtt, kafka, .. } = self;
        let (median, worst) = middle_and_worst(&self.kills());
        let mut out = format!(
            "# Chaos on the real processes\n\nWritten by `cargo xtask chaos`. Seed {seed}, {:.1} minutes of faults, commit {}, {}.\n\n\
             Every row was compared: input equals tables plus dead letters, windows and alerts equal those of a plain program, both ledgers \
             balance.\n\n",
            *seconds as f64 / 60.0,
            commit(),
            machine(),
        );
        let _ = write!(
            out,
            "**{} SIGKILLs of workers** ({} of them within another fault). From a kill until every partition had handled more than before: median {median:.2} s, \
             worst {worst:.2} s.\n\n",
            tally.kills, tally.kills_within
        );
        out += "| | MQTT, journal, PostgreSQL | Kafka, PostgreSQL |\n|---|---|---|\n";
        let mut line = |what: &str, pick: fn(&Counts) -> u64| {
            let _ = writeln!(out, "| {what} | {} | {} |", pick(mqtt), pick(kafka));
        };
        line("readings sent and acknowledged", |c| c.sent);
        line("rows in the table, each once", |c| c.rows);
        line("dead letters out of range, each once", |c| c.out_of_range);
        line("dead letters of malformed payloads", |c| c.malformed);
        line("the same again, sent or delivered again by MQTT", |c| c.malformed_again);
        line("windows, each once", |c| c.windows);
        line("corrections of windows that silence had closed, each once", |c| c.revisions);
        line("alerts", |c| c.alerts);
        line("alerts that came again with the same id", |c| c.alerts_again);
        let _ = write!(
            out,
            "\nThe fleet on MQTT sent {} messages more than once; {} readings were deduplicated.\n\n",
            self.sent_again, self.deduplicated
        );
        out += "Seconds until every partition of a pipeline had handled more than before, from the end of the fault (of a kill: from the kill):\n\n";
        out += "| fault | times | median s | worst s |\n|---|---|---|---|\n";
        for (name, times) in &tally.faults {
            let (median, worst) = middle_and_worst(tally.recovery.get(name).map_or(&[], Vec::as_slice));
            let _ = writeln!(out, "| {name} | {times} | {median:.2} | {worst:.2} |");
        }
        if !self.disk {
            out += "\nSKIPPED: full disks, since no small disk could be mounted.\n";
        }
        let _ = writeln!(out, "\nWorkers that ended without being told to: {}.", self.deaths.len());
        for words in &self.deaths {
            let _ = writeln!(out, "- `{words}`");
        }
        out += "Ended for a reason that is known (`docs/gaps.md`), and started again as a service manager does:";
        let known: Vec<String> = self.known.iter().map(|(reason, times)| format!("{reason} ({times})")).collect();
        let _ = writeln!(out, " {}.", if known.is_empty() { "none".to_owned() } else { known.join(", ") });
        out
    }

    /// Prints the line, and writes the page where one is wanted.
    pub(crate) fn tell(&self, page: Option<&Path>) {
        publish(&self.json(), &self.page(), page);
    }
}

/// Prints the line, and writes the page where one is wanted.
pub(crate) fn publish(line: &Value, text: &str, page: Option<&Path>) {
    println!("{line}");
    if let Some(path) = page {
        std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// The commit, as whoever started the run says.
pub(crate) fn commit() -> String {
    std::env::var("FIELDSTREAM_TEST_COMMIT").unwrap_or_else(|_| "unknown".to_owned())
}

/// What it ran on.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = Command::new("uname").arg("-sr").output().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    format!("{cores} cores, {}, test profile", kernel.unwrap_or_default())
}
