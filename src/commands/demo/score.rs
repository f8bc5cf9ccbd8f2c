//! Injected faults against what the pipeline told: pure counting.

use std::collections::BTreeMap;

use fieldstream_connectors::generator::Label;
use fieldstream_schemas::time::parse_rfc3339;
use serde::Serialize;
use serde_json::Value;

/// Share of the faults that must be found.
pub(super) const RECALL: f64 = 0.9;
/// False episodes allowed per 100 device-hours of event time.
pub(super) const FALSE_PER_100_H: f64 = 1.0;
/// A finding counts for a fault from its beginning until so long after its end (microseconds): a gap is told when the device
/// speaks again, and the step back to normal is part of the fault.
pub(super) const TOLERANCE_US: i64 = 15 * 60_000_000;

/// Something the pipeline told: an alert that was raised, or a crossing it foretold.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) device: String,
    pub(super) sensor: String,
    /// Event time, microseconds since the epoch.
    pub(super) ts_us: i64,
    /// Name of the operator.
    pub(super) operator: String,
    /// For a person.
    pub(super) text: String,
    /// True for a crossing that is still to come.
    pub(super) foretold: bool,
}

impl Finding {
    /// Reads an alert or prediction as the file sinks write them; `None` for what is no finding (the end of an episode).
    pub(super) fn parse(line: &str) -> Option<Self> {
        let row: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| row.get(name).and_then(Value::as_str);
        let (device, ts_us) = (text("deviceId")?.to_owned(), parse_rfc3339(text("timestamp")?.as_bytes())?);
        let sensor = text("sensorId").unwrap_or_default().to_owned();
        if let Some(operator) = text("detector") {
            let told = text("state").is_some_and(|state| state == "raised" || state == "row");
            let words = text("description").unwrap_or_default().to_owned();
            return told.then(|| Self { device, sensor, ts_us, operator: operator.to_owned(), text: words, foretold: false });
        }
        let minutes = row.get("timeToEventMs").and_then(Value::as_i64)? / 60_000;
        let words = format!("{device} {sensor} will reach its limit in about {minutes} min");
        Some(Self { device, sensor, ts_us, operator: text("predictor")?.to_owned(), text: words, foretold: true })
    }

    fn matches(&self, fault: &Label) -> bool {
        *fault.device == *self.device
            && fault.sensor.is_none_or(|sensor| sensor == self.sensor)
            && (fault.start_us..=fault.end_us + TOLERANCE_US).contains(&self.ts_us)
    }
}

/// Faults of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    /// Injected, and over when the run ended.
    pub(super) injected: usize,
    /// Found among them.
    pub(super) detected: usize,
}

/// The result.
#[derive(Clone, Debug, Default)]
pub(super) struct Score {
    pub(super) kinds: BTreeMap<&'static str, Found>,
    pub(super) total: Found,
    /// Faults that were still going on when the run ended: neither found nor missed.
    pub(super) open: usize,
    /// Faults that nothing was told of.
    pub(super) missed: Vec<Label>,
    /// Findings that belong to no fault.
    pub(super) false_findings: Vec<Finding>,
    /// Event time watched, all devices together.
    pub(super) device_hours: f64,
}

impl Score {
    /// Compares; `until_us` is the event time at which the run ended.
    pub(super) fn new(faults: &[Label], findings: &[Finding], until_us: i64, device_hours: f64) -> Self {
        let mut score = Self { device_hours, ..Self::default() };
        for fault in faults {
            if fault.end_us >= until_us {
                score.open += 1;
                continue;
            }
            let detected = findings.iter().any(|finding| finding.matches(fault));
            for found in [score.kinds.entry(fault.kind.name()).or_default(), &mut score.total] {
                found.injected += 1;
                found.detected += usize::from(detected);
            }
            if !detected {
                score.missed.push(fault.clone());
            }
        }
        score.false_findings = findings.iter().filter(|finding| !faults.iter().any(|fault| finding.matches(fault))).cloned().collect();
        score
    }

    /// Found share of the faults; 1 when there were none.
    pub(super) fn recall(&self) -> f64 {
        if self.total.injected == 0 { 1.0 } else { self.total.detected as f64 / self.total.injected as f64 }
    }

    /// False episodes per 100 device-hours of event time.
    pub(super) fn false_per_100_h(&self) -> f64 {
        self.false_findings.len() as f64 * 100.0 / self.device_hours.max(f64::MIN_POSITIVE)
    }

    /// True when the demo shows what it promises.
    pub(super) fn good(&self) -> bool {
        self.total.injected > 0 && self.recall() >= RECALL && self.false_per_100_h() <= FALSE_PER_100_H
    }
}

#[cfg(test)]
mod tests {
    use fieldstream_connectors::generator::FaultKind;

    use super::*;

    const MINUTE: i64 = 60_000_000;

    fn fault(sensor: Option<&'static str>, kind: FaultKind, start: i64, end: i64) -> Label {
        Label { device: "pump-1".into(), sensor, kind, start_us: start * MINUTE, end_us: end * MINUTE }
    }

    fn finding(device: &str, sensor: &str, minute: i64) -> Finding {
        let (device, sensor) = (device.to_owned(), sensor.to_owned());
        Finding { device, sensor, ts_us: minute * MINUTE, operator: "limits".into(), text: String::new(), foretold: false }
    }

    #[test]
    fn a_finding_counts_for_its_series_and_time_only() {
        let faults = [
            fault(Some("flow"), FaultKind::Drift, 10, 20),
            fault(Some("flow"), FaultKind::Spike, 100, 101),
            fault(None, FaultKind::Silence, 200, 230),
            fault(Some("flow"), FaultKind::Flatline, 290, 310),
        ];
        let findings = [
            finding("pump-1", "flow", 35),
            finding("pump-1", "pressure", 100),
            finding("pump-2", "flow", 100),
            finding("pump-1", "pressure", 230),
            finding("pump-1", "flow", 300),
            finding("pump-1", "flow", 9),
        ];
        let score = Score::new(&faults, &findings, 300 * MINUTE, 50.0);
        assert_eq!(score.total, Found { injected: 3, detected: 2 });
        assert_eq!(score.kinds.get("spike"), Some(&Found { injected: 1, detected: 0 }));
        assert_eq!(score.missed, [faults[1].clone()]);
        assert_eq!((score.open, score.false_findings.len()), (1, 3));
        assert!((score.false_per_100_h() - 6.0).abs() < 1e-9 && !score.good());
    }

    #[test]
    fn what_sinks_write_is_read_back() {
        let alert = r#"{"deviceId":"pump-1","sensorId":"flow","timestamp":"1970-01-01T00:01:00Z","detector":"limits","state":"raised","description":"d"}"#;
        let read = Finding::parse(alert).map(|found| (found.ts_us, found.operator, found.text, found.foretold));
        assert_eq!(read, Some((MINUTE, "limits".to_owned(), "d".to_owned(), false)));
        assert_eq!(Finding::parse(&alert.replace("raised", "cleared")), None);
        let crossing =
            r#"{"deviceId":"pump-1","sensorId":"flow","timestamp":"1970-01-01T00:01:00Z","predictor":"ahead","timeToEventMs":1604204}"#;
        let read = Finding::parse(crossing).map(|found| (found.text, found.foretold));
        assert_eq!(read, Some(("pump-1 flow will reach its limit in about 26 min".to_owned(), true)));
        assert_eq!(Finding::parse("{}"), None);
    }
}
