//! `fieldstream demo`: a simulated fleet with injected faults, over MQTT through the whole engine, with nothing installed.
//!
//! The fleet's time runs faster than the clock and ends about now, so no reading comes from the future. What is told of it is
//! compared with what was injected; the demo fails when too little was found, too much was made up, or the ledger does not balance.

mod broker;
mod fleet;
mod score;
mod screen;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use fieldstream_connectors::generator::{FaultConfig, Fleet, FleetConfig, Label, Sample};
use fieldstream_pipelines::{BuildOptions, Catalogue, Environment, Plan, build, load_text};
use fieldstream_runtime::clock::{Clock, SystemClock};
use fieldstream_runtime::engine::{Engine, EngineOptions};
use fieldstream_runtime::ledger::Ledger;
use fieldstream_runtime::pipeline::Report;
use fieldstream_runtime::status::Status;
use serde_json::json;
use tokio::sync::watch;

use self::fleet::{LEAD_READINGS, Publisher, by_device, spoken};
use self::score::{FALSE_PER_100_H, Finding, RECALL, Score};
use self::screen::{Rates, Screen, Tail};
use crate::exit::BadPipeline;

const PIPELINE: &str = include_str!("../../pipelines/examples/demo.yaml");

const HOUR_US: i64 = 3_600_000_000;
/// Event time between two readings of a sensor.
const INTERVAL_US: i64 = 30_000_000;
/// Event time of the whole run.
const FLEET_US: i64 = 12 * HOUR_US;
/// Publishing takes at least this long, so that a person can follow, ...
const PACE: Duration = Duration::from_secs(30);
/// ... and on a slow machine at most this long: the fleet's time then ends earlier.
const PUBLISH_AT_MOST: Duration = Duration::from_secs(110);
/// How long the pipeline may take to catch up when everything is published.
const SETTLE: Duration = Duration::from_secs(30);
/// How long a first message may take before it is taken for lost: the pipeline had not subscribed yet.
const HELLO: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);
/// Partitions of the demo's journal.
const PARTITIONS: u32 = 4;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where state and results are left; a new folder `.fieldstream/demo-<n>` unless given.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Seed of the fleet: the same seed gives the same faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Devices of the fleet.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(30..=300))]
    devices: u32,
    /// Print one JSON object at the end instead of text.
    #[arg(long)]
    json: bool,
}

/// Runs the demo. The exit code is 1 when the ledger does not balance or the faults were not found as promised.
pub(crate) fn demo(args: &DemoArgs) -> Result<ExitCode> {
    let folder = folder(args.data_dir.as_deref())?;
    let system = actix::System::with_tokio_rt(super::run::multi_thread_runtime);
    system.block_on(Box::pin(run(args, &folder)))
}

/// A folder that nothing lies in yet.
fn folder(wanted: Option<&Path>) -> Result<PathBuf> {
    if let Some(wanted) = wanted {
        std::fs::create_dir_all(wanted).with_context(|| format!("cannot make {}", wanted.display()))?;
        if std::fs::read_dir(wanted)?.next().is_some() {
            bail!("{} is not empty; name a new folder", wanted.display());
        }
        return Ok(wanted.to_owned());
    }
    let base = Path::new(".fieldstream");
    std::fs::create_dir_all(base).context("cannot make .fieldstream here; name a folder with --data-dir")?;
    for number in 1..10_000 {
        let folder = base.join(format!("demo-{number}"));
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| folder).context("cannot make a folder in .fieldstream; name one with --data-dir"),
        }
    }
    bail!(".fieldstream holds too many demos; remove some")
}

async fn run(args: &DemoArgs, folder: &Path) -> Result<ExitCode> {
    let clock = Arc::new(SystemClock::default());
    let broker = broker::start()?;
    let plan = plan(folder, broker)?;
    let mut options = EngineOptions::new(folder.to_owned());
    options.journal.partitions = PARTITIONS;
    let engine = Engine::start(options, Arc::<SystemClock>::clone(&clock)).await.context("the data directory cannot be used")?;
    let data_dir = folder.join("pipelines").join(&*plan.name);
    std::fs::create_dir_all(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let parts = build(&plan, &BuildOptions { data_dir, resume: false }).map_err(BadPipeline)?;
    let status = Arc::<Status>::default();
    let (stop, stopped) = watch::channel(false);
    let digest = fieldstream_pipelines::digest(&plan);
    let mut pipeline = Box::pin(fieldstream_runtime::pipeline::run(&engine, parts, &digest, stopped, Arc::clone(&status)));
    let mut story = Story::new(args, folder, clock, status);
    let told = tokio::select! {
        outcome = &mut pipeline => match outcome {
            Ok(_) => bail!("the pipeline ended before the fleet did"),
            Err(error) => return Err(error.into()),
        },
        told = Box::pin(story.tell(broker)) => told,
    };
    // The pipeline listens until it has ended.
    let _ = stop.send(true);
    let report = pipeline.await?;
    engine.stop();
    told?;
    story.end(args, folder, &report)
}

fn plan(folder: &Path, broker: SocketAddr) -> Result<Plan> {
    let vars = BTreeMap::from([("store".to_owned(), folder.join("store").display().to_string())]);
    let env = BTreeMap::from([("MQTT_ENDPOINT".to_owned(), format!("mqtt://{broker}"))]);
    let environment = Environment { env, vars, secrets_dir: None, lenient: false };
    let loaded = load_text("demo.yaml", PIPELINE, &environment, &Catalogue::built_in());
    Ok(loaded.into_result().map_err(BadPipeline)?.0)
}

/// The demo from the outside: publishes, watches, counts.
struct Story {
    clock: Arc<SystemClock>,
    status: Arc<Status>,
    screen: Screen,
    fleet: Fleet,
    devices: u32,
    start_us: i64,
    labels: Vec<Label>,
    alerts: Tail,
    predictions: Tail,
    findings: Vec<Finding>,
    began: Duration,
    /// When and at how many readings the status was last shown.
    last: (Duration, u64),
    /// Readings that came twice: first messages that were thought lost.
    repeated: u64,
}

impl Story {
    fn new(args: &DemoArgs, folder: &Path, clock: Arc<SystemClock>, status: Arc<Status>) -> Self {
        let now_us = clock.now_us();
        let start_us = (now_us - now_us % 1_000) - FLEET_US - INTERVAL_US;
        let faults = FaultConfig { per_device_day: 1.0, warm_up_us: 2 * HOUR_US, ..FaultConfig::default() };
        let config = FleetConfig {
            devices: args.devices,
            seed: args.seed,
            start_us,
            interval_us: INTERVAL_US,
            end_us: Some(start_us + FLEET_US),
            faults,
            ..FleetConfig::default()
        };
        let store = folder.join("store");
        let began = clock.monotonic();
        Self {
            clock,
            status,
            screen: Screen::new(args.json),
            fleet: Fleet::new(config),
            devices: args.devices,
            start_us,
            labels: Vec::new(),
            alerts: Tail::new(&store.join("alerts.ndjson")),
            predictions: Tail::new(&store.join("predictions.ndjson")),
            findings: Vec::new(),
            began,
            last: (began, 0),
            repeated: 0,
        }
    }

    fn elapsed(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.began)
    }

    async fn tell(&mut self, broker: SocketAddr) -> Result<()> {
        self.screen.line(&format!(
            "{} simulated devices publish {} of telemetry to an MQTT broker on {broker}; faults are injected.",
            self.devices,
            spoken(FLEET_US),
        ));
        self.screen.line("Pipeline: pipelines/examples/demo.yaml, MQTT -> journal -> device actors -> Parquet.");
        let mut publisher = Publisher::connect(broker).await?;
        let mut samples = Vec::new();
        let mut greeted = false;
        let published_from = self.elapsed();
        while self.elapsed() - published_from < PUBLISH_AT_MOST && self.fleet.step(&mut samples) {
            for telemetry in by_device(&samples) {
                publisher.publish(telemetry).await?;
                if !greeted {
                    self.greet(&mut publisher, telemetry).await?;
                    greeted = true;
                }
            }
            samples.clear();
            self.labels.extend(self.fleet.take_labels());
            self.keep_pace(&publisher, published_from).await?;
        }
        self.settle(&publisher).await
    }

    /// Repeats the first message until the pipeline has it: what is published before it has subscribed goes to nobody.
    async fn greet(&mut self, publisher: &mut Publisher, first: &[Sample]) -> Result<()> {
        let published = publisher.readings;
        let deadline = self.elapsed() + SETTLE;
        while self.received() == 0 {
            let again = self.elapsed() + HELLO;
            while self.received() == 0 && self.elapsed() < again {
                tokio::time::sleep(POLL).await;
            }
            if self.elapsed() > deadline {
                bail!("the pipeline does not receive what the fleet publishes");
            }
            if self.received() == 0 {
                publisher.publish(first).await?;
            }
        }
        if publisher.readings > published {
            // Give late ones time to show, then take what came for what was published.
            tokio::time::sleep(HELLO).await;
            self.repeated = self.received().saturating_sub(published);
            publisher.readings = published;
        }
        Ok(())
    }

    fn received(&self) -> u64 {
        self.status.ledger().received
    }

    /// Waits until the clock and the pipeline have come as far as the fleet.
    async fn keep_pace(&mut self, publisher: &Publisher, from: Duration) -> Result<()> {
        let share = (self.fleet.now_us() - self.start_us) as f64 / FLEET_US as f64;
        let due = from + PACE.mul_f64(share.clamp(0.0, 1.0));
        loop {
            self.show()?;
            publisher.check()?;
            let ahead = (publisher.readings + self.repeated).saturating_sub(self.received());
            if ahead <= LEAD_READINGS && self.elapsed() >= due {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until everything published is acknowledged and through the pipeline, and every sink has what is its own.
    async fn settle(&mut self, publisher: &Publisher) -> Result<()> {
        let deadline = self.elapsed() + SETTLE;
        loop {
            self.show()?;
            publisher.check()?;
            let ledger = self.status.ledger();
            let published = publisher.readings + self.repeated;
            if publisher.all_acknowledged() && ledger.received == published && ledger.in_flight == 0 {
                return Ok(());
            }
            if self.elapsed() > deadline {
                bail!("{published} readings were published, {} received, {} are in flight", ledger.received, ledger.in_flight);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Once a second: what was found since, and how fast it goes.
    fn show(&mut self) -> Result<()> {
        let now = self.elapsed();
        if !self.screen.due(now) {
            return Ok(());
        }
        self.read_findings()?;
        let received = self.received();
        let since = now.saturating_sub(self.last.0).as_secs_f64().max(1e-3);
        let per_second = received.saturating_sub(self.last.1) as f64 / since;
        self.last = (now, received);
        let event_us = self.fleet.now_us();
        let foretold = self.findings.iter().filter(|finding| finding.foretold).count();
        let devices = self.status.lock().partitions.values().map(|partition| partition.active_devices).sum();
        self.screen.status(&Rates {
            event_us,
            share: (event_us - self.start_us) as f64 / FLEET_US as f64,
            received,
            per_second,
            devices,
            alerts: self.findings.len() - foretold,
            predictions: foretold,
            faults: self.labels.len(),
        });
        Ok(())
    }

    fn read_findings(&mut self) -> Result<()> {
        let mut fresh = self.alerts.read().context("read the alerts")?;
        fresh.extend(self.predictions.read().context("read the predictions")?);
        self.screen.findings(&fresh);
        self.findings.extend(fresh);
        Ok(())
    }

    /// The result: the truth written beside the store, the comparison, the ledger, and where to look further.
    fn end(&mut self, args: &DemoArgs, folder: &Path, report: &Report) -> Result<ExitCode> {
        self.read_findings()?;
        let mut truth = String::new();
        self.labels.iter().for_each(|label| label.write_json(&mut truth));
        std::fs::write(folder.join("faults.ndjson"), truth).context("write the injected faults")?;
        let until_us = self.fleet.now_us();
        let hours = (until_us - self.start_us) as f64 / HOUR_US as f64 * f64::from(self.devices);
        let score = Score::new(&self.labels, &self.findings, until_us, hours);
        let good = report.ledger.balanced && score.good();
        if args.json {
            self.print_json(args, folder, &report.ledger, &score)?;
        } else {
            self.print(folder, &report.ledger, &score);
        }
        Ok(ExitCode::from(u8::from(!good)))
    }

    fn print(&self, folder: &Path, ledger: &Ledger, score: &Score) {
        let say = |text: &str| self.screen.line(text);
        say("");
        say("injected faults   injected  detected");
        for (kind, found) in &score.kinds {
            say(&format!("  {kind:<15} {:>8}  {:>8}", found.injected, found.detected));
        }
        say(&format!(
            "recall {:.2} ({} of {}; wanted at least {RECALL}); {} more were still going on when the fleet's time ended",
            score.recall(),
            score.total.detected,
            score.total.injected,
            score.open,
        ));
        say(&format!(
            "false episodes: {} in {:.0} device-hours, {:.2} per 100 h (wanted at most {FALSE_PER_100_H})",
            score.false_findings.len(),
            score.device_hours,
            score.false_per_100_h(),
        ));
        score.missed.iter().for_each(|m| say(&format!("  missed: {} of {} {}", m.kind.name(), m.device, m.sensor.unwrap_or("(all)"))));
        score.false_findings.iter().for_each(|f| say(&format!("  false: {} {}", f.operator, f.text)));
        say(&format!("{} readings in {:.0} s", ledger.received, self.elapsed().as_secs_f64()));
        say(if ledger.balanced { "ledger: balanced" } else { "ledger: NOT balanced" });
        let store = folder.join("store");
        say("Look further:");
        for sql in QUERIES {
            say(&format!("  fieldstream query --store {} \"{sql}\"", store.display()));
        }
    }

    #[allow(clippy::print_stdout)] // the object is this command's output
    fn print_json(&self, args: &DemoArgs, folder: &Path, ledger: &Ledger, score: &Score) -> Result<()> {
        let line = json!({
            "seed": args.seed, "devices": args.devices, "elapsed_s": self.elapsed().as_secs_f64(), "device_hours": score.device_hours,
            "faults": { "injected": score.total.injected, "detected": score.total.detected, "open": score.open, "kinds": score.kinds },
            "recall": score.recall(), "false_episodes": score.false_findings.len(), "false_per_100_h": score.false_per_100_h(),
            "ledger": ledger, "passed": ledger.balanced && score.good(), "store": folder.join("store"),
        });
        println!("{}", serde_json::to_string(&line)?);
        Ok(())
    }
}

/// Questions for a start.
const QUERIES: [&str; 2] = [
    "SELECT detector, severity, count(*) AS alerts FROM alerts WHERE state = 'raised' GROUP BY 1, 2 ORDER BY 3 DESC",
    "SELECT device_id, sensor_id, min(value), avg(value), max(value) FROM readings GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 20",
];
