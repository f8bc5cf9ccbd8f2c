//! A segment file: a header that makes it readable on its own, then frames.
//!
//! ```text
//! 0   magic "FSSEGM01"                               8 bytes
//! 8   CRC-32 of the header from byte 12 on           4
//! 12  header length, a multiple of 8                 4
//! 16  segment number                                 8
//! 24  journal id                                     16
//! 40  number of the first frame                      8
//! 48  highest commit time before it, µs              8
//! 56  number of partitions, lengths of three schemas 4 × 4
//! 72  next offset of each partition                  8 each
//!     the IPC schema messages of rows, rejects, raws
//!     zeros up to the header length
//! ```
//! The header's length depends on nothing that changes while a journal lives, unless the program's columns do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use arrow::buffer::Buffer;

use crate::frame::checksum;
use crate::identity::Identity;
use crate::tables::KINDS;

const MAGIC: [u8; 8] = *b"FSSEGM01";
const FIXED: usize = 72;
/// A header is never longer: a length above it is damage.
const LONGEST: usize = 64 << 20;

/// What a segment's header says.
#[derive(Clone, Debug)]
pub(crate) struct SegmentHead {
    pub(crate) number: u64,
    /// Number of its first frame.
    pub(crate) first_frame: u64,
    /// Highest commit time before it.
    pub(crate) commit_us: i64,
    /// First offset of each partition.
    pub(crate) first: Vec<u64>,
    pub(crate) schemas: [Buffer; 3],
    pub(crate) len: u64,
}

/// A segment that readers may read up to its published length.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) head: SegmentHead,
    pub(crate) path: PathBuf,
    /// Durable bytes.
    pub(crate) len: AtomicU64,
}

/// The schema messages of this program.
pub(crate) fn own_schemas() -> io::Result<[Buffer; 3]> {
    let message = |i: usize| KINDS[i].schema_message().map(Buffer::from_vec).map_err(io::Error::other);
    Ok([message(0)?, message(1)?, message(2)?])
}

/// File of segment `number`.
pub(crate) fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:020}.segment"))
}

/// Numbers of the segments in `folder`, ascending.
pub(crate) fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|n| n.strip_suffix(".segment")?.parse().ok()) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The bytes of a new segment's header.
pub(crate) fn encode_head(identity: &Identity, number: u64, first_frame: u64, commit_us: i64, first: &[u64]) -> io::Result<Vec<u8>> {
    let schemas = own_schemas()?;
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(identity.id.as_bytes());
    out.extend_from_slice(&first_frame.to_le_bytes());
    out.extend_from_slice(&commit_us.to_le_bytes());
    out.extend_from_slice(&(first.len() as u32).to_le_bytes());
    schemas.iter().for_each(|s| out.extend_from_slice(&(s.len() as u32).to_le_bytes()));
    first.iter().for_each(|offset| out.extend_from_slice(&offset.to_le_bytes()));
    schemas.iter().for_each(|s| out.extend_from_slice(s));
    out.resize(out.len().next_multiple_of(8), 0);
    let len = out.len() as u32;
    out[12..16].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(identity.seed(), &out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Reads a segment's header; `None` when it is damaged or another journal's.
pub(crate) fn read_head(file: &File, identity: &Identity) -> io::Result<Option<SegmentHead>> {
    let mut fixed = [0; FIXED];
    match file.read_exact_at(&mut fixed, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    let len = number32(&fixed, 12) as usize;
    if !fixed.starts_with(&MAGIC) || !(FIXED..=LONGEST).contains(&len) {
        return Ok(None);
    }
    let mut header = vec![0; len];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    Ok(decode_head(&header, identity))
}

fn decode_head(header: &[u8], identity: &Identity) -> Option<SegmentHead> {
    let id = header.get(24..40)?;
    if number32(header, 8) != checksum(identity.seed(), header.get(12..)?) || id != identity.id.as_bytes() {
        return None;
    }
    let partitions = number32(header, 56) as usize;
    let mut at = FIXED + partitions * 8;
    let first = header.get(FIXED..at)?.chunks_exact(8).map(|c| number64(c, 0)).collect();
    let mut schema = |i: usize| {
        let len = number32(header, 60 + 4 * i) as usize;
        at += len;
        header.get(at - len..at).map(|bytes| Buffer::from_vec(bytes.to_vec()))
    };
    let schemas = [schema(0)?, schema(1)?, schema(2)?];
    let (number, first_frame, commit_us) = (number64(header, 16), number64(header, 40), number64(header, 48).cast_signed());
    Some(SegmentHead { number, first_frame, commit_us, first, schemas, len: header.len() as u64 })
}

/// Four little-endian bytes at `at`; 0 outside.
fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Eight little-endian bytes at `at`; 0 outside.
fn number64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Makes a file's name durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Beginning of the last line of a sealed JSON file; the checksum of what is above it follows.
const SEAL: &str = "# crc32 ";

/// [`replace_file`] with JSON and its checksum: a changed digit in it would read as another number.
pub(crate) fn replace_sealed(folder: &Path, name: &str, json: &[u8]) -> io::Result<()> {
    let mut data = json.to_vec();
    data.extend_from_slice(format!("\n{SEAL}{:08x}\n", crc32fast::hash(json)).as_bytes());
    replace_file(folder, name, &data)
}

/// The JSON of a sealed file; one without a seal was written by an earlier version and is taken as it is.
pub(crate) fn unsealed<'a>(name: &str, data: &'a [u8]) -> io::Result<&'a [u8]> {
    let damaged = || io::Error::other(format!("{name} is damaged: its checksum is wrong"));
    let Some(at) = data.windows(SEAL.len() + 1).rposition(|w| w.first() == Some(&b'\n') && w.get(1..) == Some(SEAL.as_bytes())) else {
        return Ok(data);
    };
    let (json, seal) = data.split_at(at);
    let wanted = format!("\n{SEAL}{:08x}\n", crc32fast::hash(json));
    if seal == wanted.as_bytes() { Ok(json) } else { Err(damaged()) }
}

/// Replaces `name` in `folder` by `data`, durably: either the old or the new content is there, never a part.
pub(crate) fn replace_file(folder: &Path, name: &str, data: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    io::Write::write_all(&mut file, data)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    sync_folder(folder)
}
