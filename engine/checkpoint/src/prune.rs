//! What is no longer needed goes: by the newest owner only, and never what a kept checkpoint names.

use std::collections::HashSet;

use fieldstream_engine_api::Generation;
use object_store::path::Path;

use crate::decisions::Lineage;
use crate::store::{PartitionStore, numbered};
use crate::{CheckpointId, StoreError};

impl PartitionStore {
    /// Deletes all checkpoints but savepoints and the newest `keep` others, what never became true, and decisions and records that
    /// nothing needs any more. Only the newest owner may; give an owner that was overtaken a grace period after the claim to notice.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when there is a newer claim; nothing is deleted then.
    pub async fn prune(&self, generation: Generation, keep: usize) -> Result<(), StoreError> {
        self.check_owner(generation).await?;
        let lineage = self.lineage().await?;
        let savepoints = self.savepoints().await?;
        let (mut kept, mut regular): (Vec<CheckpointId>, Vec<CheckpointId>) =
            self.names(&lineage).await?.into_iter().partition(|id| savepoints.contains_key(id));
        let Some(newest) = regular.last().copied().max(kept.last().copied()) else { return Ok(()) };
        kept.append(&mut regular.split_off(regular.len().saturating_sub(keep.max(1))));
        kept.sort_unstable();
        // Newer than the newest: made by this very owner since the names were listed.
        let old = |id: CheckpointId| id < newest || id.generation < generation;
        for key in self.objects.list(&self.folder("manifests")).await? {
            let id = numbered(&key).map(|(generation, number)| CheckpointId { generation, number });
            // A savepoint stays though an owner that went back before it does not count it.
            if id.is_some_and(|id| old(id) && !kept.contains(&id) && !savepoints.contains_key(&id)) {
                self.objects.delete(&key).await?;
            }
        }
        kept.extend(savepoints.keys().copied().filter(|id| !kept.contains(id)).collect::<Vec<_>>());
        kept.sort_unstable();
        let (mut layers, mut cold, mut oldest) = (HashSet::new(), Vec::with_capacity(kept.len()), None);
        for id in &kept {
            match self.manifest(*id).await {
                Ok(manifest) => {
                    layers.extend(manifest.layers.iter().map(|layer| layer.id));
                    let from = manifest.at.next_decision;
                    oldest = Some(oldest.map_or((*id, from), |(first, least): (CheckpointId, u64)| (first, least.min(from))));
                    cold.push(manifest.cold);
                }
                // Nobody can ever read what it names.
                Err(StoreError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for key in self.objects.list(&self.folder("snapshots")).await? {
            let folder = Path::from_iter(key.parts().take(5));
            let Some((generation, number)) = numbered(&folder) else { continue };
            let id = CheckpointId { generation, number };
            if old(id) && !layers.contains(&id) {
                self.objects.delete(&key).await?;
            }
        }
        self.prune_cold(&cold, generation).await?;
        match oldest {
            Some((oldest, decisions)) => self.prune_records(&lineage, oldest, decisions, generation).await,
            None => Ok(()),
        }
    }

    async fn prune_records(
        &self,
        lineage: &Lineage,
        oldest: CheckpointId,
        needed_from: u64,
        generation: Generation,
    ) -> Result<(), StoreError> {
        let mut lowest = oldest.generation;
        for key in self.objects.list(&self.folder("decisions")).await? {
            let Some((g, number)) = numbered(&key) else { continue };
            if g > generation {
                // Somebody has taken over since the lineage was read, which does not know that these count.
                continue;
            }
            if number < needed_from || !lineage.decision_counts(g, number) {
                self.objects.delete(&key).await?;
            } else {
                lowest = lowest.min(g);
            }
        }
        for key in self.objects.list(&self.folder("adoptions")).await? {
            if key.filename().and_then(|n| n.parse().ok()).is_some_and(|g: u64| g < lowest.0) {
                self.objects.delete(&key).await?;
            }
        }
        for key in self.objects.list(&self.folder("claims")).await? {
            let name = key.filename().unwrap_or_default().trim_end_matches(".released");
            // The claim before ours stays: it counts restarts. Ours must stay: numbers never repeat.
            if name.parse().is_ok_and(|g: u64| g + 1 < generation.0) {
                self.objects.delete(&key).await?;
            }
        }
        self.prune_restores(lineage).await
    }
}
