//! The sources, journals and sinks a pipeline may name.

use fieldstream_engine_api::{JournalKind, SinkKind, SourceKind};

/// One line per source.
pub static SOURCES: &[SourceKind] = &[
    #[cfg(feature = "file")]
    crate::file::source::KIND,
    #[cfg(feature = "generator")]
    crate::generator::SOURCE,
    #[cfg(feature = "kafka")]
    crate::kafka::SOURCE,
    #[cfg(feature = "mqtt")]
    crate::mqtt::SOURCE,
];

/// One line per log that may stand for the node's journal.
pub static JOURNALS: &[JournalKind] = &[
    #[cfg(feature = "kafka")]
    crate::kafka::JOURNAL,
];

/// One line per sink.
pub static SINKS: &[SinkKind] = &[
    crate::blackhole::KIND,
    #[cfg(feature = "file")]
    crate::file::sink::KIND,
    #[cfg(feature = "parquet")]
    crate::parquet::sink::KIND,
    crate::stdout::KIND,
    #[cfg(feature = "timescale")]
    crate::timescale::sink::KIND,
    #[cfg(feature = "kafka")]
    crate::kafka::SINK,
    #[cfg(feature = "mqtt")]
    crate::mqtt::SINK,
];

/// The source called `name` in YAML.
#[must_use]
pub fn find_source(name: &str) -> Option<&'static SourceKind> {
    SOURCES.iter().find(|kind| kind.name == name)
}

/// The sink called `name` in YAML.
#[must_use]
pub fn find_sink(name: &str) -> Option<&'static SinkKind> {
    SINKS.iter().find(|kind| kind.name == name)
}
