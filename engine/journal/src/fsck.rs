//! Looks through a journal that nobody has open: every header, every frame, every checksum. Nothing of the log is changed.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::JournalError;
use crate::frame::checksum;
use crate::holds::{self, Holds};
use crate::identity::Identity;
use crate::recovery::DurableFile;
use crate::scan::{Found, body_at, frame_at, next_frame};
use crate::segment::{numbers, path_of, read_head};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JournalFinding {
    /// The file's name.
    pub file: String,
    /// Where in it.
    pub at: u64,
    /// What is wrong, and what it means.
    pub what: String,
    /// True when something that was acknowledged is lost; false for what a crash leaves.
    pub damage: bool,
    /// What was done about it.
    pub repaired: Option<&'static str>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckedJournal {
    /// Segment files read.
    pub segments: u64,
    /// Sound frames in them.
    pub frames: u64,
    /// What is not as it should be.
    pub findings: Vec<JournalFinding>,
}

impl CheckedJournal {
    fn found(&mut self, file: &str, at: u64, what: &str, damage: bool) {
        self.findings.push(JournalFinding { file: file.to_owned(), at, what: what.to_owned(), damage, repaired: None });
    }
}

/// Reads the journal in `folder`. `repair` deletes temporary files, and moves a damaged list of readers aside: it is made anew when the
/// pipelines start, and until then everything is kept. Damaged frames need no repair: reading steps over them and counts them.
///
/// # Errors
/// If the disk fails, or a process has the journal open.
pub fn check(folder: &Path, repair: bool) -> Result<CheckedJournal, JournalError> {
    look(folder, repair).map_err(|e| JournalError::Open { folder: folder.display().to_string(), cause: e.to_string() })
}

fn look(folder: &Path, repair: bool) -> io::Result<CheckedJournal> {
    let lock = File::options().write(true).create(true).truncate(false).open(folder.join("lock"))?;
    lock.try_lock().map_err(|e| io::Error::other(format!("another process has it open ({e})")))?;
    let mut checked = CheckedJournal::default();
    small_files(folder, repair, &mut checked)?;
    let identity = match Identity::look(folder) {
        Ok(Some(identity)) => identity,
        Ok(None) => return Ok(checked),
        Err(error) => {
            checked.found("journal.json", 0, &format!("{error}; nothing can be read without it: restore it from a backup"), true);
            return Ok(checked);
        }
    };
    let durable = DurableFile::open(folder)?.read();
    let all = numbers(folder)?;
    for pair in all.windows(2) {
        if let [before, after] = pair
            && before + 1 != *after
        {
            checked.found(&name(before + 1), 0, "segment files are missing", true);
        }
    }
    for number in &all {
        let last = all.last() == Some(number);
        segment(folder, *number, &identity, last.then_some(durable), &mut checked)?;
    }
    Ok(checked)
}

fn name(number: u64) -> String {
    format!("{number:020}.segment")
}

fn small_files(folder: &Path, repair: bool, checked: &mut CheckedJournal) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.ends_with(".tmp") {
            checked.found(&file, 0, "a write that did not come to its end", false);
            if repair {
                fs::remove_file(entry.path())?;
                checked.findings.iter_mut().rev().take(1).for_each(|finding| finding.repaired = Some("deleted"));
            }
        }
    }
    if let Err(error) = Holds::open(folder) {
        checked.found(holds::FILE, 0, &error.to_string(), true);
        if repair {
            fs::rename(folder.join(holds::FILE), folder.join(format!("{}.damaged", holds::FILE)))?;
            checked.findings.iter_mut().rev().take(1).for_each(|finding| finding.repaired = Some("moved aside"));
        }
    }
    Ok(())
}

/// Reads one segment through; `durable` is known of the last one.
fn segment(folder: &Path, number: u64, identity: &Identity, durable: Option<(u64, u64)>, checked: &mut CheckedJournal) -> io::Result<()> {
    let file = File::open(path_of(folder, number))?;
    let (name, len, seed) = (name(number), file.metadata()?.len(), identity.seed());
    // All of a finished segment was durable.
    let durable = durable.map_or(len, |(segment, durable)| if segment == number { durable } else { 0 });
    checked.segments += 1;
    let mut at = match read_head(&file, identity)? {
        Some(head) => head.len,
        None => {
            checked.found(&name, 0, "its header is damaged; its frames are read all the same", durable > 0);
            next_frame(&file, 0, len, seed)?.unwrap_or(len)
        }
    };
    while at < len {
        let head = match frame_at(&file, at, len, seed)? {
            Found::End => break,
            Found::Frame(head) => Some(head),
            Found::Damage => None,
        };
        if let Some(head) = &head
            && checksum(seed, &body_at(&file, at, head)?) == head.body_crc
        {
            checked.frames += 1;
            at += head.len();
            continue;
        }
        let following = next_frame(&file, head.as_ref().map_or(at + 8, |h| at + h.len()), len, seed)?;
        let damage = following.is_some() || at < durable;
        let what = if damage { "acknowledged readings are lost here" } else { "a torn write: it is cut at the next start" };
        checked.found(&name, at, what, damage);
        at = following.unwrap_or(len);
    }
    if len < durable {
        checked.found(&name, len, "it is shorter than it was: acknowledged readings are lost", true);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Journal, JournalOptions};

    #[test]
    fn every_changed_or_missing_byte_of_the_small_files_is_found() {
        let dir = tempfile::TempDir::new().unwrap();
        let journal = Journal::open(dir.path(), JournalOptions { partitions: 2, ..JournalOptions::default() }).unwrap();
        journal.register("p").unwrap();
        journal.acknowledge("p", 0, 17);
        drop(journal);
        assert_eq!(check(dir.path(), false).unwrap().findings, []);
        for name in ["holds.json", "journal.json"] {
            let path = dir.path().join(name);
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (at % 7);
                for damaged in [&flipped[..], &whole[..at]] {
                    fs::write(&path, damaged).unwrap();
                    let found = check(dir.path(), false).unwrap().findings;
                    // What was cut off at the end of the JSON is the checksum only.
                    let whole_json = damaged.trim_ascii_end().ends_with(b"}") && whole.starts_with(damaged);
                    assert!(!found.is_empty() || whole_json, "{name} byte {at}");
                }
            }
            fs::write(&path, whole).unwrap();
        }
        fs::write(dir.path().join("holds.json"), "{").unwrap();
        assert!(check(dir.path(), true).unwrap().findings.iter().all(|f| f.repaired.is_some()));
        Journal::open(dir.path(), JournalOptions::default()).unwrap();
    }
}
