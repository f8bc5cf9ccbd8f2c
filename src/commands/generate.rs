//! `fieldstream generate`: the readings of a simulated fleet, one JSON object a line, as fast as they can be made.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use fieldstream_connectors::generator::{Fleet, Label, read_options};
use fieldstream_runtime::clock::{Clock, SystemClock};
use serde_json::{Map, Value, json};

use crate::exit::WrongUsage;

/// How often a long generation says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// Arguments of `generate`; the same as the options of the `generator` source.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Number of devices.
    #[arg(long, default_value_t = 10)]
    devices: u32,
    /// Kinds of devices, dealt in turn (freezer, pump, ambient); all unless given.
    #[arg(long, value_delimiter = ',', value_name = "KIND,...")]
    kinds: Vec<String>,
    /// Seed of everything random; with --start the same seed gives the same readings.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Readings of each sensor in a second of event time.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Event time of the first reading (RFC 3339); unless given, the readings end about now.
    #[arg(long, value_name = "TIME")]
    start: Option<String>,
    /// Event time to cover, such as 90s, 1h or 14d; 1h unless this or --count is given.
    #[arg(long, value_name = "DURATION")]
    duration: Option<String>,
    /// Readings to make.
    #[arg(long)]
    count: Option<u64>,
    /// Faults per device and day of event time.
    #[arg(long, default_value_t = 0.0, value_name = "NUMBER")]
    faults: f64,
    /// File for the truth about the faults, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// File for the readings; stdout unless given.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl GenerateArgs {
    /// As the options of the `generator` source.
    fn options(&self) -> Value {
        let mut options = Map::new();
        let mut set = |name: &str, value: Value| options.insert(name.to_owned(), value);
        set("devices", json!(self.devices));
        set("seed", json!(self.seed));
        set("rate", json!(self.rate));
        set("faults", json!({ "per_device_day": self.faults }));
        if !self.kinds.is_empty() {
            set("kinds", json!(self.kinds));
        }
        if let Some(start) = &self.start {
            set("start", json!(start));
        }
        match (&self.duration, self.count) {
            (Some(duration), _) => set("duration", json!(duration)),
            (None, None) => set("duration", json!("1h")),
            (None, Some(_)) => None,
        };
        Value::Object(options)
    }
}

/// Writes the readings.
pub(crate) fn generate(args: &GenerateArgs) -> Result<ExitCode> {
    let clock = SystemClock::default();
    let options = match read_options(&args.options()) {
        Ok(options) => options,
        Err(errors) => {
            let lines = errors.iter().map(|e| format!("--{}: {}", e.path.trim_start_matches('/').replace('/', " "), e.message));
            return Err(WrongUsage(lines.collect::<Vec<_>>().join("\n")).into());
        }
    };
    let mut fleet = Fleet::new(options.fleet(clock.now_us()));
    let mut labels = args.labels.as_deref().map(create).transpose()?;
    let mut readings: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(create(path)?),
        None => Box::new(BufWriter::with_capacity(1 << 16, io::stdout().lock())),
    };
    let written = write(&mut fleet, args.count.unwrap_or(u64::MAX), &clock, &mut readings, labels.as_mut());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("cannot write the readings"),
        Ok(total) => {
            tracing::info!("{total} readings of {} devices", args.devices);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BufWriter::with_capacity(1 << 16, file))
}

/// Number of readings written. A beat is whole, or cut by `count`.
fn write(
    fleet: &mut Fleet,
    count: u64,
    clock: &SystemClock,
    readings: &mut dyn Write,
    mut labels: Option<&mut BufWriter<File>>,
) -> io::Result<u64> {
    let (mut total, mut samples, mut line) = (0, Vec::new(), String::new());
    let mut said = clock.monotonic();
    while total < count && fleet.step(&mut samples) {
        for sample in samples.drain(..) {
            if total == count {
                break;
            }
            line.clear();
            sample.write_json(&mut line);
            line.push('\n');
            readings.write_all(line.as_bytes())?;
            total += 1;
        }
        write_labels(&fleet.take_labels(), labels.as_deref_mut())?;
        if clock.monotonic().saturating_sub(said) >= PROGRESS {
            said = clock.monotonic();
            tracing::info!("{total} readings, at {}", fieldstream_schemas::time::format_rfc3339(fleet.now_us()));
        }
    }
    readings.flush()?;
    labels.map_or(Ok(()), Write::flush)?;
    Ok(total)
}

fn write_labels(faults: &[Label], file: Option<&mut BufWriter<File>>) -> io::Result<()> {
    let mut lines = String::new();
    faults.iter().for_each(|label| label.write_json(&mut lines));
    file.map_or(Ok(()), |file| file.write_all(lines.as_bytes()))
}
