//! A frame: one group commit, with an index of what lies in it for whom.
//!
//! ```text
//! 0   magic "FSFRAME1"                      8 bytes
//! 8   CRC-32 of the header from byte 12 on  4        both seeded with the journal's id, so that bytes which somebody
//! 12  CRC-32 of the body                    4        sends as a payload can never pass for a frame
//! 16  frame number                          8
//! 24  commit time, µs, never decreasing     8
//! 32  header length, a multiple of 8        4
//! 36  lengths of rows, rejects, raws        4 + 4 + 4
//! 48  number of sources, of runs            4 + 4
//! 56  number of appends                     4
//! 60  0                                     4
//! 64  sources: length (2), UTF-8 bytes
//!     runs: partition, source (4 + 4), first and next offset (8 + 8), start and end in rows, rejects, raws (6 × 4)
//!     zeros up to the header length
//!     body: Arrow IPC messages of rows, rejects, raws, see `tables`
//! ```
//! All numbers are little endian.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use fieldstream_schemas::Position;

use crate::stage::Staged;
use crate::tables::{KINDS, Raw, TableKind, raws_table, rejects_table, with_positions};

/// First bytes of a frame.
pub(crate) const MAGIC: [u8; 8] = *b"FSFRAME1";
/// Bytes of the header before the sources.
pub(crate) const FIXED: usize = 64;
/// A header is never longer; a length above it is damage.
pub(crate) const LONGEST_HEADER: usize = 16 << 20;
const RUN: usize = 48;

/// Consecutive payloads of one source in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) partition: u32,
    /// Index into [`FrameHead::sources`].
    pub(crate) source: u32,
    pub(crate) offsets: Range<u64>,
    pub(crate) rows: Range<u32>,
    pub(crate) rejects: Range<u32>,
    pub(crate) raws: Range<u32>,
}

/// The header of a frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FrameHead {
    pub(crate) number: u64,
    pub(crate) commit_us: i64,
    pub(crate) header_len: usize,
    pub(crate) body_crc: u32,
    /// Bytes of each table, as in [`KINDS`].
    pub(crate) tables: [usize; 3],
    pub(crate) sources: Vec<Arc<str>>,
    pub(crate) runs: Vec<Run>,
}

impl FrameHead {
    /// Bytes after the header.
    pub(crate) fn body_len(&self) -> usize {
        self.tables.iter().sum()
    }

    /// Bytes of the whole frame.
    pub(crate) fn len(&self) -> u64 {
        (self.header_len + self.body_len()) as u64
    }

    /// Where table `kind` lies in the body.
    pub(crate) fn table(&self, kind: TableKind) -> Range<usize> {
        let before: usize = self.tables.iter().take(kind as usize).sum();
        before..before + self.tables.get(kind as usize).copied().unwrap_or_default()
    }
}

/// CRC-32 seeded with the journal's id.
pub(crate) fn checksum(seed: u32, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(data);
    hasher.finalize()
}

/// A frame ready to be written, and what it does to the partitions.
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    /// First offset after the frame, by partition.
    pub(crate) next: Vec<u64>,
    pub(crate) rows: u64,
    pub(crate) rejects: u64,
}

/// Everything of a group that is not yet bytes.
#[derive(Default)]
struct Group {
    sources: Vec<Arc<str>>,
    runs: Vec<Run>,
    rows: Vec<RecordBatch>,
    positions: Vec<Position>,
    rejects: Vec<fieldstream_schemas::Reject>,
    raws: Vec<Raw>,
    next: Vec<u64>,
}

impl Group {
    /// Adds one append.
    fn add(&mut self, staged: Staged) {
        let source = self.sources.iter().position(|s| *s == staged.source).unwrap_or_else(|| {
            self.sources.push(Arc::clone(&staged.source));
            self.sources.len() - 1
        });
        let shift = |range: &Range<u32>, by: usize| range.start + by as u32..range.end + by as u32;
        let (rows, rejects, raws) = (self.positions.len(), self.rejects.len(), self.raws.len());
        self.positions.extend(&staged.positions);
        self.rejects.extend(staged.rejects);
        self.raws.extend(staged.raws);
        for run in &staged.runs {
            let Some(next) = self.next.get_mut(run.partition as usize) else { continue };
            let first = *next;
            *next += run.payloads;
            let run = Run {
                partition: run.partition,
                source: source as u32,
                offsets: first..first + run.payloads,
                rows: shift(&run.rows, rows),
                rejects: shift(&run.rejects, rejects),
                raws: shift(&run.raws, raws),
            };
            let at = |range: &Range<u32>| range.start as usize..range.end as usize;
            self.positions.get_mut(at(&run.rows)).into_iter().flatten().for_each(|p| p.offset += first);
            self.rejects.get_mut(at(&run.rejects)).into_iter().flatten().for_each(|r| r.position.offset += first);
            self.raws.get_mut(at(&run.raws)).into_iter().flatten().for_each(|r| r.offset += first);
            self.runs.push(run);
        }
        if staged.rows.num_rows() > 0 {
            self.rows.push(staged.rows);
        }
    }

    fn tables(&self) -> Result<[Vec<u8>; 3], ArrowError> {
        let readings = match self.rows.as_slice() {
            [one] => one.clone(),
            many => concat_batches(&fieldstream_schemas::readings_schema(), many)?,
        };
        let (offsets, numbers) = self.positions.iter().map(|p| (p.offset, p.row)).unzip();
        Ok([
            TableKind::Rows.encode(&with_positions(&readings, offsets, numbers)?)?,
            TableKind::Rejects.encode(&rejects_table(&self.rejects)?)?,
            TableKind::Raws.encode(&raws_table(&self.raws)?)?,
        ])
    }
}

/// Makes one frame of a group of appends, in their order, with offsets from `next` (by partition).
pub(crate) fn encode(group: Vec<Staged>, next: &[u64], number: u64, commit_us: i64, seed: u32) -> Result<Encoded, ArrowError> {
    let appends = group.len() as u32;
    let mut all = Group { next: next.to_vec(), ..Group::default() };
    group.into_iter().for_each(|staged| all.add(staged));
    let tables = all.tables()?;
    let body: usize = tables.iter().map(Vec::len).sum();
    let mut out = Vec::with_capacity(FIXED + all.runs.len() * RUN + 64 * all.sources.len() + body);
    out.extend_from_slice(&MAGIC);
    out.resize(16, 0);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&commit_us.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let mut put = |n: usize| out.extend_from_slice(&(n as u32).to_le_bytes());
    tables.iter().for_each(|t| put(t.len()));
    put(all.sources.len());
    put(all.runs.len());
    put(appends as usize);
    put(0);
    for source in &all.sources {
        out.extend_from_slice(&(source.len() as u16).to_le_bytes());
        out.extend_from_slice(source.as_bytes());
    }
    for run in &all.runs {
        out.extend_from_slice(&run.partition.to_le_bytes());
        out.extend_from_slice(&run.source.to_le_bytes());
        out.extend_from_slice(&run.offsets.start.to_le_bytes());
        out.extend_from_slice(&run.offsets.end.to_le_bytes());
        for range in [&run.rows, &run.rejects, &run.raws] {
            out.extend_from_slice(&range.start.to_le_bytes());
            out.extend_from_slice(&range.end.to_le_bytes());
        }
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let header_len = out.len();
    out[32..36].copy_from_slice(&(header_len as u32).to_le_bytes());
    tables.iter().for_each(|t| out.extend_from_slice(t));
    let body_crc = checksum(seed, &out[header_len..]);
    out[12..16].copy_from_slice(&body_crc.to_le_bytes());
    let header_crc = checksum(seed, &out[12..header_len]);
    out[8..12].copy_from_slice(&header_crc.to_le_bytes());
    Ok(Encoded { bytes: out, next: all.next, rows: all.positions.len() as u64, rejects: all.rejects.len() as u64 })
}

/// Reads numbers from the front of a slice; `None` at its end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn range(&mut self) -> Option<Range<u32>> {
        Some(self.u32()?..self.u32()?)
    }
}

/// Length of the header that begins with `fixed`; `None` when it is no frame.
pub(crate) fn header_len(fixed: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(fixed.get(32..36)?.try_into().ok()?) as usize;
    (fixed.starts_with(&MAGIC) && (FIXED..=LONGEST_HEADER).contains(&len)).then_some(len)
}

/// Reads a whole header; `None` when it is damaged.
pub(crate) fn decode_head(header: &[u8], seed: u32) -> Option<FrameHead> {
    let header_len = header_len(header)?;
    let header = header.get(..header_len)?;
    let mut fields = Fields(header.get(8..)?);
    if fields.u32()? != checksum(seed, header.get(12..)?) {
        return None;
    }
    let body_crc = fields.u32()?;
    let (number, commit_us) = (fields.u64()?, fields.u64()?.cast_signed());
    let _ = fields.u32()?;
    let tables = [fields.u32()? as usize, fields.u32()? as usize, fields.u32()? as usize];
    let (sources, runs, _appends, _) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    let mut head = FrameHead { number, commit_us, header_len, body_crc, tables, ..FrameHead::default() };
    for _ in 0..sources {
        let len = u16::from_le_bytes(fields.array()?);
        head.sources.push(std::str::from_utf8(fields.take(len as usize)?).ok()?.into());
    }
    for _ in 0..runs {
        let (partition, source) = (fields.u32()?, fields.u32()?);
        let offsets = fields.u64()?..fields.u64()?;
        let (rows, rejects, raws) = (fields.range()?, fields.range()?, fields.range()?);
        head.runs.push(Run { partition, source, offsets, rows, rejects, raws });
    }
    Some(head)
}

/// The tables of a frame, as in [`KINDS`]. `schemas` are the segment's schema messages.
pub(crate) fn decode_body(head: &FrameHead, schemas: &[Buffer; 3], body: Vec<u8>, seed: u32) -> Result<[RecordBatch; 3], String> {
    if body.len() != head.body_len() || checksum(seed, &body) != head.body_crc {
        return Err("the body's checksum is wrong".to_owned());
    }
    let body = Buffer::from_vec(body);
    let [rows, rejects, raws] = KINDS;
    let decode = |kind: TableKind| {
        let range = head.table(kind);
        kind.decode(&schemas[kind as usize], body.slice_with_length(range.start, range.len())).map_err(|e| e.to_string())
    };
    Ok([decode(rows)?, decode(rejects)?, decode(raws)?])
}
