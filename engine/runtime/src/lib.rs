//! Order and failure: shards host partitions, partitions host device actors and run the graph, sinks get rows and marks.

pub mod spec;
