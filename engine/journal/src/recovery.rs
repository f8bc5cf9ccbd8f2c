//! Opening a journal: which frames count, what is a torn tail and what is damage.
//!
//! A group is written only after the fsync of the one before it, so at most the last frame of the last segment can be torn.
//! What does not check there is cut when nothing says that it was durable. It *was* durable when a sound frame follows, or
//! when it lies below the length in the file `durable`, which is written after each fsync (and not synced itself: a power
//! loss may leave an older length, which only makes the test weaker, never wrong). What was durable and does not check is
//! damage: it is counted, never cut, and writing goes on in a new segment. Frames of finished segments are checked when they
//! are read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::frame::{FrameHead, checksum};
use crate::identity::Identity;
use crate::scan::{Found, body_at, frame_at, next_frame};
use crate::segment::{Segment, SegmentHead, encode_head, numbers, own_schemas, path_of, read_head, sync_folder};

/// After damage that hides how many offsets were given out, numbering goes on so much higher: offsets never come twice.
pub(crate) const JUMP: u64 = 1 << 32;
const DURABLE: &str = "durable";

/// What was found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Arc<Segment>>,
    /// First offset after the end, by partition.
    pub(crate) next: Vec<u64>,
    pub(crate) next_frame: u64,
    /// Highest commit time.
    pub(crate) commit_us: i64,
    /// Damage: (segment, place, what).
    pub(crate) lost: Vec<(u64, u64, &'static str)>,
    /// True when the last segment ends in damage and must not be written any more.
    pub(crate) rotate: bool,
}

/// The durable length as the sidecar knows it: (segment, length).
#[derive(Debug)]
pub(crate) struct DurableFile(File);

impl DurableFile {
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        File::options().read(true).write(true).create(true).truncate(false).open(folder.join(DURABLE)).map(Self)
    }

    pub(crate) fn read(&self) -> (u64, u64) {
        let mut bytes = [0; 20];
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        match self.0.read_exact_at(&mut bytes, 0) {
            Ok(()) if crc32fast::hash(&bytes[..16]).to_le_bytes() == bytes[16..] => (word(&bytes[..8]), word(&bytes[8..16])),
            _ => (0, 0),
        }
    }

    pub(crate) fn write(&self, segment: u64, len: u64) -> io::Result<()> {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&segment.to_le_bytes());
        bytes[8..16].copy_from_slice(&len.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        self.0.write_all_at(&bytes, 0)
    }
}

/// Reads the headers of all segments and every frame of the last one.
pub(crate) fn recover(folder: &Path, identity: &Identity, durable: (u64, u64)) -> io::Result<Recovered> {
    let mut found = Recovered {
        segments: Vec::new(),
        next: vec![0; identity.partitions as usize],
        next_frame: 0,
        commit_us: i64::MIN,
        lost: Vec::new(),
        rotate: false,
    };
    let mut all = numbers(folder)?;
    // A last segment without a sound header was being made when the process died, unless frames of it were durable.
    if let Some(last) = all.last().copied().filter(|last| *last != durable.0 || durable.1 == 0)
        && read_head(&File::open(path_of(folder, last))?, identity)?.is_none()
    {
        fs::remove_file(path_of(folder, last))?;
        sync_folder(folder)?;
        all.pop();
    }
    for (i, number) in all.iter().enumerate() {
        if i > 0 && all[i - 1] + 1 != *number {
            found.lost.push((all[i - 1] + 1, 0, "segment files are missing"));
        }
        let last = i + 1 == all.len();
        found.add_segment(folder, identity, *number, if last { Some(durable) } else { None })?;
    }
    if found.segments.is_empty() {
        let first = all.last().map_or(0, |n| n + 1).max(durable.0 + u64::from(durable.1 > 0));
        let segment = create(folder, identity, first, found.next_frame, found.commit_us, &found.next)?;
        found.segments.push(Arc::new(segment));
    }
    Ok(found)
}

/// Makes a new segment, durably.
pub(crate) fn create(
    folder: &Path,
    identity: &Identity,
    number: u64,
    first_frame: u64,
    commit_us: i64,
    first: &[u64],
) -> io::Result<Segment> {
    let path = path_of(folder, number);
    let bytes = encode_head(identity, number, first_frame, commit_us, first)?;
    let file = File::create_new(&path)?;
    let written = file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()).and_then(|()| sync_folder(folder));
    if let Err(error) = written {
        // Best effort: a header without frames is harmless.
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    let len = bytes.len() as u64;
    let head = SegmentHead { number, first_frame, commit_us, first: first.to_vec(), schemas: own_schemas()?, len };
    Ok(Segment { head, path, len: AtomicU64::new(len) })
}

impl Recovered {
    /// Adds segment `number`; the last one (which has a durable length) is read through and cut where it is torn.
    fn add_segment(&mut self, folder: &Path, identity: &Identity, number: u64, durable: Option<(u64, u64)>) -> io::Result<()> {
        let path = path_of(folder, number);
        let file = File::open(&path)?;
        let head = match read_head(&file, identity)? {
            Some(head) if head.first.len() == self.next.len() => head,
            _ => {
                self.lost.push((number, 0, "the segment's header is damaged"));
                self.guess_head(identity, number)?
            }
        };
        if head.schemas != own_schemas()? {
            return Err(io::Error::other(format!(
                "segment {number} was written by a program with other columns: let that program finish it"
            )));
        }
        self.next.clone_from(&head.first);
        self.next_frame = head.first_frame;
        self.commit_us = self.commit_us.max(head.commit_us);
        let mut len = file.metadata()?.len();
        if let Some((segment, durable_len)) = durable {
            let durable_len = if segment == number { durable_len } else { 0 };
            let good = self.read_through(&file, &head, len, durable_len, identity.seed())?;
            if good < len {
                File::options().write(true).open(&path)?.set_len(good)?;
                File::open(&path)?.sync_all()?;
                tracing::warn!(segment = number, from = good, bytes = len - good, "cut a torn write off the journal's end");
                len = good;
            }
        }
        self.segments.push(Arc::new(Segment { head, path, len: AtomicU64::new(len) }));
        Ok(())
    }

    /// Stands in for a damaged header: the segment begins where the one before it ends.
    fn guess_head(&mut self, identity: &Identity, number: u64) -> io::Result<SegmentHead> {
        if let Some(before) = self.segments.last().cloned() {
            let file = File::open(&before.path)?;
            let (mut at, limit) = (before.head.len, before.len.load(std::sync::atomic::Ordering::Acquire));
            while let Some(next) = next_frame(&file, at, limit, identity.seed())? {
                let Found::Frame(head) = frame_at(&file, next, limit, identity.seed())? else { break };
                self.apply(&head);
                at = next + head.len();
            }
        }
        let len = encode_head(identity, number, self.next_frame, self.commit_us, &self.next)?.len() as u64;
        let (first, first_frame, commit_us) = (self.next.clone(), self.next_frame, self.commit_us);
        Ok(SegmentHead { number, first_frame, commit_us, first, schemas: own_schemas()?, len })
    }

    fn apply(&mut self, head: &FrameHead) {
        for run in &head.runs {
            if let Some(next) = self.next.get_mut(run.partition as usize) {
                *next = (*next).max(run.offsets.end);
            }
        }
        self.next_frame = self.next_frame.max(head.number + 1);
        self.commit_us = self.commit_us.max(head.commit_us);
    }

    /// Checks every frame of the last segment. Returns the length that counts; what lies after it is to be cut.
    fn read_through(&mut self, file: &File, segment: &SegmentHead, len: u64, durable: u64, seed: u32) -> io::Result<u64> {
        let mut at = segment.len;
        let mut unknown = false;
        let end = loop {
            let head = match frame_at(file, at, len, seed)? {
                Found::End => break at,
                Found::Frame(head) => Some(head),
                Found::Damage => None,
            };
            if let Some(head) = &head
                && checksum(seed, &body_at(file, at, head)?) == head.body_crc
            {
                self.apply(head);
                at += head.len();
                continue;
            }
            let after = head.as_ref().map_or(at + 8, |h| at + h.len());
            let following = next_frame(file, after, len, seed)?;
            if following.is_none() && at >= durable {
                break at;
            }
            self.lost.push((segment.number, at, "a frame's checksum is wrong"));
            match &head {
                Some(head) => self.apply(head),
                None => unknown = true,
            }
            self.rotate |= following.is_none();
            at = following.unwrap_or_else(|| head.as_ref().map_or(durable, |h| at + h.len()).min(len));
        };
        if end < durable {
            self.lost.push((segment.number, end, "the segment is shorter than it was"));
            unknown = true;
            self.rotate = true;
        }
        if unknown {
            self.next.iter_mut().for_each(|next| *next += JUMP);
        }
        Ok(end)
    }
}
