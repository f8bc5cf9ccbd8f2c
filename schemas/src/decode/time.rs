//! Timestamps of payloads to microseconds, the common form without a general parser.

use super::config::TimestampUnit;
use super::scan::Number;
use crate::time::{days_from_civil, parse_rfc3339};

const DAY_US: i64 = 86_400_000_000;
/// 0000-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z: outside of it a time cannot be written as RFC 3339.
const FIRST_US: i64 = days_from_civil(0, 1, 1) * DAY_US;
const LAST_US: i64 = days_from_civil(10_000, 1, 1) * DAY_US - 1;

/// `us` if RFC 3339 can write it.
pub(super) fn representable(us: i64) -> Option<i64> {
    (FIRST_US..=LAST_US).contains(&us).then_some(us)
}

/// Reads timestamps and remembers the last date, because most readings are of today.
#[derive(Debug)]
pub(super) struct Times {
    date: [u8; 10],
    midnight_us: i64,
}

impl Default for Times {
    fn default() -> Self {
        Self { date: *b"1970-01-01", midnight_us: 0 }
    }
}

impl Times {
    /// Microseconds of an RFC 3339 timestamp.
    #[inline(always)]
    pub(super) fn text(&mut self, text: &[u8]) -> Option<i64> {
        match text.first_chunk::<24>() {
            Some(common) if text.len() == 24 => self.millisecond_form(common).or_else(|| general(text)),
            _ => general(text),
        }
    }

    /// `YYYY-MM-DDTHH:MM:SS.mmmZ` on the remembered date, or `None`.
    #[inline(always)]
    fn millisecond_form(&mut self, text: &[u8; 24]) -> Option<i64> {
        if text[..10] != self.date {
            let us = general(text)?;
            // The written date is the UTC date only in this form, not with an offset.
            if text[23] == b'Z' && text[10] == b'T' {
                self.date.copy_from_slice(&text[..10]);
                self.midnight_us = us - us.rem_euclid(DAY_US);
            }
            return Some(us);
        }
        let digit = |at: usize| u32::from(text[at].wrapping_sub(b'0'));
        let (h1, h2, m1, m2, s1, s2) = (digit(11), digit(12), digit(14), digit(15), digit(17), digit(18));
        let (f1, f2, f3) = (digit(20), digit(21), digit(22));
        let largest = h1.max(h2).max(m1).max(m2).max(s1).max(s2).max(f1).max(f2).max(f3);
        let marks = text[10] == b'T' && text[13] == b':' && text[16] == b':' && text[19] == b'.' && text[23] == b'Z';
        let (hour, minute, second) = (h1 * 10 + h2, m1 * 10 + m2, s1 * 10 + s2);
        if largest > 9 || !marks || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let milliseconds = ((hour * 60 + minute) * 60 + second) * 1000 + f1 * 100 + f2 * 10 + f3;
        Some(self.midnight_us + i64::from(milliseconds) * 1000)
    }
}

#[cold]
#[inline(never)]
fn general(text: &[u8]) -> Option<i64> {
    parse_rfc3339(text).and_then(representable)
}

/// Microseconds of a number in `unit`; exact for whole numbers, digits below a microsecond are cut.
pub(super) fn from_number(number: Number<'_>, unit: TimestampUnit) -> Option<i64> {
    let (factor, divisor) = match unit {
        TimestampUnit::Seconds => (1_000_000, 1),
        TimestampUnit::Milliseconds => (1000, 1),
        TimestampUnit::Microseconds => (1, 1),
        TimestampUnit::Nanoseconds => (1, 1000),
    };
    let whole = std::str::from_utf8(number.raw).ok().and_then(|t| t.parse::<i64>().ok());
    let us = match whole {
        Some(whole) => whole.checked_mul(factor)?.div_euclid(divisor),
        None => {
            let us = number.value * factor as f64 / divisor as f64;
            // Far outside of what is representable, and NaN, are refused before the cast could saturate.
            if !(-1e18..=1e18).contains(&us) {
                return None;
            }
            us.round() as i64
        }
    };
    representable(us)
}
