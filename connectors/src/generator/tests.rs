//! The fleet as seen from outside: golden lines, labelled faults, and the receiver's pace and end.

use fieldstream_engine_api::{ConnectContext, Shared};
use fieldstream_schemas::time::parse_rfc3339;

use super::*;

const HOUR_US: i64 = 3_600_000_000;

fn day_one() -> i64 {
    parse_rfc3339(b"2026-01-01T00:00:00Z").expect("a time")
}

fn config() -> FleetConfig {
    FleetConfig { devices: 3, seed: 7, start_us: day_one(), interval_us: 10_000_000, ..FleetConfig::default() }
}

fn samples(fleet: &mut Fleet, beats: usize) -> Vec<Sample> {
    let mut out = Vec::new();
    (0..beats).for_each(|_| assert!(fleet.step(&mut out), "the fleet must go on"));
    out
}

fn receiver(options: &Value) -> Box<dyn Receiver> {
    let context =
        ConnectContext { pipeline: "p".into(), node: "fleet".into(), data_dir: PathBuf::new(), resume: false, shared: Shared::default() };
    build(options, &context).expect("good options")
}

#[test]
fn a_seed_gives_the_same_lines_for_ever() {
    let mut text = String::new();
    for sample in samples(&mut Fleet::new(config()), 2) {
        sample.write_json(&mut text);
        text.push('\n');
    }
    assert_eq!(text, include_str!("golden.ndjson"));
}

#[test]
fn neither_faults_nor_other_devices_change_a_device() {
    let healthy: Vec<f64> = samples(&mut Fleet::new(config()), 600).iter().map(|s| s.value).collect();
    let faults = FaultConfig { per_device_day: 0.5, ..FaultConfig::default() };
    let mut faulty = Fleet::new(FleetConfig { faults, ..config() });
    let early: Vec<f64> = samples(&mut faulty, 300).iter().map(|s| s.value).collect();
    assert_eq!(early, healthy[..early.len()]);

    let more = samples(&mut Fleet::new(FleetConfig { devices: 6, ..config() }), 5);
    let few = samples(&mut Fleet::new(config()), 5);
    let of_pump = |rows: &[Sample]| rows.iter().filter(|s| &*s.device == "pump-0001").map(|s| s.value).collect::<Vec<_>>();
    assert_eq!(of_pump(&more), of_pump(&few));
}

/// A week of 12 devices with and without faults, and the labels.
fn week_with(kind: FaultKind) -> (Vec<Sample>, Vec<Sample>, Vec<Label>) {
    let end_us = Some(day_one() + 7 * 24 * HOUR_US);
    let base = FleetConfig { devices: 12, interval_us: 300_000_000, end_us, ..config() };
    let faults = FaultConfig { per_device_day: 1.0, kinds: vec![kind], ..FaultConfig::default() };
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut healthy = Fleet::new(base.clone());
    while healthy.step(&mut good) {}
    let mut faulty = Fleet::new(FleetConfig { faults, ..base });
    while faulty.step(&mut bad) {}
    (good, bad, faulty.take_labels())
}

fn covers(label: &Label, sample: &Sample) -> bool {
    label.device == sample.device
        && label.sensor.is_none_or(|name| name == sample.sensor.name)
        && (label.start_us..label.end_us).contains(&sample.event_us)
}

#[test]
fn labels_name_exactly_the_readings_that_differ() {
    for kind in [FaultKind::Spike, FaultKind::LevelShift, FaultKind::Drift, FaultKind::Flatline] {
        let (good, bad, labels) = week_with(kind);
        assert_eq!(good.len(), bad.len());
        assert!((40..90).contains(&labels.len()), "{kind:?}: {} faults", labels.len());
        let mut differ = 0;
        for (healthy, faulty) in good.iter().zip(&bad) {
            if (healthy.value - faulty.value).abs() > 0.0 {
                differ += 1;
                assert!(labels.iter().any(|l| l.kind == kind && covers(l, faulty)), "{kind:?}: {faulty:?} has no label");
            }
        }
        assert!(differ >= labels.len(), "{kind:?}: {differ} readings differ");
        assert!(labels.iter().all(|l| l.start_us >= day_one() + HOUR_US && l.sensor.is_some()));
    }
}

#[test]
fn faults_have_their_shape() {
    let (good, bad, labels) = week_with(FaultKind::LevelShift);
    let far = good.iter().zip(&bad).filter(|(g, b)| g.value != b.value);
    for (healthy, faulty) in far {
        let spreads = (faulty.value - healthy.value).abs() / healthy.sensor.spread;
        assert!((5.9..10.1).contains(&spreads), "{spreads}");
    }
    assert!(labels.iter().all(|l| l.end_us - l.start_us <= 2 * HOUR_US));

    let (_, bad, labels) = week_with(FaultKind::Drift);
    let whole = labels.iter().find(|l| l.end_us < day_one() + 6 * 24 * HOUR_US).expect("a whole drift");
    let last = bad.iter().rfind(|s| covers(whole, s)).expect("rows");
    assert!((last.value - last.sensor.limit).abs() < 0.1 * last.sensor.limit.abs() + 1.0, "{last:?}");

    let (_, bad, labels) = week_with(FaultKind::Flatline);
    let mut frozen: Vec<f64> = bad.iter().filter(|s| covers(&labels[0], s)).map(|s| s.value).collect();
    frozen.dedup();
    assert_eq!(frozen.len(), 1);
}

#[test]
fn a_silent_device_says_nothing_and_the_rest_go_on() {
    let (good, bad, labels) = week_with(FaultKind::Silence);
    assert!(labels.iter().all(|l| l.sensor.is_none()));
    assert!(!bad.iter().any(|s| labels.iter().any(|l| covers(l, s))));
    let silenced = good.iter().filter(|s| labels.iter().any(|l| covers(l, s))).count();
    assert_eq!(good.len() - bad.len(), silenced);
}

#[test]
fn a_label_is_one_json_line() {
    let label = Label {
        device: "pump-0001".into(),
        sensor: Some("flow"),
        kind: FaultKind::LevelShift,
        start_us: day_one(),
        end_us: day_one() + HOUR_US,
    };
    let mut line = String::new();
    label.write_json(&mut line);
    assert_eq!(
        line,
        "{\"device\":\"pump-0001\",\"sensor\":\"flow\",\"kind\":\"level_shift\",\"start\":\"2026-01-01T00:00:00.000Z\",\"end\":\"2026-01-01T01:00:00.000Z\"}\n"
    );
}

#[tokio::test]
async fn the_receiver_hands_over_everything_and_ends() {
    let dir = tempfile::tempdir().expect("a folder");
    let labels = dir.path().join("labels.ndjson");
    let mut fleet = receiver(&serde_json::json!({
        "devices": 5_000, "kinds": ["ambient"], "rate": 0.01, "speed": "max", "start": "2026-01-01T00:00:00Z", "duration": "20m",
        "faults": { "per_device_day": 20, "kinds": ["spike"], "warm_up": "10m" }, "labels": labels,
    }));
    let (mut rows, mut ids) = (0u64, std::collections::HashSet::new());
    while let Some(Received { block, .. }) = fleet.next().await.expect("no error") {
        assert!(block.entries.len() <= BLOCK_ROWS);
        for (index, entry) in block.entries.iter().enumerate() {
            assert_eq!(entry.offset, rows);
            let reading: Value = serde_json::from_slice(block.payload(index)).expect("a JSON object");
            assert!(ids.insert(reading["id"].as_str().expect("an id").to_owned()));
            let topic = format!("devices/{}/telemetry", reading["deviceId"].as_str().expect("a device"));
            assert_eq!(&*block.topics.as_ref().expect("topics")[index], topic);
            rows += 1;
        }
    }
    assert_eq!(rows, 12 * 5_000 * 2);
    let truth = std::fs::read_to_string(&labels).expect("labels");
    assert!(truth.lines().count() > 300, "{} labels", truth.lines().count());
    assert!(truth.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|l| l["kind"] == "spike")));
}

#[tokio::test]
async fn a_count_ends_it_to_the_reading() {
    let mut fleet = receiver(&serde_json::json!({ "devices": 7, "speed": "max", "count": 100 }));
    let mut rows = 0;
    while let Some(received) = fleet.next().await.expect("no error") {
        rows += received.block.entries.len();
        fleet.acknowledge(received.handle).await.expect("no error");
    }
    assert_eq!(rows, 100);
    assert!(fleet.next().await.expect("no error").is_none());
}

#[tokio::test]
async fn the_receiver_keeps_pace_and_may_be_dropped_while_it_waits() {
    let options = serde_json::json!({ "devices": 1, "kinds": ["ambient"], "rate": 0.1, "speed": 100, "start": "2026-01-01T00:00:00Z" });
    let mut fleet = receiver(&options);
    let began = Instant::now();
    let mut beats = 0;
    while beats < 3 {
        // Ten seconds of event time are 100 ms here: most of these calls are dropped.
        if let Ok(next) = tokio::time::timeout(Duration::from_millis(7), fleet.next()).await {
            let block = next.expect("no error").expect("no end").block;
            let reading = String::from_utf8_lossy(block.payload(0)).into_owned();
            assert!(reading.contains(&format!("temperature.{beats}\"")), "{reading}");
            assert!(began.elapsed() >= Duration::from_millis(100 * beats), "beat {beats} came after {:?}", began.elapsed());
            beats += 1;
        }
    }
}

#[test]
fn wrong_options_are_all_told_with_their_place() {
    let wrong = |value: Value| read_options(&value).err().unwrap_or_default().into_iter().map(|e| e.path).collect::<Vec<_>>();
    let many =
        serde_json::json!({ "devices": 0, "rate": -1, "kinds": [], "start": "soon", "faults": { "per_device_day": -1, "kinds": [] } });
    assert_eq!(wrong(many), ["/devices", "/rate", "/kinds", "/start", "/faults/per_device_day", "/faults/kinds"]);
    assert_eq!(wrong(serde_json::json!({ "speed": 0 })), ["/speed"]);
    assert_eq!(wrong(serde_json::json!({ "faults": { "kinds": ["gremlins"] } })), ["/faults/kinds/0"]);
    assert_eq!(wrong(serde_json::json!({ "faults": { "warm_up": "soon" } })), ["/faults/warm_up"]);
    assert!(wrong(serde_json::json!({})).is_empty());
}

#[test]
fn without_a_start_nothing_comes_from_the_future() {
    let now_us = day_one();
    for value in [serde_json::json!({}), serde_json::json!({ "duration": "24h", "rate": 0.01 })] {
        let fleet = read_options(&value).expect("good options").fleet(now_us);
        let first = fleet.start_us + fleet.interval_us;
        assert!(first <= now_us, "{first} {now_us}");
        assert!(fleet.end_us.is_none_or(|end| end <= now_us));
    }
}
