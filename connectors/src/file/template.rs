//! The path of a `file` sink: plain, or with parts of the row's event time such as `%Y-%m-%d`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use fieldstream_schemas::time::civil_from_days;

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Year,
    Month,
    Day,
    Hour,
}

/// A parsed path.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    source: String,
    pieces: Vec<Piece>,
    /// Event times in one span of so many microseconds share a file; 0 for a plain path.
    span_us: i64,
}

impl Template {
    /// Reads a path. `%Y`, `%m`, `%d` and `%H` are the UTC event time of the row, `%%` is a percent sign.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(crate) fn parse(source: &str) -> Result<Self, String> {
        if source.is_empty() || source.ends_with('/') {
            return Err("must name a file".to_owned());
        }
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = source.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let piece = match rest.next() {
                Some('%') => {
                    text.push('%');
                    continue;
                }
                Some('Y') => Piece::Year,
                Some('m') => Piece::Month,
                Some('d') => Piece::Day,
                Some('H') => Piece::Hour,
                other => return Err(format!("`%{}` is not known: use %Y, %m, %d, %H or %%", other.unwrap_or(' '))),
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            pieces.push(piece);
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        let has = |wanted: &[Piece]| pieces.iter().any(|p| wanted.contains(p));
        let span_us = if has(&[Piece::Hour]) {
            HOUR_US
        } else if has(&[Piece::Year, Piece::Month, Piece::Day]) {
            DAY_US
        } else {
            0
        };
        Ok(Self { source: source.to_owned(), pieces, span_us })
    }

    /// True when the path depends on the row's event time.
    pub(crate) fn dated(&self) -> bool {
        self.span_us > 0
    }

    /// Number of the span that an event time in microseconds lies in; rows of one span share a file. `None` for no time.
    pub(crate) fn span(&self, ts: Option<i64>) -> Option<i64> {
        if self.dated() { ts.map(|us| us.div_euclid(self.span_us)) } else { Some(0) }
    }

    /// The file of a span. Rows without event time lie in the file of year, month and day zero.
    pub(crate) fn file(&self, span: Option<i64>) -> PathBuf {
        let us = span.map(|s| s.saturating_mul(self.span_us));
        let (year, month, day) = us.map_or((0, 0, 0), |us| civil_from_days(us.div_euclid(DAY_US)));
        let hour = us.map_or(0, |us| us.rem_euclid(DAY_US) / HOUR_US);
        let mut path = String::with_capacity(self.source.len() + 8);
        for piece in &self.pieces {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Text(text) => write!(path, "{text}"),
                Piece::Year => write!(path, "{year:04}"),
                Piece::Month => write!(path, "{month:02}"),
                Piece::Day => write!(path, "{day:02}"),
                Piece::Hour => write!(path, "{hour:02}"),
            };
        }
        PathBuf::from(path)
    }

    /// A hidden file named after the path, with `ending`, in the deepest directory that all of its files share.
    pub(crate) fn beside(&self, ending: &str) -> PathBuf {
        let dated_from = self.source.find('%').unwrap_or(self.source.len());
        let cut = self.source[..dated_from].rfind('/').map_or(0, |slash| slash + 1);
        let (directory, name) = self.source.split_at(cut);
        Path::new(directory).join(format!(".{}.{ending}", name.replace('/', "_")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(template: &str, rfc3339: &str) -> String {
        let template = Template::parse(template).expect("good path");
        let us = fieldstream_schemas::time::parse_rfc3339(rfc3339.as_bytes());
        template.file(template.span(us)).display().to_string()
    }

    #[test]
    fn the_event_time_names_the_file() {
        assert_eq!(at("late/%Y-%m-%d.ndjson", "2026-11-23T23:59:59.999Z"), "late/2026-11-23.ndjson");
        assert_eq!(at("%Y/%m/%d/%H/100%%.ndjson", "1969-12-31T23:00:00Z"), "1969/12/31/23/100%.ndjson");
        assert_eq!(at("late/%Y-%m-%d.ndjson", "no time"), "late/0000-00-00.ndjson");
        assert_eq!(at("plain.ndjson", "no time"), "plain.ndjson");
    }

    #[test]
    fn the_sidecar_lies_where_all_files_are() {
        let beside = |path: &str| Template::parse(path).expect("good path").beside("marks").display().to_string();
        assert_eq!(beside("out/alerts.ndjson"), "out/.alerts.ndjson.marks");
        assert_eq!(beside("/late/%Y/%m.ndjson"), "/late/.%Y_%m.ndjson.marks");
        assert_eq!(beside("x.ndjson"), ".x.ndjson.marks");
    }

    #[test]
    fn unknown_parts_are_refused() {
        for path in ["", "out/", "a%q", "a%"] {
            assert!(Template::parse(path).is_err(), "{path}");
        }
    }
}
