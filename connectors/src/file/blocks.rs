//! Whole lines (or CSV records) of a file in blocks of about one MiB, each block one allocation.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use fieldstream_schemas::{PayloadBlock, PayloadEntry};

/// Bytes read at once, unless one line is longer.
pub(crate) const BLOCK: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a block cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the line at offset {offset} is longer than {max_line} bytes: raise `max_line`")]
    TooLong { offset: u64, max_line: usize },
    #[error("offset {0} is not the beginning of a line: the file has changed since it was read first")]
    Changed(u64),
}

/// A file that is read up to `end`, its length when the run began.
#[derive(Debug)]
pub(crate) struct Lines {
    /// The file.
    pub(crate) file: File,
    /// Offset of the next line.
    pub(crate) at: u64,
    /// First offset that is not read.
    pub(crate) end: u64,
    /// Longest line in bytes, its line break left out.
    pub(crate) max_line: usize,
    /// True when a line break inside quotes belongs to the record (RFC 4180).
    pub(crate) quoted: bool,
}

impl Lines {
    /// Checks that `at` is the beginning of a line.
    pub(crate) fn check_start(&self) -> Result<(), BlockError> {
        if self.at == 0 || self.at >= self.end {
            return Ok(());
        }
        let mut before = [0];
        self.file.read_exact_at(&mut before, self.at - 1)?;
        if before == *b"\n" { Ok(()) } else { Err(BlockError::Changed(self.at)) }
    }

    /// The next lines, at least one; `None` at the end. Lines of white space are no payloads and are passed over.
    pub(crate) fn next_block(&mut self) -> Result<Option<PayloadBlock>, BlockError> {
        let mut room = BLOCK;
        while self.at < self.end {
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            let mut data = vec![0; room.min(left)];
            self.file.read_exact_at(&mut data, self.at)?;
            let mut cut = Cut { entries: Vec::with_capacity(data.len() / 128), consumed: 0 };
            cut.lines(&data, self.at, left <= room, self.quoted);
            let longest = cut.entries.iter().find(|e| e.len as usize > self.max_line).map(|e| e.offset);
            let unfinished = (cut.consumed == 0 && room > self.max_line).then_some(self.at);
            if let Some(offset) = longest.or(unfinished) {
                return Err(BlockError::TooLong { offset, max_line: self.max_line });
            }
            if cut.consumed == 0 {
                room = (room * 2).min(self.max_line + BLOCK);
                continue;
            }
            self.at += cut.consumed as u64;
            if !cut.entries.is_empty() {
                data.truncate(cut.consumed);
                return Ok(Some(PayloadBlock { data: Bytes::from(data), entries: cut.entries, ..PayloadBlock::default() }));
            }
            room = BLOCK;
        }
        Ok(None)
    }
}

struct Cut {
    entries: Vec<PayloadEntry>,
    consumed: usize,
}

impl Cut {
    /// Cuts `data`, which begins at file offset `at`, into lines; with `last`, what follows the last line break is one too.
    fn lines(&mut self, data: &[u8], at: u64, last: bool, quoted: bool) {
        if quoted {
            let mut inside = false;
            for found in memchr::memchr2_iter(b'"', b'\n', data) {
                if data[found] == b'"' {
                    inside = if inside { false } else { opens(data, self.consumed, found) };
                } else if !inside {
                    self.line(data, at, found + 1);
                }
            }
        } else {
            for found in memchr::memchr_iter(b'\n', data) {
                self.line(data, at, found + 1);
            }
        }
        if last && self.consumed < data.len() {
            self.line(data, at, data.len());
        }
    }

    fn line(&mut self, data: &[u8], at: u64, end: usize) {
        let offset = at + self.consumed as u64;
        let mut start = std::mem::replace(&mut self.consumed, end);
        if offset == 0 && data.starts_with(BYTE_ORDER_MARK) {
            start = BYTE_ORDER_MARK.len();
        }
        let line = data[start..end].strip_suffix(b"\n").unwrap_or(&data[start..end]);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        // Blocks are far below 4 GiB: `max_line` is bounded when the options are read.
        self.entries.push(PayloadEntry { offset, start: start as u32, len: line.len() as u32, ingest_us: None });
    }
}

/// Whether the quote at `quote` opens a quoted field: it does at the beginning of a field, and right after a closing quote,
/// where the two are one escaped quote.
fn opens(data: &[u8], record: usize, quote: usize) -> bool {
    quote == record || data.get(quote - 1).is_some_and(|before| matches!(before, b',' | b';' | b'\t' | b'|' | b'"'))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read_all(content: &[u8], quoted: bool, max_line: usize) -> Result<Vec<(u64, String)>, BlockError> {
        let mut file = tempfile::tempfile().expect("temp file");
        file.write_all(content).expect("write");
        let mut lines = Lines { file, at: 0, end: content.len() as u64, max_line, quoted };
        let mut found = Vec::new();
        while let Some(block) = lines.next_block()? {
            let payload = |i: usize| String::from_utf8_lossy(block.payload(i)).into_owned();
            found.extend(block.entries.iter().enumerate().map(|(i, e)| (e.offset, payload(i))));
        }
        assert_eq!(lines.at, content.len() as u64);
        Ok(found)
    }

    fn owned(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected.iter().map(|(o, t)| (*o, (*t).to_owned())).collect()
    }

    #[test]
    fn lines_have_their_byte_offset_and_no_line_is_lost() {
        let content = b"\xef\xbb\xbf{\"a\":1}\r\n\n  \t\r\n{\"b\":2}\n{\"c\":3}";
        let lines = read_all(content, false, 1 << 20).expect("readable");
        assert_eq!(lines, owned(&[(0, "{\"a\":1}"), (18, "{\"b\":2}"), (26, "{\"c\":3}")]));
        assert_eq!(read_all(b"", false, 10).expect("empty"), []);
        assert_eq!(read_all(b"\n\n", false, 10).expect("blank"), []);
    }

    #[test]
    fn a_record_ends_outside_quotes_and_a_stray_quote_swallows_nothing() {
        let content = b"a,\"x\ny\"\n\"say \"\"hi\"\"\n\",2\n5\" pipe,3\nlast";
        let records = read_all(content, true, 1 << 20).expect("readable");
        assert_eq!(records, owned(&[(0, "a,\"x\ny\""), (8, "\"say \"\"hi\"\"\n\",2"), (24, "5\" pipe,3"), (34, "last")]));
    }

    #[test]
    fn lines_longer_than_a_block_come_whole_and_too_long_ones_are_named() {
        let long = "x".repeat(3 * BLOCK);
        let content = format!("short\n{long}\nend\n");
        let lines = read_all(content.as_bytes(), false, 4 * BLOCK).expect("readable");
        let shape: Vec<_> = lines.iter().map(|(o, t)| (*o, t.len())).collect();
        assert_eq!(shape, [(0, 5), (6, 3 * BLOCK), (3 * BLOCK as u64 + 7, 3)]);
        for max_line in [100, BLOCK, 2 * BLOCK] {
            let error = read_all(content.as_bytes(), false, max_line).expect_err("too long");
            assert!(matches!(error, BlockError::TooLong { offset: 6, .. }), "{max_line}: {error}");
        }
    }

    #[test]
    fn many_blocks_give_the_lines_of_the_whole() {
        let content: String = (0..40_000).map(|i| format!("{{\"number\":{i},\"padding\":\"{}\"}}\n", "p".repeat(i % 90))).collect();
        let mut at = 0;
        let mut expected = Vec::new();
        for line in content.lines() {
            expected.push((at, line.to_owned()));
            at += line.len() as u64 + 1;
        }
        assert!(content.len() > 2 * BLOCK);
        assert_eq!(read_all(content.as_bytes(), false, 1000).expect("readable"), expected);
    }
}
