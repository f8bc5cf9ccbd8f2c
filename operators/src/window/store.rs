//! Open windows by slot: the newest window of a slot lies in a dense row of cells, further ones in a pool, linked.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Float64Array, Int64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, UInt32Type, UInt64Type};
use fieldstream_engine_api::{KeyedState, Space, StateError, prefetch};
use sketches_ddsketch::DDSketch;

use super::cells::{END, FLAGS, Layout, START, Window, join};

/// Flag: there is a window.
pub(super) const OPEN: u64 = 1;
/// Flag: it has been emitted and is kept for late rows.
pub(super) const EMITTED: u64 = 2;
/// About what a sketch with its first bins takes.
const SKETCH_BYTES: usize = 2400;

/// Where a window lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the slot itself.
    Slot(u32),
    /// In the pool.
    Pool(u32),
}

/// Rows of cells with their sketches.
#[derive(Default)]
struct Block {
    cells: Vec<u64>,
    sketches: Vec<Option<Box<DDSketch>>>,
}

/// All windows of a partition, open or kept for late rows.
pub(super) struct Windows {
    meaning: HashMap<String, String>,
    layout: Arc<Layout>,
    space: Space,
    slots: Block,
    pool: Block,
    free: Vec<u32>,
}

impl Block {
    fn len(&self, layout: &Layout) -> usize {
        self.cells.len() / layout.stride
    }

    fn resize(&mut self, layout: &Layout, rows: usize) {
        self.cells.resize(rows * layout.stride, 0);
        self.sketches.resize(rows * layout.sketches, None);
    }

    fn cells(&self, layout: &Layout, row: u32) -> &[u64] {
        &self.cells[row as usize * layout.stride..(row as usize + 1) * layout.stride]
    }

    fn window(&mut self, layout: &Layout, row: u32) -> Window<'_> {
        let (row, cells, sketches) = (row as usize, layout.stride, layout.sketches);
        Window {
            cells: &mut self.cells[row * cells..(row + 1) * cells],
            sketches: &mut self.sketches[row * sketches..(row + 1) * sketches],
        }
    }
}

fn link(flags: u64) -> Option<Place> {
    ((flags >> 32) as u32).checked_sub(1).map(Place::Pool)
}

fn with_link(flags: u64, next: Option<Place>) -> u64 {
    let number = if let Some(Place::Pool(row)) = next { u64::from(row) + 1 } else { 0 };
    flags & 0xffff_ffff | number << 32
}

impl Windows {
    /// `meaning` is what the columns of a snapshot do not tell: how time is cut, and what is aggregated.
    pub(super) fn new(layout: Arc<Layout>, space: Space, meaning: HashMap<String, String>) -> Self {
        Self { meaning, layout, space, slots: Block::default(), pool: Block::default(), free: Vec::new() }
    }

    /// Number of slots there is room for.
    pub(super) fn len(&self) -> usize {
        self.slots.len(&self.layout)
    }

    /// Cells of the slots' own windows, one after the other.
    pub(super) fn slot_cells(&mut self) -> &mut [u64] {
        &mut self.slots.cells
    }

    pub(super) fn cells(&self, place: Place) -> &[u64] {
        match place {
            Place::Slot(row) => self.slots.cells(&self.layout, row),
            Place::Pool(row) => self.pool.cells(&self.layout, row),
        }
    }

    pub(super) fn window(&mut self, place: Place) -> Window<'_> {
        match place {
            Place::Slot(row) => self.slots.window(&self.layout, row),
            Place::Pool(row) => self.pool.window(&self.layout, row),
        }
    }

    /// The slot's own window if it starts at `start` and is open: the way of nearly every row.
    #[inline]
    pub(super) fn current(&mut self, slot: u32, start: i64) -> Option<Window<'_>> {
        let window = self.slots.window(&self.layout, slot);
        (window.cells[START] == start as u64 && window.cells[FLAGS] & (OPEN | EMITTED) == OPEN).then_some(window)
    }

    /// Asks for the cells of a slot that a later row needs.
    #[inline]
    pub(super) fn prefetch(&self, slot: u32) {
        let first = slot as usize * self.layout.stride;
        prefetch(&self.slots.cells, first);
        prefetch(&self.slots.cells, first + self.layout.stride - 1);
    }

    /// The window linked behind the slot's own: `Some(None)` when there is none, `None` when there are several.
    #[inline]
    pub(super) fn one_before(&self, slot: u32) -> Option<Option<Place>> {
        let before = link(self.slots.cells.get(slot as usize * self.layout.stride + FLAGS).copied()?);
        let several = before.is_some_and(|place| link(self.cells(place)[FLAGS]).is_some());
        (!several).then_some(before)
    }

    /// True when there is a window at `place`.
    pub(super) fn is_open(&self, place: Place) -> bool {
        self.cells(place)[FLAGS] & OPEN != 0
    }

    /// All windows of a slot.
    pub(super) fn places(&self, slot: u32) -> impl Iterator<Item = Place> + '_ {
        std::iter::successors(Some(Place::Slot(slot)), |place| link(self.cells(*place)[FLAGS]))
            .filter(|place| self.cells(*place)[FLAGS] & OPEN != 0)
    }

    pub(super) fn start(&self, place: Place) -> i64 {
        self.cells(place)[START] as i64
    }

    pub(super) fn end(&self, place: Place) -> i64 {
        self.cells(place)[END] as i64
    }

    pub(super) fn set_end(&mut self, place: Place, end: i64) {
        self.window(place).cells[END] = end as u64;
    }

    pub(super) fn set_start(&mut self, place: Place, start: i64) {
        self.window(place).cells[START] = start as u64;
    }

    /// True when the window has been emitted.
    pub(super) fn emitted(&self, place: Place) -> bool {
        self.cells(place)[FLAGS] & EMITTED != 0
    }

    pub(super) fn mark_emitted(&mut self, place: Place) {
        self.window(place).cells[FLAGS] |= EMITTED;
    }

    /// The window of `slot` that starts at `start`.
    pub(super) fn find(&self, slot: u32, start: i64) -> Option<Place> {
        self.places(slot).find(|place| self.start(*place) == start)
    }

    /// Opens a window; the newest one gets the place in the slot.
    pub(super) fn open(&mut self, slot: u32, start: i64, end: i64) -> Place {
        let own = Place::Slot(slot);
        let taken = self.cells(own)[FLAGS] & OPEN != 0;
        let place = if taken && start < self.start(own) { Place::Pool(self.add_to_pool(slot)) } else { own };
        if taken && place == own {
            let moved = self.add_to_pool(slot);
            self.move_out(slot, moved);
        }
        let window = match place {
            Place::Slot(row) => self.slots.window(&self.layout, row),
            Place::Pool(row) => self.pool.window(&self.layout, row),
        };
        self.layout.open(window.cells, window.sketches, start, end);
        place
    }

    /// A pool row linked behind the slot's own window.
    fn add_to_pool(&mut self, slot: u32) -> u32 {
        let row = self.free.pop().unwrap_or_else(|| {
            let row = self.pool.len(&self.layout);
            self.pool.resize(&self.layout, row + 1);
            row as u32
        });
        let place = Place::Pool(row);
        let own = self.cells(Place::Slot(slot))[FLAGS];
        self.window(place).cells[FLAGS] = with_link(0, link(own));
        self.window(Place::Slot(slot)).cells[FLAGS] = with_link(own, Some(place));
        row
    }

    /// Moves the window of a slot to a row of the pool, which keeps its link.
    fn move_out(&mut self, slot: u32, row: u32) {
        let (from, to) = (self.slots.window(&self.layout, slot), self.pool.window(&self.layout, row));
        let next = link(to.cells[FLAGS]);
        to.cells.copy_from_slice(from.cells);
        to.cells[FLAGS] = with_link(from.cells[FLAGS], next);
        to.sketches.swap_with_slice(from.sketches);
    }

    /// Joins the accumulators of `from` into `into`; `from` stays.
    pub(super) fn join(&mut self, into: Place, from: Place) {
        let layout = Arc::clone(&self.layout);
        let Window { cells, sketches } = self.window(from);
        let (mut cells, mut sketches) = (cells.to_vec(), sketches.to_vec());
        join(&layout, &mut self.window(into), &Window { cells: &mut cells, sketches: &mut sketches });
    }

    /// Drops one window of `slot`.
    pub(super) fn remove(&mut self, slot: u32, place: Place) {
        let mut before = Place::Slot(slot);
        while let Some(next) = link(self.cells(before)[FLAGS]) {
            if next == place {
                let (flags, after) = (self.cells(before)[FLAGS], link(self.cells(place)[FLAGS]));
                self.window(before).cells[FLAGS] = with_link(flags, after);
                break;
            }
            before = next;
        }
        self.blank(place);
        if let Place::Pool(row) = place {
            self.free.push(row);
        }
    }

    /// Drops the windows of `slot` for which `done` says so.
    pub(super) fn drop_where(&mut self, slot: u32, done: impl Fn(&Self, Place) -> bool) {
        let mut before = Place::Slot(slot);
        if self.cells(before)[FLAGS] & OPEN != 0 && done(self, before) {
            self.blank(before);
        }
        while let Some(place) = link(self.cells(before)[FLAGS]) {
            if !done(self, place) {
                before = place;
                continue;
            }
            let next = link(self.cells(place)[FLAGS]);
            let flags = self.cells(before)[FLAGS];
            self.window(before).cells[FLAGS] = with_link(flags, next);
            self.blank(place);
            if let Place::Pool(row) = place {
                self.free.push(row);
            }
        }
    }

    /// Empties a place; a slot keeps its link.
    fn blank(&mut self, place: Place) {
        let window = self.window(place);
        let next = link(window.cells[FLAGS]);
        window.cells.fill(0);
        window.cells[FLAGS] = with_link(0, next);
        window.sketches.fill(None);
    }

    fn schema(&self) -> Schema {
        let mut fields = vec![Field::new("slot", DataType::UInt32, false)];
        fields.extend(self.layout.columns.iter().map(|(name, data_type)| Field::new(name, data_type.clone(), false)));
        fields.extend((0..self.layout.sketches).map(|n| Field::new(format!("sketch_{n}"), DataType::Binary, true)));
        Schema::new(fields).with_metadata(self.meaning.clone())
    }

    fn restore_row(&mut self, slot: u32, cells: &[u64], sketches: Vec<Option<Box<DDSketch>>>) {
        let place = self.open(slot, cells[START] as i64, cells[END] as i64);
        let window = self.window(place);
        let flags = with_link(OPEN | (cells[FLAGS] & 1) << 1, link(window.cells[FLAGS]));
        window.cells.copy_from_slice(cells);
        window.cells[FLAGS] = flags;
        for (target, sketch) in window.sketches.iter_mut().zip(sketches) {
            *target = sketch;
        }
    }
}

impl KeyedState for Windows {
    fn space(&self) -> Space {
        self.space
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        if slots > self.len() {
            self.slots.resize(&self.layout, slots);
        }
    }

    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let known = slots.iter().copied().filter(|slot| (*slot as usize) < self.len());
        let rows: Vec<(u32, Place)> = known.flat_map(|slot| self.places(slot).map(move |place| (slot, place))).collect();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(rows.iter().map(|(slot, _)| Some(*slot)).collect::<UInt32Array>())];
        for (at, (_, data_type)) in self.layout.columns.iter().enumerate() {
            let cell = |(_, place): &(u32, Place)| if at == FLAGS { self.cells(*place)[at] >> 1 & 1 } else { self.cells(*place)[at] };
            let cells = rows.iter().map(cell);
            columns.push(match data_type {
                DataType::Float64 => Arc::new(Float64Array::from_iter_values(cells.map(f64::from_bits))),
                DataType::Int64 => Arc::new(Int64Array::from_iter_values(cells.map(|c| c as i64))),
                _ => Arc::new(UInt64Array::from_iter_values(cells)),
            });
        }
        for number in 0..self.layout.sketches {
            let sketch = |place: Place| match place {
                Place::Slot(row) => &self.slots.sketches[row as usize * self.layout.sketches + number],
                Place::Pool(row) => &self.pool.sketches[row as usize * self.layout.sketches + number],
            };
            // The encoding of DataDog's sketches-java, which other languages read too.
            let bytes = rows.iter().map(|(_, place)| sketch(*place).as_ref().map(|s| s.to_java_bytes()));
            columns.push(Arc::new(bytes.collect::<BinaryArray>()));
        }
        let batch = RecordBatch::try_new(Arc::new(self.schema()), columns);
        batch.unwrap_or_else(|_| unreachable!("columns are made by the schema"))
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let expected = self.schema();
        if rows.schema_ref().fields() != expected.fields() {
            return Err(StateError::Columns(format!("windows have {:?}, found {:?}", expected.fields(), rows.schema_ref().fields())));
        }
        let slots = rows.column(0).as_primitive::<UInt32Type>();
        for row in 0..rows.num_rows() {
            let slot = slots.value(row);
            if slot as usize >= self.len() {
                return Err(StateError::Columns(format!("slot {slot} of {}", self.len())));
            }
            let cells: Vec<u64> = rows.columns()[1..=self.layout.stride].iter().map(|column| cell(column, row)).collect();
            let sketches: Result<Vec<_>, StateError> =
                rows.columns()[1 + self.layout.stride..].iter().map(|column| sketch(column.as_binary::<i32>(), row)).collect();
            self.restore_row(slot, &cells, sketches?);
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        for slot in slots.iter().filter(|slot| (**slot as usize) < self.len()).copied().collect::<Vec<_>>() {
            self.drop_where(slot, |_, _| true);
        }
    }

    fn bytes(&self) -> usize {
        let block = |b: &Block| b.cells.capacity() * 8 + b.sketches.capacity() * 8;
        let sketches = self.slots.sketches.iter().chain(&self.pool.sketches).flatten().count();
        block(&self.slots) + block(&self.pool) + self.free.capacity() * 4 + sketches * SKETCH_BYTES
    }
}

fn cell(column: &ArrayRef, row: usize) -> u64 {
    match column.data_type() {
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).to_bits(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row) as u64,
        _ => column.as_primitive::<UInt64Type>().value(row),
    }
}

fn sketch(column: &BinaryArray, row: usize) -> Result<Option<Box<DDSketch>>, StateError> {
    if column.is_null(row) {
        return Ok(None);
    }
    let sketch = DDSketch::from_java_bytes(column.value(row)).map_err(|e| StateError::Columns(format!("sketch: {e}")))?;
    Ok(Some(Box::new(sketch)))
}
