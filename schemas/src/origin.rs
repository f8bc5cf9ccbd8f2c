//! Where a forwarded record comes from, as its header says it: what a reader needs to take each reading once.
//!
//! A **stream** is a sequence of records whose positions ascend and which travel in order. Its name is opaque to the reader. A sender that
//! starts again repeats a stream from an earlier position, without gaps, so what is not above the highest position taken is known.

use bytes::Bytes;

use crate::Position;

/// Name of the record header.
pub const HEADER: &str = "fieldstream-origin";
/// Longest value of the header, bytes.
pub const LONGEST: usize = 512;

/// The place of a record in its stream: offset and row in the log it was read from.
pub type Place = (u64, u32);

/// The header's value for the row at `position` of `stream`: `<offset>.<row>@<stream>`.
#[must_use]
pub fn write(position: Position, stream: &str) -> String {
    format!("{}.{}@{stream}", position.offset, position.row)
}

/// Reads a header's value: place and stream. `None` if it is nothing that [`write()`] makes, or too long.
#[must_use]
pub fn parse(value: &Bytes) -> Option<(Place, &str)> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= LONGEST)?;
    let (place, stream) = text.split_once('@').filter(|(_, stream)| !stream.is_empty())?;
    let (offset, row) = place.split_once('.')?;
    // The standard library takes a plus sign.
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(offset) && digits(row)).then_some(())?;
    Some(((offset.parse().ok()?, row.parse().ok()?), stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let value = Bytes::from(write(Position::new(u64::MAX, 7), "journal:x/3/edge/cloud/a.b@c/0"));
        assert_eq!(parse(&value), Some(((u64::MAX, 7), "journal:x/3/edge/cloud/a.b@c/0")));
        let long = format!("1.2@{}", "x".repeat(LONGEST));
        for wrong in ["", "@s", "1@s", "1.2", "1.2@", "+1.2@s", "1.-2@s", "1.4294967296@s", "18446744073709551616.0@s", &long] {
            assert_eq!(parse(&Bytes::copy_from_slice(wrong.as_bytes())), None, "{wrong}");
        }
        assert_eq!(parse(&Bytes::from_static(b"1.2@\xff")), None);
    }
}
