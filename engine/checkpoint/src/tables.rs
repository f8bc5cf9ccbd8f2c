//! The names behind the slots as tables: what makes a saved `slot` column mean something in another process.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StringDictionaryBuilder, UInt32Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use fieldstream_engine_api::SlotDirectory;

use crate::Table;

/// Table of device slots: `slot` (`UInt32`), `device_id` (`Utf8`).
pub const DEVICES: &str = "devices";
/// Table of series slots: `slot` (`UInt32`), `device_slot` (`UInt32`), `sensor_id` (dictionary of `Utf8`).
pub const SERIES: &str = "series";
/// Table of a delta: `device_id` (`Utf8`) of the devices that are no longer in memory. What older layers hold of them is void.
pub const GONE: &str = "gone";

fn table(name: &str, columns: Vec<(&str, ArrayRef)>) -> Table {
    let fields: Vec<Field> = columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), false)).collect();
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays);
    Table { name: name.to_owned(), rows: rows.unwrap_or_else(|_| unreachable!("the schema was made from the columns")) }
}

/// The tables [`DEVICES`] and [`SERIES`] of `devices` and their series.
#[must_use]
pub fn slot_tables(slots: &SlotDirectory, devices: &[u32], series: &[u32]) -> [Table; 2] {
    let names = StringArray::from_iter_values(devices.iter().map(|d| slots.device_name(*d)));
    let parents = series.iter().map(|s| slots.device_of(*s)).collect();
    let sensors = sensor_column(series.iter().map(|s| slots.sensor_name(*s)));
    [device_table(devices.to_vec(), names), series_table(series.to_vec(), parents, sensors)]
}

/// [`DEVICES`].
pub(crate) fn device_table(slots: Vec<u32>, names: StringArray) -> Table {
    table(DEVICES, vec![("slot", Arc::new(UInt32Array::from(slots))), ("device_id", Arc::new(names))])
}

/// [`SERIES`].
pub(crate) fn series_table(slots: Vec<u32>, parents: Vec<u32>, sensors: ArrayRef) -> Table {
    let (slots, parents) = (UInt32Array::from(slots), UInt32Array::from(parents));
    table(SERIES, vec![("slot", Arc::new(slots)), ("device_slot", Arc::new(parents)), ("sensor_id", sensors)])
}

/// Names as a dictionary in which each stands once.
pub(crate) fn sensor_column<'a>(names: impl Iterator<Item = &'a str>) -> ArrayRef {
    let mut column = StringDictionaryBuilder::<UInt32Type>::new();
    names.for_each(|name| column.append_value(name));
    Arc::new(column.finish())
}

/// [`GONE`].
#[must_use]
pub fn gone_table<'a>(names: impl Iterator<Item = &'a str>) -> Table {
    table(GONE, vec![("device_id", Arc::new(StringArray::from_iter_values(names)))])
}

/// A column of slot numbers.
pub(crate) fn number(rows: &RecordBatch, name: &str) -> Result<UInt32Array, String> {
    let column = rows.column_by_name(name).and_then(|c| c.as_primitive_opt::<UInt32Type>().cloned());
    column.ok_or_else(|| format!("column {name} of u32 is missing"))
}

/// A column of names, a dictionary or not.
pub(crate) fn text(rows: &RecordBatch, name: &str) -> Result<StringArray, String> {
    let column = rows.column_by_name(name).ok_or_else(|| format!("column {name} is missing"))?;
    let plain = cast(column, &DataType::Utf8).map_err(|e| e.to_string())?;
    plain.as_string_opt::<i32>().cloned().ok_or_else(|| format!("column {name} is no text"))
}

/// Where a saved slot lies in a directory of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renumbering {
    /// (saved slot, slot now), by saved slot.
    pub devices: Vec<(u32, u32)>,
    /// (saved slot, slot now), by saved slot.
    pub series: Vec<(u32, u32)>,
}

/// Makes the saved devices and series known to `slots` and says which slots they have now.
///
/// # Errors
/// What does not fit, in words, when the columns are not those of [`slot_tables`].
pub fn restore_slots(devices: &RecordBatch, series: &RecordBatch, slots: &mut SlotDirectory) -> Result<Renumbering, String> {
    let (saved, names) = (number(devices, "slot")?, text(devices, "device_id")?);
    let mut out = Renumbering::default();
    out.devices.extend((0..saved.len()).map(|i| (saved.value(i), slots.resolve_device(names.value(i)).0)));
    out.devices.sort_unstable();
    let (saved, parents, sensors) = (number(series, "slot")?, number(series, "device_slot")?, text(series, "sensor_id")?);
    for i in 0..saved.len() {
        let parent = out.devices.binary_search_by_key(&parents.value(i), |(old, _)| *old);
        let Some((_, device)) = parent.ok().and_then(|at| out.devices.get(at)).copied() else {
            return Err(format!("series slot {} belongs to device slot {}, which is not in the table", saved.value(i), parents.value(i)));
        };
        let sensor = slots.resolve_sensor(sensors.value(i));
        out.series.push((saved.value(i), slots.resolve_series(device, sensor)));
    }
    out.series.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_under_other_numbers() {
        let mut before = SlotDirectory::default();
        let (gone, _) = before.resolve_device("gone");
        for (device, sensor) in [("a", "t"), ("b", "t"), ("a", "p")] {
            let (d, _) = before.resolve_device(device);
            let s = before.resolve_sensor(sensor);
            before.resolve_series(d, s);
        }
        before.release_device(gone);
        let [devices, series] = slot_tables(&before, &[1, 2], &[0, 1, 2]);
        let mut after = SlotDirectory::default();
        let moved = restore_slots(&devices.rows, &series.rows, &mut after).unwrap();
        assert_eq!(moved.devices, [(1, 0), (2, 1)]);
        let names = |(_, slot): &(u32, u32)| (after.device_name(after.device_of(*slot)).to_owned(), after.sensor_name(*slot).to_owned());
        let named: Vec<_> = moved.series.iter().map(names).collect();
        let expected = [("a", "t"), ("b", "t"), ("a", "p")].map(|(d, s)| (d.to_owned(), s.to_owned()));
        assert_eq!(named, expected);
    }

    #[test]
    fn columns_that_do_not_fit_are_an_error() {
        let [devices, series] = slot_tables(&SlotDirectory::default(), &[], &[]);
        let mut slots = SlotDirectory::default();
        assert!(restore_slots(&series.rows, &devices.rows, &mut slots).unwrap_err().contains("device_id"));
    }
}
