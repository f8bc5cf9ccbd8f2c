//! Metrics in Prometheus text format, made from the pipelines' status at each scrape. No label names a device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fieldstream_journal::{FSYNC_BOUNDS_US, JournalStats};
use prometheus::core::{Collector, Desc, Describer};
use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

use crate::durations::{BOUNDS_US, Durations};
use crate::engine::Engine;
use crate::ledger::Ledger;
use crate::reload::Outcome;
use crate::status::{PartitionStatus, Status, StatusInner};

type Result<T> = std::result::Result<T, prometheus::Error>;

/// Registers families once and sets one value per label set.
struct Scrape {
    registry: Registry,
}

impl Scrape {
    fn counter(&self, name: &str, help: &str, labels: &[&str], values: impl IntoIterator<Item = (Vec<String>, u64)>) -> Result<()> {
        let family = IntCounterVec::new(Opts::new(name, help), labels)?;
        for (labels, value) in values {
            family.with_label_values(&labels).inc_by(value);
        }
        self.registry.register(Box::new(family))
    }

    fn gauge(&self, name: &str, help: &str, labels: &[&str], values: impl IntoIterator<Item = (Vec<String>, f64)>) -> Result<()> {
        let family = GaugeVec::new(Opts::new(name, help), labels)?;
        for (labels, value) in values {
            family.with_label_values(&labels).set(value);
        }
        self.registry.register(Box::new(family))
    }

    /// A counter of seconds, which is no whole number.
    fn seconds(&self, name: &str, help: &str, labels: &[&str], values: impl IntoIterator<Item = (Vec<String>, f64)>) -> Result<()> {
        let family = prometheus::CounterVec::new(Opts::new(name, help), labels)?;
        for (labels, value) in values {
            family.with_label_values(&labels).inc_by(value.max(0.0));
        }
        self.registry.register(Box::new(family))
    }

    /// Durations counted elsewhere, in `buckets` that are not cumulative, one for each of `bounds_us` and one for longer ones.
    fn histogram(&self, name: &str, help: &str, labels: &[&str], bounds_us: &[u64], values: &[Counted<'_>]) -> Result<()> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(values.iter().map(|counted| counted.metric(labels, bounds_us)).collect());
        let labels = labels.iter().map(|l| (*l).to_owned()).collect();
        let desc = Opts::new(name, help).variable_labels(labels).describe()?;
        self.registry.register(Box::new(Finished { desc, family }))
    }

    fn collector(&self, collector: impl Collector + 'static) -> Result<()> {
        self.registry.register(Box::new(collector))
    }
}

/// Durations of one label set.
struct Counted<'a> {
    labels: Vec<String>,
    buckets: &'a [u64],
    sum_seconds: f64,
}

impl Counted<'_> {
    fn metric(&self, labels: &[&str], bounds_us: &[u64]) -> Metric {
        let pair = |(name, value): (&&str, &String)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.clone());
            pair
        };
        let mut below = 0;
        let bucket = |(bound, count): (&u64, &u64)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(below);
            bucket
        };
        let mut histogram = prometheus::proto::Histogram::default();
        histogram.set_bucket(bounds_us.iter().zip(self.buckets).map(bucket).collect());
        histogram.set_sample_count(self.buckets.iter().sum());
        histogram.set_sample_sum(self.sum_seconds);
        let mut pairs: Vec<LabelPair> = labels.iter().zip(&self.labels).map(pair).collect();
        // As in the families that the client library makes.
        pairs.sort_by(|a, b| a.name().cmp(b.name()));
        let mut metric = Metric::from_label(pairs);
        metric.set_histogram(histogram);
        metric
    }
}

/// A family that was counted elsewhere.
struct Finished {
    desc: Desc,
    family: MetricFamily,
}

impl Collector for Finished {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        vec![self.family.clone()]
    }
}

/// One pipeline at the moment of the scrape.
struct View<'a> {
    name: &'a str,
    ledger: Ledger,
    status: std::sync::MutexGuard<'a, StatusInner>,
}

impl View<'_> {
    fn label(&self) -> Vec<String> {
        vec![self.name.to_owned()]
    }

    fn sum(&self, value: impl Fn(&PartitionStatus) -> f64) -> (Vec<String>, f64) {
        (self.label(), self.status.partitions.values().map(value).sum())
    }

    /// (labels, value) of every operator, summed over partitions.
    fn operators(&self, value: impl Fn(&crate::graph::NodeMeter) -> f64) -> Vec<(Vec<String>, f64)> {
        let operators = self.status.operators.iter().enumerate();
        let total = |number: usize| self.status.partitions.values().filter_map(|p| p.meters.get(number)).map(&value).sum();
        operators.map(|(number, (name, kind))| (vec![self.name.to_owned(), name.to_string(), (*kind).to_owned()], total(number))).collect()
    }

    /// How long every operator took, all partitions together.
    fn durations(&self) -> Vec<(Vec<String>, Durations)> {
        let total = |number: usize| {
            let mut total = Durations::default();
            self.status.partitions.values().filter_map(|p| p.meters.get(number)).for_each(|m| total.add(&m.durations));
            total
        };
        let operators = self.status.operators.iter().enumerate();
        operators.map(|(number, (name, kind))| (vec![self.name.to_owned(), name.to_string(), (*kind).to_owned()], total(number))).collect()
    }
}

/// All metrics of this node.
///
/// # Errors
/// If a family is malformed, which a test excludes.
pub fn render(pipelines: &[(&str, &Status)], engine: &Engine) -> Result<String> {
    let scrape = Scrape { registry: Registry::new() };
    let views: Vec<View<'_>> =
        pipelines.iter().map(|(name, status)| View { name, ledger: status.ledger(), status: status.lock() }).collect();
    let version = vec![(vec![env!("CARGO_PKG_VERSION").to_owned()], 1.0)];
    scrape.gauge("fieldstream_build_info", "Version of the program.", &["version"], version)?;
    account(&scrape, &views)?;
    operators(&scrape, &views)?;
    partitions(&scrape, &views, engine)?;
    sinks(&scrape, &views)?;
    let troubles = views.iter().flat_map(|v| v.status.troubles.keys().map(|part| (vec![v.name.to_owned(), part.to_string()], 1.0)));
    scrape.gauge("fieldstream_trouble", "1 for each part that fails at the moment and is tried again.", &["pipeline", "part"], troubles)?;
    let tight = [(Vec::new(), f64::from(u8::from(*engine.tight.borrow())))];
    scrape.gauge("fieldstream_memory_tight", "1 while the process is above its memory budget and reads nothing new.", &[], tight)?;
    if let Some(journal) = engine.opened_journal() {
        journal_metrics(&scrape, &journal.stats())?;
    }
    drop(views);
    let mut text = Vec::new();
    TextEncoder::new().encode(&scrape.registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn account(scrape: &Scrape, views: &[View<'_>]) -> Result<()> {
    let by = |pick: fn(&Ledger) -> u64| views.iter().map(move |v| (v.label(), pick(&v.ledger)));
    scrape.counter(
        "fieldstream_readings_received_total",
        "Readings received; an undecodable payload counts as one.",
        &["pipeline"],
        by(|l| l.received),
    )?;
    scrape.counter(
        "fieldstream_readings_settled_total",
        "Readings that passed ingress and validation and every sink's mark.",
        &["pipeline"],
        by(|l| l.settled),
    )?;
    scrape.counter("fieldstream_readings_deduplicated_total", "Readings known already.", &["pipeline"], by(|l| l.deduplicated))?;
    let in_flight = views.iter().map(|v| (v.label(), v.ledger.in_flight as f64));
    scrape.gauge("fieldstream_readings_in_flight", "Readings some sink's mark has not passed.", &["pipeline"], in_flight)?;
    let imbalance = views.iter().map(|v| (v.label(), f64::from(u8::from(!v.ledger.balanced))));
    scrape.gauge("fieldstream_ledger_imbalance", "0 while the account balances, 1 when it does not.", &["pipeline"], imbalance)?;
    let codes = views.iter().flat_map(|v| v.ledger.dead_lettered.iter().map(|(code, n)| (vec![v.name.to_owned(), code.to_string()], *n)));
    scrape.counter("fieldstream_dead_letters_total", "Readings sent to the dead letter.", &["pipeline", "code"], codes)?;
    let reasons = views.iter().flat_map(|v| v.ledger.dropped.iter().map(|(why, n)| (vec![v.name.to_owned(), why.to_string()], *n)));
    scrape.counter("fieldstream_readings_dropped_total", "Readings removed on purpose.", &["pipeline", "reason"], reasons)
}

fn operators(scrape: &Scrape, views: &[View<'_>]) -> Result<()> {
    let labels = ["pipeline", "component", "kind"];
    let rows = |pick: fn(&crate::graph::NodeMeter) -> u64| {
        views.iter().flat_map(move |v| v.operators(move |m| pick(m) as f64)).map(|(labels, value)| (labels, value as u64))
    };
    scrape.counter("fieldstream_component_received_rows_total", "Rows given to the component.", &labels, rows(|m| m.counts.received))?;
    scrape.counter(
        "fieldstream_component_sent_rows_total",
        "Rows sent on by the component.",
        &labels,
        rows(|m| m.counts.forwarded + m.counts.emitted),
    )?;
    scrape.counter("fieldstream_component_errors_total", "Rows the component rejected.", &labels, rows(|m| m.counts.rejected))?;
    scrape.counter(
        "fieldstream_component_discarded_rows_total",
        "Rows the component filtered out or knew already.",
        &labels,
        rows(|m| m.counts.filtered + m.counts.deduplicated),
    )?;
    scrape.counter("fieldstream_late_rows_total", "Rows that came after their window had closed.", &labels, rows(|m| m.counts.late))?;
    scrape.counter("fieldstream_component_batches_total", "Batches given to the component.", &labels, rows(|m| m.batches))?;
    let durations: Vec<(Vec<String>, Durations)> = views.iter().flat_map(View::durations).collect();
    scrape.histogram(
        "fieldstream_operator_duration_seconds",
        "Time spent in the operator by a turn that brought it rows or a tick.",
        &labels,
        &BOUNDS_US,
        &durations
            .iter()
            .map(|(labels, d)| Counted { labels: labels.clone(), buckets: &d.buckets, sum_seconds: d.sum_seconds() })
            .collect::<Vec<_>>(),
    )
}

fn partitions(scrape: &Scrape, views: &[View<'_>], engine: &Engine) -> Result<()> {
    let (now_us, now) = (engine.clock.now_us(), engine.clock.monotonic());
    let sum = |value: fn(&PartitionStatus) -> f64| views.iter().map(move |v| v.sum(value));
    scrape.gauge("fieldstream_partitions", "Partitions owned by this node.", &["pipeline"], sum(|_| 1.0))?;
    scrape.gauge("fieldstream_queue_bytes", "Payload bytes waiting for a turn.", &["pipeline"], sum(|p| p.queue.bytes() as f64))?;
    let passivated = sum(|p| p.passivated_devices as f64);
    scrape.gauge("fieldstream_passivated_devices", "Device actors whose state lies on disk.", &["pipeline"], passivated)?;
    scrape.gauge("fieldstream_active_devices", "Device actors in memory.", &["pipeline"], sum(|p| p.active_devices as f64))?;
    scrape.gauge("fieldstream_state_bytes", "Bytes of keyed state at the last snapshot.", &["pipeline"], sum(|p| p.state_bytes as f64))?;
    scrape.gauge(
        "fieldstream_log_lag",
        "Offsets read and not yet handled.",
        &["pipeline"],
        sum(|p| p.read_to.saturating_sub(p.complete_to.next_offset) as f64),
    )?;
    let paused = views
        .iter()
        .map(|v| v.sum(|p| (p.paused_for + p.paused_since.map_or_else(Default::default, |s| now.saturating_sub(s))).as_secs_f64()));
    scrape.seconds("fieldstream_backpressure_seconds_total", "Time the log was paused because a queue was full.", &["pipeline"], paused)?;
    let lag = views.iter().filter_map(|v| {
        let newest = v.status.partitions.values().filter_map(|p| p.event_us).max()?;
        Some((v.label(), now_us.saturating_sub(newest) as f64 / 1e6))
    });
    scrape.gauge("fieldstream_time_lag_seconds", "Wall time minus the newest event time handled.", &["pipeline"], lag)?;
    let age = views.iter().filter_map(|v| {
        let oldest = v.status.partitions.values().filter_map(|p| p.checkpoint_at_s).reduce(f64::min)?;
        Some((v.label(), now.as_secs_f64() - oldest))
    });
    scrape.gauge("fieldstream_checkpoint_age_seconds", "Age of the oldest partition's newest checkpoint.", &["pipeline"], age)?;
    let checkpoints = views.iter().map(|v| {
        let durations = &v.status.checkpoints;
        Counted { labels: v.label(), buckets: &durations.buckets, sum_seconds: durations.sum_seconds() }
    });
    scrape.histogram(
        "fieldstream_checkpoint_duration_seconds",
        "From asking a partition for a snapshot until its manifest is durable, waiting for the sinks included.",
        &["pipeline"],
        &BOUNDS_US,
        &checkpoints.collect::<Vec<_>>(),
    )?;
    let reloads = views.iter().flat_map(|v| {
        let count = |outcome| v.status.plan.reloads.get(outcome).copied().unwrap_or_default();
        Outcome::ALL.iter().map(move |(outcome, label)| (vec![v.name.to_owned(), (*label).to_owned()], count(outcome)))
    });
    scrape.counter("fieldstream_pipeline_reloads_total", "Changes of plan that were asked for.", &["pipeline", "outcome"], reloads)?;
    let restarts = views.iter().map(|v| (v.label(), v.status.restarts));
    scrape.counter("fieldstream_restarts_total", "Partitions restored after a panic.", &["pipeline"], restarts)
}

fn sinks(scrape: &Scrape, views: &[View<'_>]) -> Result<()> {
    let labels = ["pipeline", "sink"];
    let each = |value: fn(&crate::status::SinkStatus) -> u64| {
        views.iter().flat_map(move |v| v.status.sinks.iter().map(move |s| (vec![v.name.to_owned(), s.name.to_string()], value(s))))
    };
    scrape.counter(
        "fieldstream_sink_rows_total",
        "Rows made durable, those before a restored checkpoint included.",
        &labels,
        each(crate::status::SinkStatus::total),
    )?;
    scrape.counter("fieldstream_sink_refused_rows_total", "Rows the service refused.", &labels, each(|s| s.refused.values().sum()))?;
    scrape.counter(
        "fieldstream_sink_retries_total",
        "Commits that were tried again.",
        &labels,
        each(|s| s.stats.retries.load(Ordering::Relaxed)),
    )?;
    let queued = each(|s| s.stats.queued.load(Ordering::Relaxed)).map(|(labels, n)| (labels, n as f64));
    scrape.gauge("fieldstream_sink_queued_rows", "Rows waiting for a commit.", &labels, queued)?;
    for stats in views.iter().flat_map(|v| v.status.sinks.iter().map(|s| Arc::clone(&s.stats))) {
        scrape.collector(stats.commit_seconds.clone())?;
        scrape.collector(stats.batch_rows.clone())?;
        scrape.collector(stats.ingest_to_commit.clone())?;
        scrape.collector(stats.event_to_commit.clone())?;
    }
    Ok(())
}

fn journal_metrics(scrape: &Scrape, stats: &JournalStats) -> Result<()> {
    let one = |value: u64| [(Vec::new(), value)];
    scrape.gauge("fieldstream_journal_bytes", "Bytes of the journal on disk.", &[], [(Vec::new(), stats.disk_bytes as f64)])?;
    scrape.counter("fieldstream_journal_written_bytes_total", "Bytes written to the journal.", &[], one(stats.written_bytes))?;
    scrape.counter("fieldstream_journal_rows_total", "Rows made durable in the journal.", &[], one(stats.rows))?;
    scrape.counter("fieldstream_journal_refused_total", "Appends refused because the disk budget was reached.", &[], one(stats.refused))?;
    scrape.counter(
        "fieldstream_journal_lost_frames_total",
        "Damaged frames that had been acknowledged; 0 unless the disk lied.",
        &[],
        one(stats.lost),
    )?;
    scrape.histogram(
        "fieldstream_journal_fsync_duration_seconds",
        "Time spent in the fsync of a group commit.",
        &[],
        &FSYNC_BOUNDS_US,
        &[Counted { labels: Vec::new(), buckets: &stats.fsync_buckets, sum_seconds: stats.fsync_nanos as f64 / 1e9 }],
    )
}
