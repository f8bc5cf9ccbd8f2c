//! What a segment says about itself: a few lines of text in the footer of its Arrow file, with a checksum over them.

use std::collections::HashMap;
use std::fmt::Write;

use super::bloom::Bloom;

/// Version of this text and of the order of rows.
const VERSION: &str = "1";
/// Bytes of a block in `blocks`: end, first hash, checksum, smallest `last_seen` of its pending rows.
const ENTRY: usize = 28;
/// The keys in the order in which the checksum goes over them.
const KEYS: [&str; 7] = ["cold.version", "cold.rows", "cold.pending", "cold.pending_since", "cold.header", "cold.blocks", "cold.bloom"];
/// The key of the checksum.
const CHECK: &str = "cold.check";

/// Where the blocks of a segment lie, and what is in them. All but the rows themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    /// Rows in all blocks.
    pub(super) rows: u64,
    /// Rows with `pending`.
    pub(super) pending: u64,
    /// Checksum of the bytes before the first block: the schema.
    pub(super) header: u32,
    /// Where each block begins, and the end of the last.
    pub(super) bounds: Vec<u64>,
    /// Hash of the first device of each block.
    pub(super) firsts: Vec<u64>,
    /// CRC32 of each block.
    pub(super) checksums: Vec<u32>,
    /// Smallest `last_seen` of the pending rows of each block, `i64::MAX` without any.
    pub(super) pending_since: Vec<i64>,
    /// Over the hashes of all devices.
    pub(super) bloom: Bloom,
}

fn to_hex(bytes: impl Iterator<Item = u8>) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef".get(usize::from(nibble)).copied().unwrap_or(b'?'));
    bytes.flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|n| u8::try_from(n).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
        _ => None,
    });
    pairs.collect()
}

fn check(lines: &[(&str, String)]) -> String {
    let mut crc = crc32fast::Hasher::new();
    for (key, value) in lines {
        crc.update(key.as_bytes());
        crc.update(b"=");
        crc.update(value.as_bytes());
        crc.update(b"\n");
    }
    format!("{:08x}", crc.finalize())
}

impl Index {
    /// Smallest `last_seen` of all pending rows.
    fn since(&self) -> i64 {
        self.pending_since.iter().copied().min().unwrap_or(i64::MAX)
    }

    /// Keys and values for the footer.
    pub(super) fn to_footer(&self) -> Vec<(&'static str, String)> {
        let mut header = String::new();
        // Writing to a string cannot fail.
        let _ = write!(header, "{:08x} {}", self.header, self.bounds.first().copied().unwrap_or_default());
        let ends = self.bounds.iter().skip(1);
        let blocks = ends.zip(&self.firsts).zip(&self.checksums).zip(&self.pending_since);
        let entries = blocks.flat_map(|(((end, first), crc), since)| {
            let (end, first, crc, since) = (end.to_le_bytes(), first.to_le_bytes(), crc.to_le_bytes(), since.to_le_bytes());
            end.into_iter().chain(first).chain(crc).chain(since)
        });
        let values = [
            VERSION.to_owned(),
            self.rows.to_string(),
            self.pending.to_string(),
            self.since().to_string(),
            header,
            to_hex(entries),
            to_hex(self.bloom.words().iter().flat_map(|w| w.to_le_bytes())),
        ];
        let mut lines: Vec<_> = KEYS.into_iter().zip(values).collect();
        lines.push((CHECK, check(&lines)));
        lines
    }

    /// Reads what [`Self::to_footer`] wrote.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn from_footer(mut footer: HashMap<String, String>) -> Result<Self, String> {
        let missing = || "its footer is not that of a cold segment, or damaged".to_owned();
        let mut lines = Vec::with_capacity(KEYS.len());
        for key in KEYS {
            lines.push((key, footer.remove(key).ok_or_else(missing)?));
        }
        if footer.remove(CHECK) != Some(check(&lines)) {
            return Err("the checksum of its footer is wrong".to_owned());
        }
        let [version, rows, pending, _, header, blocks, bloom] = lines.as_slice() else { return Err(missing()) };
        if version.1 != VERSION {
            return Err(format!("it has format {}, this program reads format {VERSION}", version.1));
        }
        let parsed = || -> Option<Self> {
            let (crc, start) = header.1.split_once(' ')?;
            let words = from_hex(&bloom.1)?.chunks(8).map(|w| w.try_into().map(u64::from_le_bytes).ok()).collect::<Option<_>>()?;
            let mut index = Self {
                rows: rows.1.parse().ok()?,
                pending: pending.1.parse().ok()?,
                header: u32::from_str_radix(crc, 16).ok()?,
                bounds: vec![start.parse().ok()?],
                firsts: Vec::new(),
                checksums: Vec::new(),
                pending_since: Vec::new(),
                bloom: Bloom::from_words(words)?,
            };
            for entry in from_hex(&blocks.1)?.chunks(ENTRY) {
                index.bounds.push(u64::from_le_bytes(entry.get(..8)?.try_into().ok()?));
                index.firsts.push(u64::from_le_bytes(entry.get(8..16)?.try_into().ok()?));
                index.checksums.push(u32::from_le_bytes(entry.get(16..20)?.try_into().ok()?));
                index.pending_since.push(i64::from_le_bytes(entry.get(20..28)?.try_into().ok()?));
            }
            index.shrink();
            (!index.firsts.is_empty() && index.bounds.is_sorted_by(|a, b| a < b)).then_some(index)
        };
        parsed().ok_or_else(|| "its footer cannot be read".to_owned())
    }

    /// Gives back what the vectors have too much.
    pub(super) fn shrink(&mut self) {
        self.bounds.shrink_to_fit();
        self.firsts.shrink_to_fit();
        self.checksums.shrink_to_fit();
        self.pending_since.shrink_to_fit();
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        (self.bounds.capacity() + self.firsts.capacity() + self.pending_since.capacity() + self.bloom.words().len()) * 8
            + self.checksums.capacity() * 4
    }
}
