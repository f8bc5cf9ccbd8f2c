//! Names of one block as an Arrow dictionary: each distinct name once, one key per row.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{ArrayRef, DictionaryArray, StringArray, UInt32Array};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::UInt32Type;
use arrow::error::ArrowError;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::scan::has_special;

/// Finds and keeps the distinct names of one block.
///
/// Producers send the same names in the same order again and again, so the name that followed the last one before is tried
/// first: one comparison instead of a hash. Nothing of it shows in the keys, which number names by first appearance.
#[derive(Debug, Default)]
struct Interner {
    bytes: Vec<u8>,
    ends: Vec<i32>,
    /// The key that came after each key when it was last seen.
    follower: Vec<u32>,
    last: u32,
    /// A name holds a character that would be escaped in JSON: then none is told as expected.
    special: bool,
    table: HashTable<u32>,
    hasher: FixedState,
}

impl Interner {
    #[inline]
    fn name(&self, key: u32) -> Option<&[u8]> {
        name_in(&self.bytes, &self.ends, key)
    }

    /// Key of the name that followed the last one before.
    #[inline]
    fn guess(&self) -> u32 {
        self.follower.get(self.last as usize).copied().unwrap_or(0)
    }

    #[inline]
    fn key(&mut self, name: &[u8]) -> u32 {
        let guess = self.guess();
        if self.name(guess) == Some(name) {
            self.last = guess;
            return guess;
        }
        self.look_up(name)
    }

    /// The name that most likely comes next; it stands in JSON as it is.
    #[inline]
    fn expected(&self) -> Option<&[u8]> {
        self.name(self.guess()).filter(|_| !self.special)
    }

    /// The key of [`Self::expected`].
    #[inline]
    fn expected_key(&mut self) -> u32 {
        self.last = self.guess();
        self.last
    }

    fn look_up(&mut self, name: &[u8]) -> u32 {
        let hash = self.hasher.hash_one(name);
        let (bytes, ends) = (&self.bytes, &self.ends);
        let found = self.table.find(hash, |key| name_in(bytes, ends, *key) == Some(name)).copied();
        let key = found.unwrap_or_else(|| {
            let key = self.ends.len() as u32;
            self.special |= has_special(name);
            self.bytes.extend_from_slice(name);
            self.ends.push(self.bytes.len() as i32);
            self.follower.push(key);
            let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
            self.table.insert_unique(hash, key, |k| hasher.hash_one(name_in(bytes, ends, *k).unwrap_or_default()));
            key
        });
        if let Some(follower) = self.follower.get_mut(self.last as usize) {
            *follower = key;
        }
        self.last = key;
        key
    }

    /// The names in order of their keys; nothing is kept.
    fn finish(&mut self) -> Result<StringArray, ArrowError> {
        let names = self.ends.len();
        let array = string_array(std::mem::take(&mut self.bytes), std::mem::take(&mut self.ends), None);
        self.follower.clear();
        self.last = 0;
        self.special = false;
        // A block with many names must not make every later, smaller block clear a big table.
        if self.table.capacity() > 64 + 8 * names {
            self.table = HashTable::new();
        } else {
            self.table.clear();
        }
        array
    }
}

#[inline]
fn name_in<'a>(bytes: &'a [u8], ends: &[i32], key: u32) -> Option<&'a [u8]> {
    let key = key as usize;
    let end = *ends.get(key)? as usize;
    let start = if key == 0 { 0 } else { *ends.get(key - 1)? as usize };
    bytes.get(start..end)
}

/// A text column from its bytes and the end of each row.
pub(super) fn string_array(bytes: Vec<u8>, ends: Vec<i32>, nulls: Option<NullBuffer>) -> Result<StringArray, ArrowError> {
    let mut offsets = ends;
    offsets.insert(0, 0);
    StringArray::try_new(OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from_vec(bytes), nulls)
}

/// A dictionary column under construction.
#[derive(Debug)]
pub(super) struct NameColumn {
    names: Interner,
    keys: Vec<u32>,
    nulls: NullBufferBuilder,
}

impl Default for NameColumn {
    fn default() -> Self {
        Self { names: Interner::default(), keys: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }
}

impl NameColumn {
    pub(super) fn reserve(&mut self, rows: usize) {
        self.keys.reserve(rows);
    }

    /// Appends one row.
    #[inline]
    pub(super) fn push(&mut self, name: Option<&[u8]>) {
        match name {
            Some(name) => {
                let key = self.names.key(name);
                self.keys.push(key);
                self.nulls.append_non_null();
            }
            None => {
                self.keys.push(0);
                self.nulls.append_null();
            }
        }
    }

    /// The name that most likely comes next, if it stands in JSON as it is.
    #[inline]
    pub(super) fn expected(&self) -> Option<&[u8]> {
        self.names.expected()
    }

    /// Appends the name that was expected.
    #[inline]
    pub(super) fn push_expected(&mut self) {
        let key = self.names.expected_key();
        self.keys.push(key);
        self.nulls.append_non_null();
    }

    /// The column; nothing is kept.
    pub(super) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let values = self.names.finish()?;
        let nulls = self.nulls.finish();
        let keys = UInt32Array::try_new(std::mem::take(&mut self.keys).into(), nulls)?;
        Ok(Arc::new(DictionaryArray::<UInt32Type>::try_new(keys, Arc::new(values))?))
    }
}
