//! Dense state of fixed size per slot: one cache line or less each, blank until written, snapshots as Arrow columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, RecordBatch, UInt32Array};
use arrow::datatypes::UInt32Type;
use fieldstream_engine_api::{KeyedState, Space, StateError, prefetch};

/// What one slot holds.
pub(crate) trait Entry: Copy + Send {
    /// A slot never written.
    const BLANK: Self;
    /// Number of the column layout.
    const LAYOUT: u32;

    /// True when it need not be saved.
    fn is_blank(&self) -> bool;

    /// The entries as named columns.
    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)>;

    /// The entries of rows written by [`Self::columns`].
    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError>;
}

/// Entries by slot.
#[derive(Debug)]
pub(crate) struct Dense<E> {
    space: Space,
    entries: Vec<E>,
}

impl<E: Entry> Dense<E> {
    pub(crate) fn new(space: Space) -> Self {
        Self { space, entries: Vec::new() }
    }

    /// The entry of `slot`. The runtime has made room for every slot of a batch before the operator sees it.
    #[inline]
    pub(crate) fn at(&mut self, slot: u32) -> &mut E {
        let index = slot as usize;
        if index < self.entries.len() {
            return &mut self.entries[index];
        }
        self.make_room(index)
    }

    /// The entry of `slot`, to look at.
    pub(crate) fn get(&self, slot: u32) -> E {
        self.entries.get(slot as usize).copied().unwrap_or(E::BLANK)
    }

    /// True when `test` holds for the entries of all `slots` that there are.
    #[inline]
    pub(crate) fn all(&self, slots: &[u32], test: impl Fn(&E) -> bool) -> bool {
        slots.iter().fold(true, |all, slot| all & self.entries.get(*slot as usize).is_none_or(&test))
    }

    #[cold]
    #[inline(never)]
    fn make_room(&mut self, index: usize) -> &mut E {
        self.entries.resize(index + 1, E::BLANK);
        &mut self.entries[index]
    }

    /// Asks for the entry of `slot`, which a later row needs.
    #[inline]
    pub(crate) fn prefetch(&self, slot: u32) {
        prefetch(&self.entries, slot as usize);
    }
}

impl<E: Entry> KeyedState for Dense<E> {
    fn space(&self) -> Space {
        self.space
    }

    fn layout(&self) -> u32 {
        E::LAYOUT
    }

    fn grow_to(&mut self, slots: usize) {
        if slots > self.entries.len() {
            self.entries.resize(slots, E::BLANK);
        }
    }

    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let written = |slot: &u32| self.entries.get(*slot as usize).filter(|e| !e.is_blank()).map(|e| (*slot, *e));
        let (slots, entries): (Vec<u32>, Vec<E>) = slots.iter().filter_map(written).unzip();
        slot_batch(slots, E::columns(&entries))
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let slots = numbers::<UInt32Type>(rows, "slot")?;
        for (slot, entry) in slots.iter().zip(E::read(rows)?) {
            *self.at(*slot) = entry;
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        for slot in slots {
            if let Some(entry) = self.entries.get_mut(*slot as usize) {
                *entry = E::BLANK;
            }
        }
    }

    fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<E>()
    }
}

/// A snapshot: the `slot` column, then the layout's columns, all of one length.
pub(crate) fn slot_batch(slots: Vec<u32>, columns: Vec<(&'static str, ArrayRef)>) -> RecordBatch {
    let slot: ArrayRef = Arc::new(UInt32Array::from(slots));
    let all = std::iter::once(("slot", slot)).chain(columns);
    RecordBatch::try_from_iter(all).unwrap_or_else(|_| unreachable!("columns of a snapshot have one length"))
}

/// The values of a column without nulls.
pub(crate) fn numbers<'a, T: ArrowPrimitiveType>(rows: &'a RecordBatch, name: &str) -> Result<&'a [T::Native], StateError> {
    let column: Option<&PrimitiveArray<T>> = rows.column_by_name(name).and_then(|c| c.as_primitive_opt());
    match column {
        Some(column) if column.null_count() == 0 => Ok(column.values()),
        _ => Err(StateError::Columns(format!("`{name}` is missing or of another type"))),
    }
}
