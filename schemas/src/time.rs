//! Times as text: RFC 3339 timestamps to and from microseconds, and durations such as `250ms` or `14d`.

use std::fmt::Write as _;
use std::time::Duration;

const DAY_US: i64 = 86_400_000_000;

/// Days since 1970-01-01 of a proleptic Gregorian date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
#[must_use]
pub const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Year, month and day of days since 1970-01-01; the inverse of [`days_from_civil`].
#[must_use]
pub const fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month as u32, (doy - (153 * mp + 2) / 5 + 1) as u32)
}

const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && year % 100 != 0 || year % 400 == 0 => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Two to four decimal digits at `at`, or `None`.
fn digits(text: &[u8], at: usize, count: usize) -> Option<i64> {
    let mut value = 0;
    for byte in text.get(at..at + count)? {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(value)
}

/// Microseconds since the epoch of an RFC 3339 timestamp; digits below a microsecond are cut. `None` if it is none.
#[must_use]
pub fn parse_rfc3339(text: &[u8]) -> Option<i64> {
    if text.len() < 20 || text[4] != b'-' || text[7] != b'-' || text[13] != b':' || text[16] != b':' {
        return None;
    }
    if !matches!(text[10], b'T' | b't' | b' ') {
        return None;
    }
    let (year, month, day) = (digits(text, 0, 4)?, digits(text, 5, 2)?, digits(text, 8, 2)?);
    let (hour, minute, second) = (digits(text, 11, 2)?, digits(text, 14, 2)?, digits(text, 17, 2)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut at = 19;
    let mut fraction = 0;
    if text[at] == b'.' {
        let start = at + 1;
        at = start;
        let mut unit = 100_000;
        while let Some(digit) = text.get(at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d <= 9) {
            fraction += i64::from(digit) * unit;
            unit /= 10;
            at += 1;
        }
        if at == start {
            return None;
        }
    }
    let offset_minutes = match text.get(at)? {
        b'Z' | b'z' if text.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if text.len() == at + 6 && text[at + 3] == b':' => {
            let (h, m) = (digits(text, at + 1, 2)?, digits(text, at + 4, 2)?);
            if h > 23 || m > 59 {
                return None;
            }
            if *sign == b'-' { -(h * 60 + m) } else { h * 60 + m }
        }
        _ => return None,
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_minutes * 60;
    Some(seconds * 1_000_000 + fraction)
}

/// Appends `us` as RFC 3339 in UTC, with milliseconds, or microseconds where there are any.
pub fn write_rfc3339(out: &mut String, us: i64) {
    let (year, month, day) = civil_from_days(us.div_euclid(DAY_US));
    let in_day = us.rem_euclid(DAY_US);
    let (second, fraction) = (in_day / 1_000_000, in_day % 1_000_000);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    // Writing to a String cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.");
    let _ = if fraction % 1000 == 0 { write!(out, "{:03}Z", fraction / 1000) } else { write!(out, "{fraction:06}Z") };
}

/// `us` as RFC 3339 in UTC; see [`write_rfc3339`].
#[must_use]
pub fn format_rfc3339(us: i64) -> String {
    let mut out = String::with_capacity(27);
    write_rfc3339(&mut out, us);
    out
}

/// Reads a duration: a whole or decimal number and one of `us`, `ms`, `s`, `m`, `h`, `d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_round_trip_and_reject_what_is_no_date() {
        for text in ["2026-11-23T10:00:00.123Z", "1970-01-01T00:00:00.000Z", "2000-02-29T23:59:59.000001Z", "0001-01-01T00:00:00.000Z"] {
            assert_eq!(parse_rfc3339(text.as_bytes()).map(format_rfc3339).as_deref(), Some(text));
        }
        assert_eq!(parse_rfc3339(b"2026-11-23T12:00:00+02:00"), parse_rfc3339(b"2026-11-23T10:00:00Z"));
        for text in [
            "",
            "not-a-timestamp",
            "2026-13-45T10:00:00.000Z",
            "2025-02-29T00:00:00Z",
            "2026-11-23T10:00:00",
            "2026-11-23T10:00:00.Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T10:00:00+2:00",
        ] {
            assert_eq!(parse_rfc3339(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("14d"), Some(Duration::from_secs(14 * 86_400)));
        assert_eq!(parse_duration("1.5h"), Some(Duration::from_secs(5400)));
        for text in ["", "5", "s", "-1s", "1 week", "1e3s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
