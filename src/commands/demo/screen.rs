//! What the demo shows: findings as lines, one status line a second, and the result.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fieldstream_schemas::time::format_rfc3339;

use super::score::Finding;

/// Findings shown at once; more are counted only.
const LINES: usize = 8;

/// Complete lines of a file that grows.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    offset: u64,
}

impl Tail {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0 }
    }

    /// The findings written since the last call. A file that is not there yet has none.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn read(&mut self) -> std::io::Result<Vec<Finding>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.offset += whole as u64;
        bytes.truncate(whole);
        Ok(String::from_utf8_lossy(&bytes).lines().filter_map(Finding::parse).collect())
    }
}

/// Where the demo writes: a terminal keeps the status in its last line, a file gets plain lines.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    /// With `--json` nothing is shown before the end.
    silent: bool,
    shown: Option<Duration>,
}

/// The numbers of a status line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// Event time reached, microseconds since the epoch.
    pub(super) event_us: i64,
    /// Share of the fleet's time that is over, 0 to 1.
    pub(super) share: f64,
    pub(super) received: u64,
    pub(super) per_second: f64,
    pub(super) devices: usize,
    pub(super) alerts: usize,
    pub(super) predictions: usize,
    pub(super) faults: usize,
}

impl Screen {
    pub(super) fn new(silent: bool) -> Self {
        Self { terminal: std::io::stdout().is_terminal(), silent, shown: None }
    }

    /// True once a second.
    pub(super) fn due(&mut self, now: Duration) -> bool {
        let due = self.shown.is_none_or(|shown| now.saturating_sub(shown) >= Duration::from_secs(1));
        if due {
            self.shown = Some(now);
        }
        due
    }

    /// Writes a line. A terminal or pipe that is gone is no reason to stop.
    pub(super) fn line(&self, text: &str) {
        if self.silent {
            return;
        }
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        let _ = writeln!(std::io::stdout().lock(), "{clear}{text}");
    }

    pub(super) fn findings(&self, findings: &[Finding]) {
        for finding in findings.iter().take(LINES) {
            let kind = if finding.foretold { "foretold" } else { "ALERT" };
            let time = format_rfc3339(finding.ts_us);
            let time = time.get(11..19).unwrap_or(&time);
            self.line(&format!("  {time} {kind:<8} {:<7} {}", finding.operator, finding.text));
        }
        if findings.len() > LINES {
            self.line(&format!("  ... and {} more", findings.len() - LINES));
        }
    }

    pub(super) fn status(&self, rates: &Rates) {
        let time = format_rfc3339(rates.event_us);
        let time = time.get(..16).unwrap_or(&time).replace('T', " ");
        let text = format!(
            "[{:>3.0} %] fleet time {time}  {:>7} readings  {:>6.0}/s  {} device actors  {} faults begun  {} alerts  {} predictions",
            rates.share * 100.0,
            rates.received,
            rates.per_second,
            rates.devices,
            rates.faults,
            rates.alerts,
            rates.predictions,
        );
        if self.terminal && !self.silent {
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "\r\x1b[2K{text}");
            let _ = out.flush();
        } else {
            self.line(&text);
        }
    }
}
