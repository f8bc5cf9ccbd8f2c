//! Going over the devices of the cold store in chunks, while the store goes on.

use std::sync::Arc;

use super::bloom::hash;
use super::merge::Newest;
use super::segment::{Columns, Segment};
use crate::StoreError;

/// Names of devices, in chunks, out of the segments that existed when it was made. It borrows nothing: between chunks the
/// store may be asked and written, and merges may remove files.
#[derive(Debug)]
pub struct ColdCursor(Over);

#[derive(Debug)]
enum Over {
    All(Newest),
    Pending(Pending),
}

impl ColdCursor {
    pub(super) fn all(segments: &[Arc<Segment>]) -> Result<Self, StoreError> {
        Newest::new(segments, Columns::Keys).map(|newest| Self(Over::All(newest)))
    }

    pub(super) fn pending(segments: &[Arc<Segment>], seen_at_most: i64) -> Self {
        let segments = segments.to_vec();
        Self(Over::Pending(Pending { segments, seen_at_most, segment: 0, block: 0, ready: Vec::new(), read: Vec::new() }))
    }

    /// The next names, at most `most` (at least one is given), none at the end. Every name is given once, in no order a
    /// caller can use.
    ///
    /// With [`super::ColdStore::cursor_pending`], asking for more says that the names before have been handled: until the process
    /// ends their rows are not looked at again for the same time.
    ///
    /// # Errors
    /// [`StoreError::Io`] when a segment cannot be read, [`StoreError::Damaged`] when it is not what was written.
    pub fn next_names(&mut self, most: usize) -> Result<Option<Vec<String>>, StoreError> {
        let names = match &mut self.0 {
            Over::All(newest) => {
                let mut names = Vec::new();
                while names.len() < most.max(1)
                    && let Some((_, name)) = newest.key()
                {
                    names.push(name.to_owned());
                    newest.advance()?;
                }
                names
            }
            Over::Pending(pending) => pending.next_names(most.max(1))?,
        };
        Ok((!names.is_empty()).then_some(names))
    }
}

/// Block after block, the oldest segment first.
#[derive(Debug)]
struct Pending {
    segments: Vec<Arc<Segment>>,
    seen_at_most: i64,
    segment: usize,
    block: usize,
    /// Names still to be given.
    ready: Vec<String>,
    /// Segment, block and smallest time of the blocks `ready` came from.
    read: Vec<(usize, usize, i64)>,
}

impl Pending {
    fn next_names(&mut self, most: usize) -> Result<Vec<String>, StoreError> {
        while self.ready.is_empty() {
            for (segment, block, since) in self.read.drain(..) {
                if let Some(segment) = self.segments.get(segment) {
                    segment.handled(block, since);
                }
            }
            if self.segment >= self.segments.len() {
                break;
            }
            self.ready = self.read_some(most)?;
        }
        let rest = self.ready.split_off(most.min(self.ready.len()));
        Ok(std::mem::replace(&mut self.ready, rest))
    }

    /// The due devices of blocks of one segment, until there are `most` or no more blocks, without those that have a newer row.
    fn read_some(&mut self, most: usize) -> Result<Vec<String>, StoreError> {
        let Some(segment) = self.segments.get(self.segment) else { return Ok(Vec::new()) };
        let mut names: Vec<String> = Vec::new();
        while self.block < segment.blocks() && names.len() < most {
            // Pending rows that were seen before this have been handled.
            let from = segment.pending_since(self.block);
            if from <= self.seen_at_most {
                let keys = segment.read(self.block, Columns::Keys)?.keys;
                let mut since = i64::MAX;
                for row in keys.pending.values().set_indices() {
                    match keys.last_seen.value(row) {
                        handled if handled < from => {}
                        seen if seen <= self.seen_at_most => names.push(keys.names.value(row).to_owned()),
                        later => since = since.min(later),
                    }
                }
                self.read.push((self.segment, self.block, since));
            }
            self.block += 1;
        }
        let done = self.block >= segment.blocks();
        let sought: Vec<(u64, &str)> = names.iter().map(|name| (hash(name), name.as_str())).collect();
        let mut newest = vec![true; sought.len()];
        for newer in self.segments.iter().skip(self.segment + 1) {
            newer.locate(&sought, Columns::Keys, |number, _, _, _| {
                if let Some(newest) = newest.get_mut(number) {
                    *newest = false;
                }
            })?;
        }
        let mut newest = newest.into_iter();
        names.retain(|_| newest.next() == Some(true));
        if done {
            self.segment += 1;
            self.block = 0;
        }
        Ok(names)
    }
}
