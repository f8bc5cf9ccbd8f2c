//! Looks through everything a partition has in the store: what is damaged, what is left over, and which checkpoint is usable.
//!
//! Repairing deletes what is certainly garbage. What is damaged is never deleted: it is moved under `quarantine/`, and only
//! when a person accepts the loss, since without it the partition begins from an older checkpoint, or from nothing.

use std::collections::HashSet;

use object_store::path::Path;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cold_files::KIND as COLD;
use crate::decisions::{Adoption, DecisionRecord};
use crate::list::short;
use crate::savepoints::{AskedRestore, RESTORES, SAVEPOINTS, SavepointRecord};
use crate::store::{ClaimRecord, PartitionStore, numbered};
use crate::{CheckpointId, CheckpointStore, StoreError};

/// What a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Not what was written, or gone.
    Damaged,
    /// Nobody needs it.
    Leftover,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The file.
    pub key: String,
    /// What is wrong, and what it means.
    pub what: String,
    /// What was done about it.
    pub repaired: Option<&'static str>,
    /// Whether, and how, repairing may touch it.
    #[serde(skip)]
    remedy: Remedy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// It stays: it does no harm, or something else is to be done first.
    None,
    Delete,
    /// Moved aside, at the price of what it held.
    Quarantine,
}

/// How far repairing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Look only.
    No,
    /// Delete leftovers.
    Leftovers,
    /// And move aside what is damaged, so that the partition starts with what is left.
    AcceptLoss,
}

/// What was found in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Files read.
    pub files: u64,
    /// The newest checkpoint that can be restored, as people write it.
    pub usable: Option<String>,
    /// Checkpoints that count, readable or not.
    pub checkpoints: usize,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl Checked {
    fn damaged(&mut self, key: &Path, what: String, remedy: Remedy) {
        self.findings.push(Finding { kind: Kind::Damaged, key: key.to_string(), what, repaired: None, remedy });
    }

    fn leftover(&mut self, key: &Path, what: &str) {
        let (key, what) = (key.to_string(), what.to_owned());
        self.findings.push(Finding { kind: Kind::Leftover, key, what, repaired: None, remedy: Remedy::Delete });
    }

    /// True when damage is left.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|f| f.kind == Kind::Damaged && f.repaired.is_none())
    }
}

impl PartitionStore {
    /// Reads everything. To repair, the store must be open alone.
    ///
    /// # Errors
    /// If the store fails; damage is a finding.
    pub async fn fsck(&self, repair: Repair) -> Result<Checked, StoreError> {
        let mut checked = Checked { files: 0, usable: None, checkpoints: 0, findings: Vec::new() };
        // The count of restarts begins anew; a damaged claim goes with the next prunes.
        self.check_records::<ClaimRecord>("claims", "the count of restarts is lost", Remedy::None, &mut checked).await?;
        let what = "it says what an owner took over; without it that owner's checkpoints and decisions are void";
        self.check_records::<Adoption>("adoptions", what, Remedy::Quarantine, &mut checked).await?;
        let what = "the savepoint is not kept any more";
        self.check_records::<SavepointRecord>(SAVEPOINTS, what, Remedy::Quarantine, &mut checked).await?;
        self.check_records::<AskedRestore>(RESTORES, "the restore that was asked for cannot begin", Remedy::Quarantine, &mut checked)
            .await?;
        let needed = self.check_checkpoints(&mut checked).await?;
        self.check_decisions(&needed, &mut checked).await?;
        self.find_leftovers(&needed, &mut checked).await?;
        self.repair(repair, &mut checked).await?;
        Ok(checked)
    }

    async fn check_records<T: DeserializeOwned>(
        &self,
        kind: &str,
        meaning: &str,
        remedy: Remedy,
        checked: &mut Checked,
    ) -> Result<(), StoreError> {
        for key in self.objects.list(&self.folder(kind)).await? {
            if key.filename().is_some_and(|name| name.ends_with(".released")) {
                continue;
            }
            checked.files += 1;
            match self.read::<T>(&key).await {
                Err(StoreError::Damaged { what, .. }) => checked.damaged(&key, format!("{what}: {meaning}"), remedy),
                other => {
                    other?;
                }
            }
        }
        Ok(())
    }

    async fn check_checkpoints(&self, checked: &mut Checked) -> Result<Needed, StoreError> {
        let lineage = match self.lineage().await {
            Err(StoreError::Damaged { .. }) => None,
            other => Some(other?),
        };
        let mut needed = Needed::default();
        for key in self.objects.list(&self.folder("manifests")).await?.into_iter().rev() {
            let Some((generation, number)) = numbered(&key) else { continue };
            let id = CheckpointId { generation, number };
            let counts = lineage.as_ref().is_none_or(|lineage| lineage.checkpoint_counts(id));
            checked.checkpoints += usize::from(counts);
            checked.files += 1;
            let manifest = match self.manifest(id).await {
                Err(StoreError::Damaged { what, .. }) => {
                    checked.damaged(&key, format!("{what}: this checkpoint cannot be used"), Remedy::Quarantine);
                    needed.unreadable = true;
                    continue;
                }
                other => other?,
            };
            needed.layers.extend(manifest.layers.iter().map(|layer| layer.id));
            needed.cold.extend(manifest.cold.iter().map(|entry| entry.name.clone()));
            checked.files += manifest.layers.iter().map(|layer| layer.files.len() as u64).sum::<u64>() + manifest.cold.len() as u64;
            let mut whole = match self.load(id, None).await {
                Err(StoreError::Damaged { key: file, what }) => Some(format!("{file}: {what}")),
                other => {
                    other?;
                    None
                }
            };
            for entry in &manifest.cold {
                match self.cold_bytes(entry).await {
                    Err(StoreError::Damaged { key: file, what }) => whole = whole.or(Some(format!("{file}: {what}"))),
                    other => {
                        other?;
                    }
                }
            }
            match whole {
                Some(what) => checked.damaged(&key, format!("{what}: checkpoint {} cannot be used", short(id)), Remedy::Quarantine),
                None if counts && needed.usable.is_none() => {
                    needed.usable = Some(manifest.at.next_decision);
                    checked.usable = Some(short(id));
                }
                None => {}
            }
        }
        Ok(needed)
    }

    async fn check_decisions(&self, needed: &Needed, checked: &mut Checked) -> Result<(), StoreError> {
        let Ok(lineage) = self.lineage().await else { return Ok(()) };
        let first = needed.usable.unwrap_or_default();
        let mut expected = None;
        let mut keys: Vec<(u64, Path)> = Vec::new();
        for key in self.objects.list(&self.folder("decisions")).await? {
            if let Some((generation, number)) = numbered(&key)
                && lineage.decision_counts(generation, number)
            {
                keys.push((number, key));
            }
        }
        keys.sort();
        let mut broken = false;
        for (number, key) in keys {
            checked.files += 1;
            let read = self.read::<DecisionRecord>(&key).await;
            let wrong = match read {
                Err(StoreError::Damaged { what, .. }) => Some(what),
                other => other?.is_none_or(|record| record.number != number).then(|| "it is another decision".to_owned()),
            };
            let gap = expected.is_some_and(|expected| number > expected) || (expected.is_none() && number > first);
            expected = Some(number + 1);
            if number < first {
                if let Some(what) = wrong {
                    checked.damaged(&key, format!("{what}: older checkpoints cannot be used"), Remedy::None);
                }
                continue;
            }
            let after = broken;
            broken |= wrong.is_some() || gap;
            match wrong {
                Some(what) => {
                    checked.damaged(&key, format!("{what}: the replay from the newest checkpoint cannot go past it"), Remedy::Quarantine);
                }
                None if gap => {
                    checked.damaged(&key, "the decision before it is missing: the replay cannot go past it".to_owned(), Remedy::Quarantine);
                }
                None if after => checked.damaged(&key, "it comes after a decision that is damaged".to_owned(), Remedy::Quarantine),
                None => {}
            }
        }
        Ok(())
    }

    async fn find_leftovers(&self, needed: &Needed, checked: &mut Checked) -> Result<(), StoreError> {
        // What a manifest names that cannot be read is not known: nothing may go.
        if needed.unreadable {
            return Ok(());
        }
        for key in self.objects.list(&self.folder("snapshots")).await? {
            let folder = Path::from_iter(key.parts().take(5));
            let id = numbered(&folder).map(|(generation, number)| CheckpointId { generation, number });
            if id.is_none_or(|id| !needed.layers.contains(&id)) {
                checked.leftover(&key, "no checkpoint names it");
            }
        }
        for key in self.objects.list(&self.folder(COLD)).await? {
            if key.filename().is_none_or(|name| !needed.cold.contains(name)) {
                checked.leftover(&key, "no checkpoint names it");
            }
        }
        Ok(())
    }

    async fn repair(&self, repair: Repair, checked: &mut Checked) -> Result<(), StoreError> {
        for finding in &mut checked.findings {
            let key = Path::from(finding.key.as_str());
            match (finding.remedy, repair) {
                (Remedy::Delete, Repair::Leftovers | Repair::AcceptLoss) => {
                    self.objects.delete(&key).await?;
                    finding.repaired = Some("deleted");
                }
                (Remedy::Quarantine, Repair::AcceptLoss) => {
                    self.objects.quarantine(&key).await?;
                    finding.repaired = Some("moved to quarantine");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What the manifests name.
#[derive(Default)]
struct Needed {
    layers: HashSet<CheckpointId>,
    cold: HashSet<String>,
    /// First decision that the newest usable checkpoint needs.
    usable: Option<u64>,
    unreadable: bool,
}

impl CheckpointStore {
    /// Temporary files and probes that a crash left; deletes them unless only looking. The store must be open alone for that.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn leftovers(&self, repair: Repair) -> Result<Vec<Finding>, StoreError> {
        let mut found = Vec::new();
        let repaired = (repair != Repair::No).then_some("deleted");
        let mut add = |key: String| {
            let what = "a write that did not come to its end".to_owned();
            found.push(Finding { kind: Kind::Leftover, key, what, repaired, remedy: Remedy::Delete });
        };
        for path in self.objects.temporaries() {
            if repair != Repair::No {
                std::fs::remove_file(&path).map_err(|e| StoreError::io(format!("delete {}", path.display()), e))?;
            }
            add(path.display().to_string());
        }
        for key in self.objects.list(&Path::from("probe")).await? {
            if repair != Repair::No {
                self.objects.delete(&key).await?;
            }
            add(key.to_string());
        }
        Ok(found)
    }
}

#[cfg(test)]
#[path = "fsck_tests.rs"]
mod tests;
