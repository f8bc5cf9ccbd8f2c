//! Crashes and damage: a torn tail is cut, damage is counted and never cut.

use std::fs;
use std::path::Path;

use super::*;
use crate::identity::Identity;
use crate::recovery::{DurableFile, recover};

/// Three frames of three readings of one device; the journal's folder and where each frame ends.
async fn three_frames() -> (TempDir, Vec<u64>) {
    let dir = TempDir::new().unwrap();
    let journal = open(&dir);
    let mut ends = vec![fs::metadata(segment(&dir)).unwrap().len()];
    for n in 0..3 {
        journal.append("mqtt", values("a", n * 3..n * 3 + 3), None, 5).await.unwrap();
        ends.push(fs::metadata(segment(&dir)).unwrap().len());
    }
    drop(journal);
    (dir, ends)
}

/// Everything readable now.
async fn values_in(dir: &TempDir, rows: usize) -> (Vec<f64>, Journal) {
    let journal = open(dir);
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    let found = read_values(&mut log, rows).await.remove("a").unwrap_or_default();
    (found, journal)
}

fn to(n: u32) -> Vec<f64> {
    (0..n).map(f64::from).collect()
}

/// A power loss may leave an older durable length than the true one.
fn durable(dir: &TempDir, len: u64) {
    DurableFile::open(dir.path()).unwrap().write(0, len).unwrap();
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_last_frame_torn_at_any_byte_is_cut_and_writing_goes_on() {
    let (whole, ends) = three_frames().await;
    for cut in ends[2]..ends[3] {
        let dir = copy(&whole);
        durable(&dir, ends[2]);
        fs::File::options().write(true).open(segment(&dir)).unwrap().set_len(cut).unwrap();
        let found = recover(dir.path(), &Identity::open(dir.path(), 4).unwrap(), (0, ends[2])).unwrap();
        assert_eq!((found.next_frame, found.next.iter().sum::<u64>(), found.lost.len()), (2, 6, 0), "cut at {cut}");
        assert_eq!(fs::metadata(segment(&dir)).unwrap().len(), ends[2]);
        if cut % 128 == 0 {
            let (found, journal) = values_in(&dir, 6).await;
            assert_eq!(found, to(6));
            journal.append("mqtt", values("a", 6..7), None, 5).await.unwrap();
            drop(journal);
            let (found, journal) = values_in(&dir, 7).await;
            assert_eq!((found, journal.stats().lost), (to(7), 0));
        }
    }
}

#[tokio::test]
async fn a_last_frame_written_in_part_is_cut() {
    let (whole, ends) = three_frames().await;
    for hole in (ends[2]..ends[3]).step_by(40) {
        let dir = copy(&whole);
        durable(&dir, ends[2]);
        let mut bytes = fs::read(segment(&dir)).unwrap();
        let hole = usize::try_from(hole).unwrap();
        if bytes[hole..hole + 8] == [0; 8] {
            continue;
        }
        bytes[hole..hole + 8].fill(0);
        fs::write(segment(&dir), bytes).unwrap();
        let (found, journal) = values_in(&dir, 6).await;
        assert_eq!((found, journal.stats().lost), (to(6), 0), "hole at {hole}");
        assert_eq!(fs::metadata(segment(&dir)).unwrap().len(), ends[2]);
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_counted_and_the_rest_is_read() {
    let (whole, ends) = three_frames().await;
    for at in (ends[1]..ends[2]).step_by(97).chain([ends[1], ends[1] + 33]) {
        let dir = copy(&whole);
        flip(&segment(&dir), at);
        let length = fs::metadata(segment(&dir)).unwrap().len();
        let (found, journal) = values_in(&dir, 6).await;
        assert_eq!(found, [to(3), (6..9).map(f64::from).collect()].concat(), "byte {at}");
        assert_eq!(journal.stats().lost, 1);
        assert_eq!(fs::metadata(segment(&dir)).unwrap().len(), length, "never cut");
        journal.append("mqtt", values("a", 9..10), None, 5).await.unwrap();
        let ends: Vec<u64> = journal.assignments().iter().map(|a| a.end_offset).filter(|e| *e > 0).collect();
        assert!(ends.iter().any(|e| *e >= 10), "no offset is given twice: {ends:?}");
    }
}

#[tokio::test]
async fn a_damaged_last_frame_that_was_durable_is_not_cut() {
    let (whole, ends) = three_frames().await;
    for at in [ends[2], ends[2] + 20, ends[3] - 100] {
        let dir = copy(&whole);
        let damaged = segment(&dir);
        flip(&damaged, at);
        let (found, journal) = values_in(&dir, 6).await;
        assert_eq!((found, journal.stats().lost), (to(6), 1), "byte {at}");
        assert_eq!(fs::metadata(&damaged).unwrap().len(), ends[3]);
        journal.append("mqtt", values("a", 100..101), None, 5).await.unwrap();
        drop(journal);
        let (found, journal) = values_in(&dir, 7).await;
        assert_eq!(found.last(), Some(&100.0));
        let partition = crate::partition_of(b"a", 4) as usize;
        assert!(journal.assignments()[partition].end_offset >= 10, "offsets of the lost frame are not given again");
        assert_eq!(journal.stats().lost, 1, "still said after a restart");
    }
}

/// Every event of one partition until `rows` readings and `lost` payloads were seen: readings, and losses as (next offset, payloads).
async fn read_all(dir: &TempDir, rows: usize, lost: u64) -> (Vec<f64>, Vec<(u64, u64)>) {
    let journal = open(dir);
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    let (mut found, mut losses) = (Vec::new(), Vec::<(u64, u64)>::new());
    while found.len() < rows || losses.iter().map(|(_, n)| n).sum::<u64>() < lost {
        match event(&mut log).await {
            LogEvent::Batch(batch) => {
                let (readings, _) = parts(&batch);
                for (position, _, value) in readings {
                    assert!(losses.last().is_none_or(|(next, _)| position.offset >= *next), "a loss comes in order");
                    found.push(value);
                }
            }
            LogEvent::Lost { next_offset, payloads, .. } => losses.push((next_offset, payloads)),
            other => panic!("{other:?}"),
        }
    }
    (found, losses)
}

#[tokio::test]
async fn every_damaged_byte_of_an_acknowledged_frame_is_counted_by_payload() {
    let (whole, ends) = three_frames().await;
    let path = segment(&whole);
    let bytes = fs::read(&path).unwrap();
    for at in ends[1]..ends[2] {
        flip(&path, at);
        let checked = crate::fsck::check(whole.path(), false).unwrap();
        assert!(checked.frames == 2 && checked.findings.iter().all(|f| f.damage) && !checked.findings.is_empty(), "byte {at}: {checked:?}");
        fs::write(&path, &bytes).unwrap();
    }
    for at in (ends[1]..ends[2]).step_by(83) {
        let dir = copy(&whole);
        flip(&segment(&dir), at);
        let (found, losses) = read_all(&dir, 6, 3).await;
        assert_eq!(found, [to(3), (6..9).map(f64::from).collect()].concat(), "byte {at}");
        assert_eq!(losses, [(6, 3)], "byte {at}");
    }
}

#[tokio::test]
async fn acknowledged_frames_that_are_cut_off_are_counted_once_more_comes() {
    let (whole, ends) = three_frames().await;
    let bytes = fs::read(segment(&whole)).unwrap();
    for cut in ends[1]..ends[3] {
        fs::write(segment(&whole), &bytes[..usize::try_from(cut).unwrap()]).unwrap();
        let checked = crate::fsck::check(whole.path(), false).unwrap();
        assert!(checked.findings.iter().any(|f| f.damage), "cut at {cut}: {checked:?}");
    }
    fs::write(segment(&whole), &bytes).unwrap();
    for cut in (ends[1]..ends[3]).step_by(181) {
        let dir = copy(&whole);
        fs::File::options().write(true).open(segment(&dir)).unwrap().set_len(cut).unwrap();
        let journal = open(&dir);
        assert!(journal.stats().lost > 0, "cut at {cut}: said at the start");
        journal.append("mqtt", values("a", 20..21), None, 5).await.unwrap();
        drop(journal);
        let whole_frames = if cut >= ends[2] { 6 } else { 3 };
        let (found, losses) = read_all(&dir, whole_frames as usize + 1, 1).await;
        assert_eq!(found, [to(whole_frames), vec![20.0]].concat(), "cut at {cut}");
        assert_eq!(losses.len(), 1, "cut at {cut}: {losses:?}");
    }
}

#[tokio::test]
async fn damage_in_a_finished_segment_is_counted_when_read() {
    let dir = TempDir::new().unwrap();
    let small = JournalOptions { segment_bytes: 4096, ..options() };
    let journal = Journal::open(dir.path(), small).unwrap();
    for n in 0..6 {
        journal.append("mqtt", values("a", n..n + 1), None, 5).await.unwrap();
    }
    drop(journal);
    let numbers = crate::segment::numbers(dir.path()).unwrap();
    assert!(numbers.len() > 3);
    let first = crate::segment::path_of(dir.path(), numbers[0]);
    let len = fs::metadata(&first).unwrap().len();
    flip(&first, len - 60);
    let (found, journal) = values_in(&dir, 5).await;
    assert_eq!((found.len(), journal.stats().lost), (5, 1));
    drop(journal);
    // A header is not needed to read what follows it.
    flip(&crate::segment::path_of(dir.path(), numbers[2]), 20);
    let (found, journal) = values_in(&dir, 5).await;
    assert_eq!((found.len(), journal.stats().lost), (5, 2));
}

#[tokio::test]
async fn a_segment_that_was_being_made_is_made_again() {
    let (dir, _) = three_frames().await;
    fs::write(crate::segment::path_of(dir.path(), 1), b"FSSEG").unwrap();
    let (found, journal) = values_in(&dir, 9).await;
    assert_eq!((found, journal.stats().lost, journal.stats().segments), (to(9), 0, 1));
}

#[tokio::test]
async fn bytes_that_look_like_a_frame_are_none() {
    let (dir, ends) = three_frames().await;
    let other = three_frames().await;
    let mut bytes = fs::read(segment(&dir)).unwrap();
    let foreign = fs::read(segment(&other.0)).unwrap();
    let range = usize::try_from(other.1[2]).unwrap()..usize::try_from(other.1[3]).unwrap();
    bytes.extend_from_slice(&foreign[range]);
    fs::write(segment(&dir), bytes).unwrap();
    let (found, journal) = values_in(&dir, 9).await;
    assert_eq!((found, journal.stats().lost), (to(9), 0));
    assert_eq!(fs::metadata(segment(&dir)).unwrap().len(), ends[3], "another journal's frame is a torn tail");
}
