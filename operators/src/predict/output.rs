//! Predictions on their way out.

use std::sync::Arc;

use fieldstream_engine_api::{BuildContext, KeyedBatch, Keys, NO_SLOT, Position, SlotDirectory};
use fieldstream_schemas::records::{Prediction, PredictionBuilder, RecordIds};

/// Whose prediction, and where it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) device: u32,
    /// Series slot, or [`NO_SLOT`].
    pub(super) series: u32,
    pub(super) position: Position,
}

/// Collects the predictions of one call.
#[derive(Debug)]
pub(super) struct Predictions {
    ids: RecordIds,
    node: Arc<str>,
    /// Recommended actions as a JSON array; none when there are none.
    actions: Option<String>,
    builder: PredictionBuilder,
    keys: Keys,
}

impl Predictions {
    pub(super) fn new(context: &BuildContext, actions: &[String]) -> Self {
        let ids = RecordIds::new(&context.pipeline, &context.node, &context.log_id.0, context.partition);
        let actions = (!actions.is_empty()).then(|| serde_json::Value::from(actions).to_string());
        Self { ids, node: Arc::clone(&context.node), actions, builder: PredictionBuilder::default(), keys: Keys::default() }
    }

    /// Adds a prediction; id, predictor and actions are filled in.
    pub(super) fn push(&mut self, at: At, prediction: &Prediction<'_>, slots: &SlotDirectory) {
        let mut key = slots.device_name(at.device).to_owned();
        if at.series != NO_SLOT {
            key.push('/');
            key.push_str(slots.sensor_name(at.series));
        }
        let id = self.ids.id(at.position, &key, 0);
        self.builder.append(&Prediction { id: &id, predictor: &self.node, actions: self.actions.as_deref(), ..*prediction });
        self.keys.push(at.device, at.series, at.position);
    }

    /// The predictions collected; `None` when there are none.
    pub(super) fn take(&mut self, slots: &SlotDirectory) -> Option<KeyedBatch> {
        if self.keys.is_empty() {
            return None;
        }
        let keys = std::mem::take(&mut self.keys);
        let rows = self.builder.finish(slots.device_column(&keys.device), slots.sensor_column(&keys.series));
        rows.ok().map(|rows| KeyedBatch::new(rows, keys))
    }
}
