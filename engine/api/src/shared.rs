//! What the connectors of one pipeline leave for each other.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// One thing of each type, shared by all connectors of a pipeline: a sink may need what only its source knows, such as the
/// membership in a group. The types are the connectors' own, so that one connector never sees another's.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>>>);

impl Shared {
    /// The pipeline's thing of this type; the first who asks makes it.
    #[must_use]
    pub fn of<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        let mut things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let thing = things.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default()));
        // The entry was made with this very type.
        Arc::clone(thing).downcast().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn all_who_ask_for_a_type_get_one_thing() {
        let shared = Shared::default();
        shared.clone().of::<AtomicU32>().store(7, Ordering::Relaxed);
        assert_eq!(shared.of::<AtomicU32>().load(Ordering::Relaxed), 7);
        assert_eq!(shared.of::<Mutex<u32>>().lock().map(|n| *n).ok(), Some(0));
        assert_eq!(Shared::default().of::<AtomicU32>().load(Ordering::Relaxed), 0);
    }
}
