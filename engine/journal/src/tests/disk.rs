//! Disks that are full or fail.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::*;
use crate::JournalError;
use crate::writer::{OpenFile, SegmentFile, real_files};

/// What is wrong with the disk.
#[derive(Clone, Default)]
struct Trouble {
    full: Arc<AtomicBool>,
    sync_fails: Arc<AtomicBool>,
}

struct TroubledFile {
    file: Box<dyn SegmentFile>,
    trouble: Trouble,
}

impl SegmentFile for TroubledFile {
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        if self.trouble.full.load(SeqCst) {
            // A part gets through, as on a real disk.
            self.file.write_at(&data[..data.len() / 2], at)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_at(data, at)
    }

    fn sync(&self) -> io::Result<()> {
        if self.trouble.sync_fails.load(SeqCst) { Err(io::Error::other("the disk is gone")) } else { self.file.sync() }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}

fn open_troubled(dir: &TempDir) -> (Journal, Trouble) {
    let trouble = Trouble::default();
    let given = trouble.clone();
    let real = real_files();
    let open: OpenFile = Box::new(move |path: &Path| Ok(Box::new(TroubledFile { file: real(path)?, trouble: given.clone() })));
    (Journal::open_with(dir.path(), options(), open).unwrap(), trouble)
}

#[tokio::test]
async fn a_full_disk_refuses_without_harm_and_goes_on_when_there_is_room() {
    let dir = TempDir::new().unwrap();
    let (journal, trouble) = open_troubled(&dir);
    journal.append("mqtt", values("a", 0..3), None, 5).await.unwrap();
    let before = std::fs::metadata(segment(&dir)).unwrap().len();
    trouble.full.store(true, SeqCst);
    for _ in 0..2 {
        let error = journal.append("mqtt", values("a", 3..6), None, 5).await.unwrap_err();
        assert!(matches!(error, JournalError::Short(_)), "{error}");
        assert_eq!(std::fs::metadata(segment(&dir)).unwrap().len(), before, "the part that got through is taken back");
    }
    trouble.full.store(false, SeqCst);
    journal.append("mqtt", values("a", 3..6), None, 5).await.unwrap();
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    assert_eq!(read_values(&mut log, 6).await["a"], (0..6).map(f64::from).collect::<Vec<_>>());
    assert_eq!((journal.stats().refused, journal.stats().lost), (2, 0));
}

#[tokio::test]
async fn a_failed_fsync_is_final() {
    let dir = TempDir::new().unwrap();
    let (journal, trouble) = open_troubled(&dir);
    journal.append("mqtt", values("a", 0..3), None, 5).await.unwrap();
    trouble.sync_fails.store(true, SeqCst);
    let error = journal.append("mqtt", values("a", 3..6), None, 5).await.unwrap_err();
    assert!(matches!(error, JournalError::Failed(_)), "{error}");
    trouble.sync_fails.store(false, SeqCst);
    let error = journal.append("mqtt", values("a", 3..6), None, 5).await.unwrap_err();
    assert!(error.to_string().contains("the disk is gone"), "it stays refused: {error}");
    // What was acknowledged is there, and readers see no more than that.
    let mut log = reader(&journal, "p", &["mqtt"]).await;
    assert_eq!(read_values(&mut log, 3).await["a"], [0.0, 1.0, 2.0]);
    drop((log, journal));
    let journal = open(&dir);
    journal.append("mqtt", values("b", 0..1), None, 5).await.unwrap();
}

#[tokio::test]
async fn rows_that_are_no_readings_are_refused() {
    let dir = TempDir::new().unwrap();
    let journal = open(&dir);
    let mut wrong = values("a", 0..3);
    wrong.positions.pop();
    assert!(matches!(journal.append("mqtt", wrong, None, 5).await, Err(JournalError::Schema(_))));
    journal.append("mqtt", values("a", 0..0), None, 5).await.unwrap();
    assert_eq!(journal.stats().frames, 0, "nothing is written for nothing");
}
