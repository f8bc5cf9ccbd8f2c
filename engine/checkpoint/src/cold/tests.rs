//! Tests of the cold store: against a map of the newest rows, and against damaged files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Builder, Int64Array, Int64Builder, ListBuilder, RecordBatch, StringArray, StringBuilder,
    StructBuilder,
};
use arrow::compute::{concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::ipc::reader::FileReader;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// One device: its name, when it was seen, whether it is pending.
type Device = (String, i64, bool);

fn device(name: impl std::fmt::Display, seen: i64) -> Device {
    (name.to_string(), seen, false)
}

/// Rows whose state can be computed from name and time, with nested columns, empty lists and nulls.
fn rows(devices: &[Device]) -> RecordBatch {
    let state = vec![Field::new("mean", DataType::Float64, true), Field::new("count", DataType::Int64, true)];
    let mut sensors = ListBuilder::new(StringBuilder::new());
    let mut states = ListBuilder::new(StructBuilder::from_fields(state, 0));
    for (name, seen, _) in devices {
        let number = seen.rem_euclid(4);
        (0..number).for_each(|i| sensors.values().append_value(format!("{name}/{seen}/{i}")));
        sensors.append(true);
        for i in 0..number {
            let row = states.values();
            row.field_builder::<Float64Builder>(0).unwrap().append_option((i != 1).then_some(*seen as f64 / 3.0));
            row.field_builder::<Int64Builder>(1).unwrap().append_value(seen ^ i);
            row.append(i != 2);
        }
        states.append(number != 3);
    }
    let names: StringArray = devices.iter().map(|(name, ..)| Some(name.as_str())).collect();
    let seen: Int64Array = devices.iter().map(|(_, seen, _)| Some(*seen)).collect();
    let pending: BooleanArray = devices.iter().map(|(.., pending)| Some(*pending)).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("device_id", Arc::new(names)),
        ("last_seen", Arc::new(seen)),
        ("pending", Arc::new(pending)),
        ("sensors", Arc::new(sensors.finish())),
        ("state", Arc::new(states.finish())),
    ];
    let field = |(name, column): &(&str, ArrayRef)| {
        let layout = [("layout".to_owned(), "1".to_owned())].into_iter().collect();
        Field::new(*name, column.data_type().clone(), true).with_metadata(layout)
    };
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, column)| column).collect()).unwrap()
}

fn by_name(batches: &[RecordBatch]) -> RecordBatch {
    let all = concat_batches(&batches[0].schema(), batches).unwrap();
    let column = arrow::compute::SortColumn { values: all.column(0).clone(), options: None };
    take_record_batch(&all, &lexsort_to_indices(&[column], None).unwrap()).unwrap()
}

/// Asserts that `find` gives exactly the rows of those `devices` that are in `model`.
fn check_find(store: &ColdStore, names: &[&str], model: &BTreeMap<String, Device>) {
    let found = store.find(names).unwrap();
    let sought: BTreeSet<&str> = names.iter().copied().collect();
    let expected: Vec<Device> = sought.into_iter().filter_map(|name| model.get(name).cloned()).collect();
    match found.as_slice() {
        [] => assert_eq!(expected, []),
        found => assert_eq!(by_name(found), rows(&expected)),
    }
}

fn all_names(mut cursor: ColdCursor, most: usize) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(chunk) = cursor.next_names(most).unwrap() {
        assert!(!chunk.is_empty() && chunk.len() <= most);
        names.extend(chunk);
    }
    names.sort();
    names
}

fn store() -> (TempDir, ColdStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = ColdStore::create(&folder.path().join("cold"), "p").unwrap();
    (folder, store)
}

fn put(store: &mut ColdStore, model: &mut BTreeMap<String, Device>, devices: &[Device]) {
    store.put(&rows(devices)).unwrap();
    model.extend(devices.iter().map(|d| (d.0.clone(), d.clone())));
}

fn files(store: &ColdStore) -> BTreeSet<String> {
    std::fs::read_dir(&store.folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn nested_rows_come_back_and_the_newest_wins_before_and_after_merging() {
    let (_folder, mut store) = store();
    let mut model = BTreeMap::new();
    for round in 0..5_i64 {
        let devices: Vec<Device> = (0..300).map(|i| device(i * (round + 1), round * 1000 + i)).collect();
        put(&mut store, &mut model, &devices);
        let names: Vec<String> = (0..1500).map(|i| i.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        check_find(&store, &names, &model);
        check_find(&store, &["299", "299", "nobody"], &model);
    }
    store.wait_idle();
    let everybody: Vec<&str> = model.keys().map(String::as_str).collect();
    check_find(&store, &everybody, &model);
    let segments = store.segments().unwrap();
    assert!(segments.len() < 4, "{segments:?}");
    // The inputs of the merge are gone, and nothing temporary is left.
    assert_eq!(files(&store), segments.iter().map(|s| s.name.clone()).collect());
    assert_eq!(store.bytes(), segments.iter().map(|s| s.bytes).sum::<u64>());
}

#[test]
fn segments_are_arrow_files_with_the_checksum_of_the_whole_and_can_be_attached_elsewhere() {
    let (folder, mut store) = store();
    let mut model = BTreeMap::new();
    (0..7_i64).for_each(|round| put(&mut store, &mut model, &(0..200).map(|i| device(i + round * 90, round + i)).collect::<Vec<_>>()));
    store.wait_idle();
    put(&mut store, &mut model, &[device("late", 5), device("91", 6)]);
    let other = folder.path().join("other");
    let mut copy = ColdStore::create(&other, "p").unwrap();
    for segment in store.segments().unwrap() {
        let bytes = std::fs::read(&segment.path).unwrap();
        assert_eq!((bytes.len() as u64, crc32fast::hash(&bytes)), (segment.bytes, segment.crc32));
        let plain = FileReader::try_new(std::fs::File::open(&segment.path).unwrap(), None).unwrap();
        assert_eq!(plain.map(|b| b.unwrap().num_rows() as u64).sum::<u64>(), segment.rows);
        std::fs::hard_link(&segment.path, other.join(&segment.name)).unwrap();
        copy.attach(&segment.name).unwrap();
        assert!(matches!(copy.attach(&segment.name), Err(StoreError::Exists(_))));
    }
    assert_eq!(
        copy.segments().unwrap().iter().map(|s| s.crc32).collect::<Vec<_>>(),
        store.segments().unwrap().iter().map(|s| s.crc32).collect::<Vec<_>>()
    );
    let everybody: Vec<&str> = model.keys().map(String::as_str).collect();
    check_find(&copy, &everybody, &model);
    // New segments of the copy take no name that is in use.
    let mut theirs = model.clone();
    put(&mut copy, &mut theirs, &[device("late", 9)]);
    check_find(&copy, &["late", "91"], &theirs);
    check_find(&store, &["late", "91"], &model);
}

#[test]
fn create_removes_segments_and_nothing_else() {
    let (_folder, mut store) = store();
    store.put(&rows(&[device("a", 1)])).unwrap();
    std::fs::write(store.folder.join("p-1.arrow.tmp"), "half").unwrap();
    std::fs::write(store.folder.join("notes.txt"), "mine").unwrap();
    let again = ColdStore::create(&store.folder, "p").unwrap();
    assert_eq!(files(&again), ["notes.txt".to_owned()].into());
    assert_eq!(again.find(&["a"]).unwrap(), []);
}

#[test]
fn rows_that_do_not_fit_are_refused_and_leave_nothing() {
    let (_folder, mut store) = store();
    let good = rows(&[device("a", 1), device("b", 2)]);
    let twice = rows(&[device("a", 1), device("a", 2)]);
    let without = good.project(&[0, 2]).unwrap();
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let fields = [
        good.schema().field(0).clone(),
        good.schema().field(1).clone(),
        good.schema().field(2).clone(),
        Field::new("d", dictionary.clone(), true),
    ];
    let mut columns = good.columns()[..3].to_vec();
    columns.push(arrow::compute::cast(good.column(0), &dictionary).unwrap());
    let coded = RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), columns).unwrap();
    for bad in [&twice, &without, &coded] {
        let error = store.put(bad).unwrap_err();
        assert!(matches!(error, StoreError::Encode { .. }), "{error}");
    }
    store.put(&good.slice(0, 0)).unwrap();
    assert_eq!(files(&store), BTreeSet::new());
    store.put(&good).unwrap();
    assert_eq!(store.rows(), 2);
}

#[test]
fn a_disk_that_refuses_changes_nothing() {
    let (_folder, mut store) = store();
    let mut model = BTreeMap::new();
    put(&mut store, &mut model, &[device("a", 1)]);
    let below_a_file = store.segments().unwrap().remove(0).path;
    let good = std::mem::replace(&mut store.folder, below_a_file);
    let error = store.put(&rows(&[device("a", 2), device("b", 2)])).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    check_find(&store, &["a", "b"], &model);
    store.folder = good;
    put(&mut store, &mut model, &[device("b", 3)]);
    check_find(&store, &["a", "b"], &model);
    assert_eq!(files(&store).len(), 2);
}

#[test]
fn a_merge_that_fails_loses_nothing_and_is_tried_again_later() {
    let (_folder, mut store) = store();
    let mut model = BTreeMap::new();
    (0..3).for_each(|i| put(&mut store, &mut model, &[device("a", i), device(i, i)]));
    // The name of the merged segment is taken by a folder.
    let blocked = store.folder.join(format!("p-merging{ENDING}{TEMPORARY}"));
    std::fs::create_dir(&blocked).unwrap();
    put(&mut store, &mut model, &[device("a", 3), device(3, 3)]);
    store.wait_idle();
    assert_eq!((store.segments.len(), store.rest), (4, REST));
    std::fs::remove_dir(&blocked).unwrap();
    for i in 0..i64::from(REST) + 1 {
        put(&mut store, &mut model, &[device("b", i), device(10 + i, i)]);
        check_find(&store, &["a", "b", "0", "3", "15"], &model);
    }
    store.wait_idle();
    assert!(store.segments.len() < 4, "{}", store.segments.len());
    check_find(&store, &["a", "b", "0", "3", "15"], &model);
}

#[test]
fn a_store_that_is_dropped_while_it_merges_leaves_no_temporary_file() {
    let (_folder, mut store) = store();
    (0..4_i64).for_each(|round| store.put(&rows(&(0..2000).map(|i| device(i, round)).collect::<Vec<_>>())).unwrap());
    assert!(store.merging.is_some());
    let folder = store.folder.clone();
    drop(store);
    assert!(std::fs::read_dir(folder).unwrap().all(|e| !e.unwrap().file_name().to_str().unwrap().ends_with(TEMPORARY)));
}

#[test]
fn segments_of_different_schemas_live_side_by_side() {
    let (_folder, mut store) = store();
    let narrow = |devices: &[Device]| rows(devices).project(&[0, 1, 2]).unwrap();
    for i in 0..5 {
        store.put(&rows(&[device("a", i), device("b", i)])).unwrap();
    }
    store.wait_idle();
    store.put(&narrow(&[device("a", 9)])).unwrap();
    store.wait_idle();
    let mut found = store.find(&["a", "b", "c"]).unwrap();
    found.sort_by_key(RecordBatch::num_columns);
    assert_eq!(found, [narrow(&[device("a", 9)]), rows(&[device("b", 4)])]);
    (0..4).for_each(|i| store.put(&narrow(&[device("c", i)])).unwrap());
    store.wait_idle();
    assert_eq!(all_names(store.cursor().unwrap(), 2), ["a", "b", "c"]);
    assert_eq!(store.find(&["b"]).unwrap(), [rows(&[device("b", 4)])]);
}

/// What `find` and a cursor give of a file that may be damaged; none when they say so.
fn read_damaged(file: &Path, expected: &RecordBatch) -> Option<RecordBatch> {
    let folder = file.parent().unwrap().to_owned();
    let mut store = ColdStore { folder, prefix: "p".to_owned(), next: 0, segments: Vec::new(), merging: None, rest: 0 };
    let names: Vec<&str> = expected.column(0).as_string::<i32>().iter().flatten().collect();
    let name = file.file_name().unwrap().to_str().unwrap();
    let found = store.attach(name).and_then(|()| store.find(&names));
    let walked = found.and_then(|found| {
        let mut cursor = store.cursor()?;
        while cursor.next_names(100)?.is_some() {}
        Ok(found)
    });
    match walked {
        Ok(found) => Some(by_name(&found)),
        Err(StoreError::Damaged { key, .. }) => {
            assert_eq!(Path::new(&key), file);
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_flipped_byte_is_found_or_harmless_and_a_torn_file_is_found() {
    let (_folder, mut store) = store();
    for (devices, step) in [(5, 1), (70, 13)] {
        let expected = rows(&(0..devices).map(|i| device(format!("{i:02}"), i)).collect::<Vec<_>>());
        store.put(&expected).unwrap();
        let path = store.segments().unwrap().pop().unwrap().path;
        let good = std::fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        assert_eq!(read_damaged(&path, &expected).as_ref(), Some(&expected));
        let mut harmless = 0;
        for at in (0..good.len()).step_by(step) {
            file.write_all_at(&[good[at] ^ (1 << (at % 8))], at as u64).unwrap();
            if let Some(found) = read_damaged(&path, &expected) {
                assert_eq!(found, expected, "byte {at}");
                harmless += 1;
            }
            file.write_all_at(&good[at..=at], at as u64).unwrap();
        }
        // Harmless are the parts of the footer that are for other readers.
        assert!(harmless * step < good.len() / 2, "{harmless} of {}", good.len());
        for length in (0..good.len() as u64).rev().step_by(step) {
            file.set_len(length).unwrap();
            assert_eq!(read_damaged(&path, &expected), None, "length {length}");
        }
    }
}

#[test]
fn pending_devices_are_given_once_and_only_if_their_newest_row_is_due() {
    let (_folder, mut store) = store();
    let pending = |name: &str, seen: i64| (name.to_owned(), seen, true);
    store.put(&rows(&[pending("old", 10), pending("superseded", 10), pending("later", 30), device("calm", 1)])).unwrap();
    store.put(&rows(&[device("superseded", 20), pending("never", i64::MIN), pending("second", 20)])).unwrap();
    assert_eq!(all_names(store.cursor_pending(i64::MIN), 9), ["never"]);
    assert_eq!(all_names(store.cursor_pending(20), 1), ["old", "second"]);
    // Nothing of this is read again, and what comes later is found.
    assert!(store.segments.iter().all(|s| s.pending_since(0) > 20));
    assert_eq!(all_names(store.cursor_pending(29), 9), Vec::<String>::new());
    assert_eq!(all_names(store.cursor_pending(30), 9), ["later"]);
    // A cursor that is given up has handled only the chunks before its last.
    let many: Vec<Device> = (0..1000).map(|i| pending(&format!("m{i:03}"), 40)).collect();
    store.put(&rows(&many)).unwrap();
    let mut cursor = store.cursor_pending(50);
    let first = cursor.next_names(300).unwrap().unwrap();
    let _second = cursor.next_names(300).unwrap().unwrap();
    let rest = all_names(store.cursor_pending(50), 128);
    assert!(rest.len() >= 700, "{}", rest.len());
    let all: BTreeSet<&String> = first.iter().chain(&rest).collect();
    assert_eq!(all.len(), 1000);
    assert_eq!(all_names(store.cursor_pending(50), 128), Vec::<String>::new());
}

#[test]
fn a_cursor_gives_every_device_once_while_rows_are_put_and_merged() {
    let (_folder, mut store) = store();
    let mut model = BTreeMap::new();
    for round in 0..3_i64 {
        put(&mut store, &mut model, &(0..400).map(|i| device(i * (round + 1), round)).collect::<Vec<_>>());
    }
    let expected: Vec<String> = model.keys().cloned().collect();
    let mut cursor = store.cursor().unwrap();
    let mut given = Vec::new();
    let mut number = 100;
    while let Some(names) = cursor.next_names(50).unwrap() {
        check_find(&store, &names.iter().map(String::as_str).collect::<Vec<_>>(), &model);
        number += 1;
        let mut again: Vec<Device> = names.iter().map(|name| device(name, number)).collect();
        again.push(device(format!("new-{number}"), number));
        put(&mut store, &mut model, &again);
        store.wait_idle();
        given.extend(names);
    }
    given.sort();
    assert_eq!(given, expected);
    assert_eq!(all_names(store.cursor().unwrap(), 77), model.keys().cloned().collect::<Vec<_>>());
}

#[test]
fn memory_and_the_number_of_files_stay_small() {
    let (_folder, mut store) = store();
    for part in 0..16_i64 {
        let devices: Vec<Device> = (0..12_500).map(|i| device(part * 12_500 + i, i)).collect();
        store.put(&rows(&devices).project(&[0, 1, 2]).unwrap()).unwrap();
        store.wait_idle();
        assert!(store.segments.len() <= 6, "{}", store.segments.len());
        assert!(store.memory_bytes() < 2 * usize::try_from(store.rows()).unwrap() + 4096, "{}", store.memory_bytes());
    }
    assert_eq!((store.segments.len(), store.rows()), (1, 200_000));
    assert!(store.memory_bytes() < 2 * 200_000, "{}", store.memory_bytes());
    let found = store.find(&["0", "199999", "200000"]).unwrap();
    let seen = by_name(&found).column(1).as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(seen, [0, 12_499]);
}

#[test]
fn devices_with_one_hash_are_told_apart_across_blocks_and_segments() {
    // A known collision of FNV-1a.
    let (one, other) = ("8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ");
    assert_eq!(hash(one), hash(other));
    let (_folder, mut store) = store();
    let before = (0..).map(|i: i64| device(i, i)).filter(|d| hash(&d.0) < hash(one)).take(63);
    let after = (0..).map(|i: i64| device(i, i)).filter(|d| hash(&d.0) > hash(one)).take(63);
    let devices: Vec<Device> = before.chain([device(one, 1), device(other, 2)]).chain(after).collect();
    let mut model = BTreeMap::new();
    put(&mut store, &mut model, &devices);
    assert_eq!(store.segments[0].index.firsts[1], hash(one));
    check_find(&store, &[one, other], &model);
    check_find(&store, &[one], &model);
    put(&mut store, &mut model, &[device(other, 3)]);
    check_find(&store, &[one, other], &model);
    for _ in 0..2 {
        put(&mut store, &mut model, &devices[..63]);
    }
    store.wait_idle();
    check_find(&store, &[one, other], &model);
    assert_eq!(all_names(store.cursor().unwrap(), 50), model.keys().cloned().collect::<Vec<_>>());
}

#[test]
fn large_rows_make_blocks_of_few_rows() {
    let (_folder, mut store) = store();
    let large: StringArray = (0..100).map(|i| Some(i.to_string().repeat(4000))).collect();
    let small = rows(&(0..100).map(|i| device(i, i)).collect::<Vec<_>>()).project(&[0, 1, 2]).unwrap();
    let mut fields = small.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("large", DataType::Utf8, true)));
    let mut columns = small.columns().to_vec();
    columns.push(Arc::new(large));
    let both = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    (0..4).for_each(|_| store.put(&both).unwrap());
    assert_eq!(store.segments[0].blocks(), 13);
    store.wait_idle();
    assert_eq!(store.segments[0].blocks(), 13);
    assert_eq!(
        by_name(&store.find(&["42", "7"]).unwrap()),
        concat_batches(&both.schema(), [&both.slice(42, 1), &both.slice(7, 1)]).unwrap()
    );
    store.put(&small).unwrap();
    assert_eq!(store.segments[1].blocks(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<(u8, bool)>),
    Find(Vec<u8>),
    Merge,
    Due(i64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(any::<(u8, bool)>(), 0..200).prop_map(Step::Put),
        3 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Step::Find),
        1 => Just(Step::Merge),
        1 => (0..30_i64).prop_map(Step::Due),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..24)
}

/// A store with the segments of another one, as after a restart from a checkpoint.
fn reopen(store: &ColdStore, folder: &Path) -> ColdStore {
    let segments = store.segments().unwrap();
    let mut other = ColdStore::create(folder, "p").unwrap();
    for segment in segments {
        std::fs::copy(&segment.path, folder.join(&segment.name)).unwrap();
        other.attach(&segment.name).unwrap();
    }
    other
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_store_is_a_map_from_device_to_newest_row(steps in steps()) {
        let (folder, mut store) = store();
        let mut model = BTreeMap::new();
        for (now, step) in (0_i64..).zip(steps) {
            match step {
                Step::Put(devices) => {
                    let devices: BTreeMap<u8, bool> = devices.into_iter().collect();
                    let devices: Vec<Device> = devices.into_iter().rev().map(|(d, pending)| (d.to_string(), now, pending)).collect();
                    put(&mut store, &mut model, &devices);
                }
                Step::Find(names) => {
                    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                    check_find(&store, &names.iter().map(String::as_str).collect::<Vec<_>>(), &model);
                }
                Step::Merge => store.wait_idle(),
                Step::Due(at) => {
                    let due = all_names(reopen(&store, &folder.path().join(format!("due{now}"))).cursor_pending(at), 10);
                    let expected = model.values().filter(|d| d.2 && d.1 <= at).map(|d| d.0.clone());
                    prop_assert_eq!(due, expected.collect::<Vec<_>>());
                }
                Step::Reopen => store = reopen(&store, &folder.path().join(format!("again{now}"))),
            }
        }
        let everybody: Vec<&str> = model.keys().map(String::as_str).collect();
        check_find(&store, &everybody, &model);
        prop_assert_eq!(all_names(store.cursor().unwrap(), 7), model.keys().cloned().collect::<Vec<_>>());
    }
}
