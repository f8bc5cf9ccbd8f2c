//! Soak: an even load, half of what this machine can take, for a long time, with a reload each minute. Memory and open files must
//! stay flat.
//!
//! `cargo xtask soak --minutes M [--report FILE]`. Too long for a plain `cargo test`, which leaves it out.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::field::Services;
use super::report;
use super::{Folder, drained, setting};
use crate::node::{Node, fieldstream};
use crate::services::{Database, service};

/// How long the maximum is measured, after as long a start.
const MEASURE: Duration = Duration::from_secs(20);
/// Time between two looks at the process.
const LOOK: Duration = Duration::from_secs(5);
/// Sensors a device of the fleet has on average.
const SENSORS: f64 = 8.0 / 3.0;
/// Of the run, what counts as warm-up.
const WARM_UP: f64 = 1.0 / 3.0;
/// Memory may grow by so much of its mean each minute after the warm-up (3 % in 30 minutes).
const GROWTH: f64 = 0.001;
/// Open files may be more at the end than after the warm-up by so many.
const FILES: f64 = 5.0;

/// One look at the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) minutes: f64,
    pub(super) rss_mib: f64,
    files: f64,
    received: u64,
    pub(super) in_flight: u64,
}

pub(super) fn look(node: &Node, began: Instant) -> Option<Look> {
    let process = PathBuf::from("/proc").join(node.id().to_string());
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let rss: f64 = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    let files = std::fs::read_dir(process.join("fd")).ok()?.count() as f64;
    let ledger = node.ledger()?;
    let (received, in_flight) = (ledger["received"].as_u64()?, ledger["in_flight"].as_u64()?);
    Some(Look { minutes: began.elapsed().as_secs_f64() / 60.0, rss_mib: rss / 1024.0, files, received, in_flight })
}

/// Least squares: growth a minute.
pub(super) fn slope(looks: &[Look], pick: impl Fn(&Look) -> f64) -> f64 {
    let n = looks.len() as f64;
    let (x, y) = (looks.iter().map(|l| l.minutes).sum::<f64>() / n, looks.iter().map(&pick).sum::<f64>() / n);
    let (mut up, mut along) = (0.0, 0.0);
    for look in looks {
        up += (look.minutes - x) * (pick(look) - y);
        along += (look.minutes - x).powi(2);
    }
    if along > 0.0 { up / along } else { 0.0 }
}

pub(super) fn mean(looks: &[Look], pick: impl Fn(&Look) -> f64) -> f64 {
    looks.iter().map(pick).sum::<f64>() / looks.len().max(1) as f64
}

pub(super) fn pipeline(devices: u64, speed: &str, limit: u64) -> String {
    let text = include_str!("soak.yaml").replace("@devices@", &devices.to_string()).replace("@speed@", speed);
    text.replace("@limit@", &limit.to_string())
}

pub(super) fn start(dir: &Path, url: &str, text: &str) -> Node {
    std::fs::create_dir_all(dir).expect("a directory");
    let file = dir.join("soak.yaml");
    std::fs::write(&file, text).expect("a file");
    let mut command = fieldstream();
    command.arg("run").arg(&file).env("SOAK_POSTGRES", url);
    Node::start(command, "soak", dir)
}

/// Readings a second that are stored when the fleet sends as fast as it can.
fn maximum(dir: &Path, database: &Database) -> f64 {
    let mut node = start(dir, &database.url(), &pipeline(2000, "max", 400));
    let settled = |node: &mut Node, more: u64| node.until("rows", |l| l["settled"].as_u64() >= Some(more))["settled"].as_u64().unwrap_or(0);
    settled(&mut node, 1);
    std::thread::park_timeout(MEASURE);
    let (from, began) = (settled(&mut node, 1), Instant::now());
    std::thread::park_timeout(MEASURE);
    let rate = (settled(&mut node, 1) - from) as f64 / began.elapsed().as_secs_f64();
    node.kill();
    rate
}

#[test]
fn soak() {
    let Some(minutes) = setting::<f64>("FIELDSTREAM_SOAK_MINUTES") else { return };
    let Some(script) = service("FIELDSTREAM_TEST_CTL") else { return };
    let folder = Folder::new();
    let services = Services::up(Path::new(&script), &folder.0.join("services"), &["postgres"]);
    let server = services.value("FIELDSTREAM_TEST_POSTGRES");
    let most = maximum(&folder.0.join("maximum"), &Database::on(server, "maximum"));
    let devices = ((most / 2.0 / SENSORS) as u64).max(10);
    eprintln!("soak: {most:.0} readings/s at most, {devices} devices for half of that");
    let database = Database::on(server, "soak");
    let node = start(&folder.0.join("soak"), &database.url(), &pipeline(devices, "1", 400));
    let began = Instant::now();
    let (mut looks, mut reloads, mut refusals) = (Vec::new(), 0, Vec::new());
    while began.elapsed().as_secs_f64() < minutes * 60.0 {
        std::thread::park_timeout(LOOK);
        looks.extend(look(&node, began));
        if began.elapsed().as_secs() / 60 > reloads {
            reloads += 1;
            // The rule changes to and fro; what is judged by it hardly ever does.
            let text = pipeline(devices, "1", 400 + reloads % 2);
            let (status, answer) = node.send("PUT", "/v1/pipelines/soak", "application/yaml", &text);
            refusals.extend((status != 200).then(|| format!("{status}: {answer}")));
        }
    }
    let account = drained(&node.stop_now());
    let stored = database.count("soak_rows");
    assert_eq!(account["delivered"]["history"], stored, "{account}");
    assert_eq!(account["settled"], stored, "{account}");
    judge(&looks, most, devices, reloads, &refusals);
}

fn judge(looks: &[Look], most: f64, devices: u64, reloads: u64, refusals: &[String]) {
    let warm = &looks[(looks.len() as f64 * WARM_UP) as usize..];
    let (last, first) = (warm.last().expect("looks"), warm.first().expect("looks"));
    let rate = (last.received - first.received) as f64 / (last.minutes - first.minutes) / 60.0;
    let (rss, files) = (mean(warm, |l| l.rss_mib), mean(warm, |l| l.files));
    let (rss_slope, files_slope) = (slope(warm, |l| l.rss_mib), slope(warm, |l| l.files));
    let waiting = warm.iter().map(|l| l.in_flight).max().unwrap_or_default();
    let grown = files_slope * (last.minutes - first.minutes);
    let summary = json!({
        "commit": report::commit(), "minutes": last.minutes, "maximum": most, "rate": rate, "devices": devices, "reloads": reloads,
        "refused_reloads": refusals, "rss_mib": rss, "rss_slope_mib_min": rss_slope, "files": files, "files_grown": grown,
        "most_in_flight": waiting,
    });
    let mut page = format!(
        "# Soak\n\nWritten by `cargo xtask soak`. Commit {}, {}.\n\nA fleet of {devices} devices -> journal -> validate, window, detect -> PostgreSQL \
         for {:.0} minutes at {rate:.0} readings/s; the most that was stored in a second, measured before, was {most:.0}.\n\n\
         | | mean after the warm-up | change a minute | criterion |\n|---|---|---|---|\n\
         | resident memory, MiB | {rss:.1} | {rss_slope:+.3} | at most {:+.3} (0.1 % of the mean) |\n\
         | open files | {files:.1} | {files_slope:+.3} | at most {FILES:.0} more at the end |\n\n\
         Readings in flight, at most: {waiting}. Reloads: {reloads}, of which {} were refused.\n\n| minute | MiB | open files | received | in flight |\n|---|---|---|---|---|\n",
        report::commit(),
        report::machine(),
        last.minutes,
        rss * GROWTH,
        refusals.len(),
    );
    for look in looks.iter().step_by(looks.len().div_ceil(30).max(1)) {
        let Look { minutes, rss_mib, files, received, in_flight } = look;
        let _ = writeln!(page, "| {minutes:.1} | {rss_mib:.1} | {files:.0} | {received} | {in_flight} |");
    }
    report::publish(&summary, &page, setting::<PathBuf>("FIELDSTREAM_SOAK_REPORT").as_deref());
    assert!(rss_slope <= rss * GROWTH, "memory grows: {summary}");
    assert!(grown <= FILES, "open files grow: {summary}");
    assert!(refusals.is_empty(), "reloads were refused: {summary}");
}
