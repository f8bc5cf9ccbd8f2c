//! Finding frames in a segment, and finding the next one after damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::frame::{self, FIXED, FrameHead, MAGIC};

/// Bytes looked through at once when searching.
const WINDOW: usize = 1 << 20;

/// What lies at a place in a segment.
#[derive(Debug)]
pub(crate) enum Found {
    /// A frame with a sound header, all of whose bytes lie below the limit. The body is not checked.
    Frame(FrameHead),
    /// No frame, or not all of one.
    Damage,
    /// The limit.
    End,
}

/// What lies at `at`, of a file whose bytes below `limit` count.
pub(crate) fn frame_at(file: &File, at: u64, limit: u64, seed: u32) -> io::Result<Found> {
    if at >= limit {
        return Ok(Found::End);
    }
    let left = limit - at;
    if left < FIXED as u64 {
        return Ok(Found::Damage);
    }
    let mut fixed = [0; FIXED];
    file.read_exact_at(&mut fixed, at)?;
    let Some(len) = frame::header_len(&fixed).filter(|len| *len as u64 <= left) else {
        return Ok(Found::Damage);
    };
    let mut header = vec![0; len];
    file.read_exact_at(&mut header, at)?;
    Ok(match frame::decode_head(&header, seed) {
        Some(head) if head.len() <= left => Found::Frame(head),
        _ => Found::Damage,
    })
}

/// The bytes of a frame's body.
pub(crate) fn body_at(file: &File, at: u64, head: &FrameHead) -> io::Result<Vec<u8>> {
    let mut body = vec![0; head.body_len()];
    file.read_exact_at(&mut body, at + head.header_len as u64)?;
    Ok(body)
}

/// The first place from `from` on where a frame with a sound header begins. Frames begin at multiples of 8.
pub(crate) fn next_frame(file: &File, from: u64, limit: u64, seed: u32) -> io::Result<Option<u64>> {
    let mut base = from.next_multiple_of(8);
    let mut window = vec![0; WINDOW];
    while base < limit {
        let len = usize::try_from(limit - base).unwrap_or(WINDOW).min(WINDOW);
        let window = &mut window[..len];
        file.read_exact_at(window, base)?;
        for (i, word) in window.chunks_exact(8).enumerate() {
            let at = base + 8 * i as u64;
            if *word == MAGIC && matches!(frame_at(file, at, limit, seed)?, Found::Frame(_)) {
                return Ok(Some(at));
            }
        }
        base += len as u64;
    }
    Ok(None)
}
