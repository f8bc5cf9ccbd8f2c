//! What a partition has taken of each stream that forwarders send: a record that is not above it is known already.
//!
//! It is part of the partition's checkpoints, so it moves with the position in the log: after a crash or a take-over what was taken
//! since is forgotten and read again.

use std::collections::BTreeMap;

use bytes::Bytes;
use fieldstream_schemas::origin::{self, Place};
use fieldstream_schemas::{PayloadBlock, Position, Reject};
use serde::{Deserialize, Serialize};

/// Code of a record whose origin cannot be read.
pub(crate) const CODE_ORIGIN: &str = "origin";
/// Most streams that are remembered, in a partition. Those that have been silent longest make room for new ones.
pub(crate) const MOST: usize = 16_384;

/// The highest place taken of a stream, and the offset in this partition at which it was last heard of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Heard(Place, u64);

/// The streams of a partition.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Origins(BTreeMap<Box<str>, Heard>);

impl Origins {
    /// True when no stream was heard.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out of `block` what is known already (gives how many), and what says something unreadable about where it comes from.
    pub(crate) fn admit(&mut self, block: &mut PayloadBlock) -> (u64, Vec<Reject>) {
        let Some(origins) = &block.origins else { return (0, Vec::new()) };
        let mut keep = Vec::with_capacity(block.entries.len());
        let (mut known, mut unreadable) = (0, Vec::new());
        for (number, (entry, origin)) in block.entries.iter().zip(origins).enumerate() {
            let fate = match origin.as_ref().map(origin::parse) {
                None => true,
                Some(Some((place, stream))) => {
                    let new = self.take(place, stream, entry.offset);
                    known += u64::from(!new);
                    new
                }
                Some(None) => {
                    unreadable.push(Reject {
                        position: Position::new(entry.offset, 0),
                        code: CODE_ORIGIN,
                        message: format!("the header {} cannot be read, so nobody knows whether the record came before", origin::HEADER),
                        payload: Bytes::copy_from_slice(block.payload(number)),
                    });
                    false
                }
            };
            keep.push(fate);
        }
        if keep.contains(&false) {
            block.keep_only(&keep);
        }
        (known, unreadable)
    }

    /// Notes a record heard of at `offset`; false when it is known.
    fn take(&mut self, place: Place, stream: &str, offset: u64) -> bool {
        if let Some(Heard(highest, last)) = self.0.get_mut(stream) {
            *last = offset;
            let new = place > *highest;
            *highest = place.max(*highest);
            return new;
        }
        if self.0.len() >= MOST {
            self.forget_the_silent();
        }
        self.0.insert(stream.into(), Heard(place, offset));
        true
    }

    /// Forgets an eighth of the streams: a function of what lies in the log, as everything here, so a replay does the same.
    fn forget_the_silent(&mut self) {
        let mut last: Vec<u64> = self.0.values().map(|Heard(_, last)| *last).collect();
        last.sort_unstable();
        let Some(limit) = last.get(last.len() / 8).copied() else { return };
        self.0.retain(|_, Heard(_, last)| *last > limit);
        tracing::warn!(
            streams = last.len() - self.0.len(),
            "more than {MOST} origins in one partition: those silent for longest are forgotten, and what they repeat will be taken twice"
        );
    }
}

#[cfg(test)]
#[path = "origins_tests.rs"]
mod tests;
