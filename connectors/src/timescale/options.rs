//! Options of the `timescale` sink, and the plan they make together with the inputs' schema.

use std::time::Duration;

use fieldstream_engine_api::{Built, ConfigError, SinkInput};
use fieldstream_schemas::columns::{DEVICE_ID, SENSOR_ID, TS, VALUE};
use fieldstream_schemas::time::parse_duration;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::columns::{Column, PgType, plan_columns};
use crate::options;
use crate::secret::Secret;

/// Longest table name: names derived from it must fit into PostgreSQL's 63 bytes.
const MAX_NAME: usize = 40;

/// Options of the `timescale` sink.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// `postgres://user:password@host:port/database`; the parts below are for those who have them apart.
    #[serde(default)]
    url: Option<Secret>,
    /// Server name or address.
    #[serde(default)]
    host: Option<String>,
    /// Server port.
    #[serde(default)]
    port: Option<u16>,
    /// Database name.
    #[serde(default)]
    database: Option<String>,
    /// User name.
    #[serde(default)]
    user: Option<String>,
    /// Password.
    #[serde(default)]
    password: Option<Secret>,
    /// Use of TLS, in libpq's words; `false` is `disable`, `true` is `require`. `prefer` unless the URL says otherwise.
    #[serde(default)]
    ssl: Option<UseSsl>,
    /// File with the certificate authority to trust instead of the public ones.
    #[serde(default)]
    ca: Option<String>,
    /// Table the rows go to; it is made when it is not there.
    table: String,
    /// Schema the table lies in.
    #[serde(default = "default_schema")]
    schema: String,
    /// Hypertable or plain PostgreSQL.
    #[serde(default)]
    mode: Mode,
    /// Time a chunk of the hypertable spans. Plain PostgreSQL always has a partition a day.
    #[serde(default = "default_chunk", deserialize_with = "options::duration")]
    #[schemars(with = "String")]
    chunk: Duration,
    /// Age at which chunks are compressed. Without effect on plain PostgreSQL.
    #[serde(default)]
    compress_after: Option<Age>,
    /// Age at which rows are dropped.
    #[serde(default)]
    retain: Option<Age>,
    /// Widths of the rollups of `value` to keep, such as `[5m, 1h]`.
    #[serde(default)]
    aggregates: Vec<Age>,
    /// Connections that commit at the same time, each for its share of the partitions.
    #[serde(default = "default_connections")]
    #[schemars(range(min = 1, max = 32))]
    connections: usize,
    /// Index on device, sensor and time, for queries by device.
    #[serde(default = "default_index")]
    index: bool,
    /// Keep one row per device, sensor and time, where producers may send duplicates. Costs about a third of the rate.
    #[serde(default)]
    unique: bool,
    /// Time after which a commit that got no answer is given up and tried again on a new connection.
    #[serde(default = "default_timeout", deserialize_with = "options::duration")]
    #[schemars(with = "String")]
    timeout: Duration,
}

/// A duration inside a list or an option.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
struct Age(Duration);

impl TryFrom<String> for Age {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parse_duration(&text).map(Self).ok_or_else(|| format!("`{text}` is no duration; write 5m, 1h or 90d"))
    }
}

/// Where rows lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// A hypertable where the TimescaleDB extension is, else plain PostgreSQL.
    #[default]
    Auto,
    /// A hypertable; without the extension the pipeline stops.
    Timescale,
    /// Partitions by day, also where the extension is.
    Plain,
}

/// A word of libpq's, or a switch.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be disable, prefer, require, verify-ca or verify-full, or false or true")]
enum UseSsl {
    Switch(bool),
    Word(Ssl),
}

impl UseSsl {
    fn mode(self) -> PgSslMode {
        match self {
            Self::Switch(false) | Self::Word(Ssl::Disable) => PgSslMode::Disable,
            Self::Word(Ssl::Prefer) => PgSslMode::Prefer,
            Self::Switch(true) | Self::Word(Ssl::Require) => PgSslMode::Require,
            Self::Word(Ssl::VerifyCa) => PgSslMode::VerifyCa,
            Self::Word(Ssl::VerifyFull) => PgSslMode::VerifyFull,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Ssl {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

fn default_schema() -> String {
    "public".to_owned()
}

fn default_chunk() -> Duration {
    Duration::from_secs(86_400)
}

fn default_connections() -> usize {
    1
}

fn default_index() -> bool {
    true
}

fn default_timeout() -> Duration {
    Duration::from_secs(60)
}

/// A table with what is kept beside it.
#[derive(Clone, Debug)]
pub(crate) struct TablePlan {
    /// Schema name.
    pub(crate) schema: String,
    /// Table name.
    pub(crate) table: String,
    /// Columns in order.
    pub(crate) columns: Vec<Column>,
    /// Hypertable or plain.
    pub(crate) mode: Mode,
    /// Time a chunk spans.
    pub(crate) chunk: Duration,
    /// Age of compression.
    pub(crate) compress_after: Option<Duration>,
    /// Age of dropping.
    pub(crate) retain: Option<Duration>,
    /// Widths of rollups.
    pub(crate) aggregates: Vec<Duration>,
    /// Whether there is an index by series and time.
    pub(crate) index: bool,
    /// Whether (time, device, sensor) is unique.
    pub(crate) unique: bool,
}

impl TablePlan {
    /// True when rows have a time that is never null: then the table is cut by time.
    pub(crate) fn by_time(&self) -> bool {
        self.columns.iter().any(|c| c.name == TS && c.kind == PgType::Time && !c.nullable)
    }

    /// Those of `wanted` that the table has.
    pub(crate) fn having<'a>(&self, wanted: &[&'a str]) -> Vec<&'a str> {
        wanted.iter().copied().filter(|name| self.columns.iter().any(|c| c.name == *name)).collect()
    }

    /// The columns that name a series.
    pub(crate) fn series(&self) -> Vec<&'static str> {
        self.having(&[DEVICE_ID, SENSOR_ID])
    }

    /// Quoted name of `name` in the table's schema.
    pub(crate) fn qualified(&self, name: &str) -> String {
        format!("{}.{}", quote(&self.schema), quote(name))
    }

    /// Quoted, qualified name of the table.
    pub(crate) fn target(&self) -> String {
        self.qualified(&self.table)
    }
}

/// Quotes an identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Everything the sink needs, checked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The table.
    pub(crate) table: TablePlan,
    /// Concurrent connections.
    pub(crate) connections: usize,
    /// Limit of one commit.
    pub(crate) timeout: Duration,
    /// How to connect; `Debug` of the options is never printed.
    pub(crate) server: Server,
}

/// Connection options that `Debug` does not show.
#[derive(Clone)]
pub(crate) struct Server(pub(crate) PgConnectOptions);

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0.get_host(), self.0.get_port())
    }
}

/// Reads the options against the inputs. All errors at once.
pub(crate) fn read(value: &Value, inputs: &[SinkInput]) -> Built<Plan> {
    let options: Options = options::parse(value)?;
    let mut errors = Vec::new();
    for (path, name) in [("/table", &options.table), ("/schema", &options.schema)] {
        if let Some(message) = name_error(name) {
            errors.push(ConfigError::new(path, message));
        }
    }
    if options.connections == 0 || options.connections > 32 {
        errors.push(ConfigError::new("/connections", "must be between 1 and 32"));
    }
    let columns = one_schema(inputs).and_then(|input| plan_columns(&input.edge.schema).map_err(|e| ConfigError::new("", e)));
    let server = options.server().map_err(|e| errors.push(e)).ok();
    let columns = columns.map_err(|e| errors.push(e)).ok();
    let (Some(server), Some(columns)) = (server, columns) else { return Err(errors) };
    let plan = Plan {
        connections: options.connections,
        timeout: options.timeout.max(Duration::from_secs(1)),
        server,
        table: TablePlan {
            schema: options.schema,
            table: options.table,
            columns,
            mode: options.mode,
            chunk: options.chunk,
            compress_after: options.compress_after.map(|a| a.0),
            retain: options.retain.map(|a| a.0),
            aggregates: options.aggregates.iter().map(|a| a.0).collect(),
            index: options.index,
            unique: options.unique,
        },
    };
    check_table(&plan.table, &mut errors);
    if errors.is_empty() { Ok(plan) } else { Err(errors) }
}

fn check_table(table: &TablePlan, errors: &mut Vec<ConfigError>) {
    let kind_of = |name: &str| table.columns.iter().find(|c| c.name == name).map(|c| c.kind);
    let rolls_up = table.by_time() && kind_of(VALUE) == Some(PgType::Float) && kind_of(DEVICE_ID).is_some();
    if !table.aggregates.is_empty() && !rolls_up {
        errors.push(ConfigError::new("/aggregates", "needs the columns `device_id`, `ts` and a numeric `value` in the input"));
    }
    for (i, width) in table.aggregates.iter().enumerate() {
        let seconds = width.as_secs();
        if width.subsec_nanos() > 0 || seconds == 0 || !(86_400 % seconds == 0 || seconds % 86_400 == 0) {
            errors.push(ConfigError::new(format!("/aggregates/{i}"), "must divide a day or be whole days").hint("such as 5m, 1h or 1d"));
        }
    }
    if table.chunk < Duration::from_secs(60) {
        errors.push(ConfigError::new("/chunk", "must be a minute or more").hint("a day is a good start"));
    }
    if table.retain.is_some_and(|retain| retain < table.chunk) {
        errors.push(ConfigError::new("/retain", "must not be shorter than `chunk`"));
    }
    if table.unique && !(table.by_time() && kind_of(DEVICE_ID).is_some()) {
        errors.push(ConfigError::new("/unique", "needs the columns `device_id` and `ts` in the input"));
    }
}

fn name_error(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(plain) {
        return Some(format!("`{name}` is no name: use lower-case letters, digits and underscores"));
    }
    (name.len() > MAX_NAME).then(|| format!("`{name}` is longer than {MAX_NAME} characters"))
}

/// The schema that all inputs have.
fn one_schema(inputs: &[SinkInput]) -> Result<&SinkInput, ConfigError> {
    let Some(first) = inputs.first() else { return Err(ConfigError::new("", "has no input")) };
    match inputs.iter().find(|i| i.edge.schema.fields() != first.edge.schema.fields()) {
        None => Ok(first),
        Some(other) => {
            let message = format!("`{}` and `{}` have different columns, but one sink writes one table", first.name, other.name);
            Err(ConfigError::new("", message).hint("give each its own timescale sink"))
        }
    }
}

fn parse_url(url: &str) -> Option<PgConnectOptions> {
    let scheme = url.split_once("://")?.0;
    matches!(scheme, "postgres" | "postgresql").then(|| url.parse().ok())?
}

impl Options {
    fn server(&self) -> Result<Server, ConfigError> {
        let mut server = match &self.url {
            // The cause is left out: it could show parts of the URL.
            Some(url) => parse_url(url.expose()).ok_or_else(|| {
                ConfigError::new("/url", "is no PostgreSQL URL").hint("write postgres://user:password@host:5432/database")
            })?,
            None => {
                let Some(host) = &self.host else {
                    return Err(ConfigError::new("", "needs `url`, or `host` and the other parts of it"));
                };
                PgConnectOptions::new_without_pgpass().host(host).port(5432).ssl_mode(PgSslMode::Prefer)
            }
        };
        if let (Some(host), Some(_)) = (&self.host, &self.url) {
            server = server.host(host);
        }
        if let Some(port) = self.port {
            server = server.port(port);
        }
        if let Some(database) = &self.database {
            server = server.database(database);
        }
        if let Some(user) = &self.user {
            server = server.username(user);
        }
        if let Some(password) = &self.password {
            server = server.password(password.expose());
        }
        if let Some(ssl) = self.ssl {
            server = server.ssl_mode(ssl.mode());
        }
        if let Some(ca) = &self.ca {
            server = server.ssl_root_cert(ca);
        }
        // A worker that vanished in mid-transaction must not hold the marks for ever.
        let limit = self.timeout.as_millis().max(1000).to_string();
        let session = [("idle_in_transaction_session_timeout", limit.as_str()), ("timezone", "UTC"), ("tcp_keepalives_idle", "15")];
        Ok(Server(server.application_name("fieldstream").options(session)))
    }
}
