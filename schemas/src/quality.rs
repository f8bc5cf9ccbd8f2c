//! Quality of a reading in OPC UA's three classes (OPC 10000-8), and the mapping from a bare score.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, DictionaryArray, StringArray, UInt8Array};
use arrow::datatypes::{DataType, UInt8Type};

/// Status class of a reading. The discriminant is its key in the `quality` column's dictionary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Quality {
    /// The value is usable.
    #[default]
    Good = 0,
    /// The value is usable with care.
    Uncertain = 1,
    /// The value is not usable.
    Bad = 2,
}

/// The names in dictionary order: `Quality as u8` indexes it.
pub const NAMES: [&str; 3] = ["good", "uncertain", "bad"];

static DICTIONARY: LazyLock<ArrayRef> = LazyLock::new(|| Arc::new(StringArray::from(NAMES.to_vec())));

impl Quality {
    /// The name used in columns, expressions and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Reads a name in any letter case; `None` for an unknown one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Good, Self::Uncertain, Self::Bad].into_iter().find(|q| q.name().eq_ignore_ascii_case(name))
    }
}

/// Arrow type of the `quality` column.
#[must_use]
pub fn data_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt8), Box::new(DataType::Utf8))
}

/// Builds the `quality` column from dictionary keys (`Quality as u8`). A key above 2 becomes `bad`.
#[must_use]
pub fn column(keys: impl IntoIterator<Item = u8>) -> ArrayRef {
    let keys = UInt8Array::from_iter_values(keys.into_iter().map(|k| k.min(2)));
    let array = DictionaryArray::<UInt8Type>::try_new(keys, Arc::clone(&DICTIONARY));
    Arc::new(array.unwrap_or_else(|_| unreachable!("keys are clamped to the dictionary's three names")))
}

/// Where a bare score between 0 and 1 falls: at or above `good`, at or above `uncertain`, or below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QualityScale {
    /// Lowest score that is still good.
    pub good: f64,
    /// Lowest score that is still uncertain.
    pub uncertain: f64,
}

impl Default for QualityScale {
    fn default() -> Self {
        Self { good: 0.8, uncertain: 0.5 }
    }
}

impl QualityScale {
    /// The class of `score`; NaN is bad.
    #[must_use]
    pub fn class(&self, score: f64) -> Quality {
        if score >= self.good {
            Quality::Good
        } else if score >= self.uncertain {
            Quality::Uncertain
        } else {
            Quality::Bad
        }
    }
}
