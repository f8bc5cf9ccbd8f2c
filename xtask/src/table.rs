//! What each room may use: the table `cargo xtask walls` compares with the workspace. A new line here is a decision.

/// A crate of the workspace and its direct dependencies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) package: &'static str,
    /// Dependencies.
    pub(crate) uses: &'static [&'static str],
    /// Dev-dependencies.
    pub(crate) tests_use: &'static [&'static str],
    /// Said when an edge is refused.
    pub(crate) why: &'static str,
}

/// Words that code outside tests may contain in some files only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UseWall {
    pub(crate) words: &'static [&'static str],
    /// Beginnings of paths the wall stands around.
    pub(crate) inside: &'static [&'static str],
    /// Beginnings of paths that may nevertheless.
    pub(crate) allowed: &'static [&'static str],
    /// Said when the wall is climbed.
    pub(crate) why: &'static str,
}

/// All rooms.
#[rustfmt::skip] // one room, one paragraph
pub(crate) const ROOMS: &[Room] = &[
    Room {
        package: "fieldstream-schemas",
        uses: &["arrow", "base64", "bytes", "csv", "fast-float2", "foldhash", "hashbrown", "memchr", "schemars", "serde", "serde_json", "thiserror", "uuid"],
        tests_use: &["arrow", "expect-test", "proptest"],
        why: "what data looks like: no I/O, no clients, no operators",
    },
    Room {
        package: "fieldstream-engine-api",
        uses: &["arrow", "async-trait", "bytes", "fieldstream-schemas", "foldhash", "hashbrown", "serde", "serde_json", "thiserror"],
        tests_use: &[],
        why: "contracts only: no runtime, no client, no configuration format",
    },
    Room {
        package: "fieldstream-journal",
        uses: &["arrow", "async-trait", "bytes", "crc32fast", "fieldstream-engine-api", "fieldstream-schemas", "foldhash", "serde", "serde_json", "thiserror", "tokio", "tracing", "uuid"],
        tests_use: &["proptest", "tempfile"],
        why: "the embedded log: no clock, no Kafka, no actix, no operators",
    },
    Room {
        package: "fieldstream-checkpoint",
        uses: &["arrow", "async-trait", "bytes", "crc32fast", "fieldstream-engine-api", "fieldstream-schemas", "futures", "object_store", "serde", "serde_json", "thiserror", "tokio", "tracing", "url", "uuid"],
        tests_use: &["proptest", "tempfile"],
        why: "a pure protocol and its store: no clock, no Kafka, no actix, no operators",
    },
    Room {
        package: "fieldstream-runtime",
        uses: &["actix", "arrow", "bytes", "fieldstream-checkpoint", "fieldstream-engine-api", "fieldstream-journal", "fieldstream-schemas", "futures", "prometheus", "serde", "serde_json", "thiserror", "tokio", "tracing"],
        tests_use: &["async-trait", "tempfile"],
        why: "order and failure: transforms no rows and knows no concrete connector",
    },
    Room {
        package: "fieldstream-operators",
        uses: &["arrow", "datafusion-common", "datafusion-expr", "datafusion-functions", "datafusion-optimizer", "datafusion-physical-expr", "datafusion-sql", "fieldstream-engine-api", "fieldstream-schemas", "foldhash", "hashbrown", "schemars", "serde", "serde_json", "serde_path_to_error", "sketches-ddsketch", "strsim", "thiserror"],
        tests_use: &["expect-test", "fieldstream-testkit", "proptest"],
        why: "numbers only: no I/O, clock, randomness, threads or async",
    },
    Room {
        package: "fieldstream-connectors",
        uses: &["arrow", "async-trait", "base64", "bytes", "fieldstream-engine-api", "fieldstream-schemas", "futures", "memchr", "object_store", "parquet", "rdkafka", "rumqttc", "rustls", "rustls-native-certs", "schemars", "serde", "serde_json", "serde_path_to_error", "sqlx", "thiserror", "tokio", "tracing", "url", "uuid"],
        tests_use: &["proptest", "tempfile"],
        why: "sockets and files only: the one room for broker and database clients",
    },
    Room {
        package: "fieldstream-pipelines",
        uses: &["arrow", "fieldstream-connectors", "fieldstream-engine-api", "fieldstream-operators", "fieldstream-runtime", "fieldstream-schemas", "schemars", "serde", "serde-saphyr", "serde_json", "serde_path_to_error", "strsim"],
        tests_use: &["expect-test", "tempfile"],
        why: "names in YAML: wires the rooms, contains no algorithms and no clients",
    },
    Room {
        package: "fieldstream-query",
        uses: &["arrow", "async-trait", "datafusion", "futures", "object_store", "parquet", "serde_json", "thiserror", "tokio"],
        tests_use: &["tempfile"],
        why: "SQL over the stored series, alone because of its build time",
    },
    Room {
        package: "fieldstream-testkit",
        uses: &["arrow", "fieldstream-engine-api", "fieldstream-schemas", "proptest", "serde_json"],
        tests_use: &[],
        why: "the rig and the laws: sees operators as the engine does",
    },
    Room {
        package: "fieldstream",
        uses: &["actix", "actix-web", "anyhow", "base64", "bytes", "clap", "clap_complete", "fieldstream-checkpoint", "fieldstream-connectors", "fieldstream-journal", "fieldstream-pipelines", "fieldstream-query", "fieldstream-runtime", "fieldstream-schemas", "futures", "rumqttc", "rumqttd", "rustix", "rustls", "serde", "serde_json", "tikv-jemallocator", "tokio", "tracing", "tracing-subscriber"],
        tests_use: &["arrow", "async-trait", "criterion", "fieldstream-engine-api", "memchr", "object_store", "rdkafka", "sqlx", "tempfile", "uuid"],
        why: "the command line and its own tests",
    },
    Room {
        package: "xtask",
        uses: &["anyhow", "serde_json"],
        tests_use: &[],
        why: "the checks themselves: quick to build",
    },
];

/// Names that begin a crate behind which reaching is not looked at: DataFusion brings tokio and an object store by itself.
pub(crate) const DOORS: &[&str] = &["datafusion"];

/// Crates whose types pass between rooms, or whose build is heavy.
pub(crate) const ONE_COPY: &[&str] =
    &["arrow", "arrow-schema", "bytes", "datafusion-common", "object_store", "parquet", "rdkafka-sys", "rustls", "sqlx", "tokio"];

/// Clients, runtimes and stores that a room must not get at through other crates either.
pub(crate) const NEVER_REACH: &[(&str, &[&str])] = &[
    ("fieldstream-schemas", &["tokio", "actix", "rdkafka", "rumqttc", "sqlx", "object_store", "datafusion-common"]),
    ("fieldstream-engine-api", &["tokio", "actix", "rdkafka", "rumqttc", "sqlx", "object_store", "datafusion-common", "serde-saphyr"]),
    ("fieldstream-operators", &["tokio", "actix", "rdkafka", "rumqttc", "sqlx", "object_store"]),
    ("fieldstream-journal", &["actix", "rdkafka", "rumqttc", "sqlx", "datafusion-common"]),
    ("fieldstream-checkpoint", &["actix", "rdkafka", "rumqttc", "sqlx", "datafusion-common"]),
    ("fieldstream-runtime", &["rdkafka", "rumqttc", "sqlx", "parquet", "datafusion-common", "serde-saphyr"]),
    ("fieldstream-connectors", &["actix", "datafusion-common"]),
    ("fieldstream-testkit", &["tokio", "actix", "rdkafka", "rumqttc", "sqlx"]),
];

/// Walls inside crates.
pub(crate) const USE_WALLS: &[UseWall] = &[
    UseWall {
        words: &["actix::", "actix_rt::"],
        inside: &["engine/", "operators/", "connectors/", "pipelines/", "schemas/", "query/"],
        allowed: &["engine/runtime/src/shard.rs", "engine/runtime/src/engine.rs"],
        why: "the shard is the only actor, and the engine the only one who starts it",
    },
    UseWall {
        words: &["object_store::"],
        inside: &["engine/", "operators/", "pipelines/", "schemas/", "src/"],
        allowed: &["engine/checkpoint/src/"],
        why: "checkpoints are the only state kept in an object store",
    },
    UseWall {
        words: &["fieldstream_connectors::", "fieldstream_operators::"],
        inside: &["engine/", "operators/", "connectors/", "pipelines/", "schemas/", "query/"],
        allowed: &["pipelines/src/build.rs", "pipelines/src/nodes.rs", "pipelines/src/testing/"],
        why: "operators and connectors are met as trait objects, through their catalogues",
    },
    UseWall {
        words: &["SystemTime::now", "Instant::now", "Utc::now", "Local::now"],
        inside: &["engine/", "operators/", "pipelines/", "schemas/", "query/"],
        // The journal's writer measures its fsyncs; nothing that is written depends on it.
        allowed: &["engine/runtime/src/clock.rs", "engine/journal/src/writer.rs"],
        why: "time is an argument; the clock module is the only one who asks",
    },
    UseWall {
        words: &["tokio::time::", "notify_later(", "run_later(", "run_interval("],
        inside: &["engine/"],
        allowed: &["engine/runtime/src/clock.rs"],
        why: "waits are the clock's too: under simulated time nothing may wait for real",
    },
    UseWall {
        words: &["rand::", "Uuid::new_v4", "std::thread", "std::fs", "std::net", "std::env", "std::process", "async fn", ".await"],
        inside: &["operators/", "schemas/"],
        allowed: &[],
        why: "no I/O, randomness, threads or async where values are made",
    },
    UseWall {
        words: &["env::var", "env::set_var"],
        inside: &["engine/", "connectors/", "query/"],
        allowed: &[],
        why: "settings come from the command line and the pipeline file",
    },
    UseWall { words: &["do_send("], inside: &["engine/", "src/"], allowed: &[], why: "do_send ignores the capacity of the mailbox" },
];
