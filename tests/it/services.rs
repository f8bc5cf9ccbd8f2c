//! Kafka, PostgreSQL and MQTT as `scripts/test` names them in the environment, and the script that stops and starts them.

use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::node::eventually;

/// Those who only use services share them; who stops one has them alone.
static SERVICES: RwLock<()> = RwLock::new(());

/// The right to use the services while nobody stops them.
pub(crate) fn shared() -> RwLockReadGuard<'static, ()> {
    SERVICES.read().unwrap_or_else(PoisonError::into_inner)
}

/// The right to stop services.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    SERVICES.write().unwrap_or_else(PoisonError::into_inner)
}

/// The value of a variable that names a service; without it the test is skipped, loudly.
pub(crate) fn service(variable: &str) -> Option<String> {
    let found = std::env::var(variable).ok().filter(|v| !v.is_empty());
    if found.is_none() {
        eprintln!("SKIPPED: {variable} is not set, a test of the whole engine against the real service did not run");
    }
    found
}

/// Stops or starts a service; `None`, loudly, when there is no script to do so.
pub(crate) struct Control(String);

impl Control {
    pub(crate) fn new() -> Option<Self> {
        service("FIELDSTREAM_TEST_CTL").map(Self)
    }

    fn run(&self, verb: &str, name: &str) {
        let status = Command::new(&self.0).args([verb, name]).status().expect("the control script runs");
        assert!(status.success(), "{verb} {name}: {status}");
    }

    /// Stops `name` (`verb` is `stop`, or `kill` for a crash) and gives a guard that starts it again, also when the test fails
    /// meanwhile.
    pub(crate) fn down<'a>(&'a self, verb: &str, name: &'a str) -> Stopped<'a> {
        self.run(verb, name);
        Stopped { control: self, name, running: false }
    }
}

impl Control {
    /// Freezes `name` (its connections hang, they do not break) and gives a guard that thaws it, also when the test fails meanwhile.
    pub(crate) fn frozen<'a>(&'a self, name: &'a str) -> Frozen<'a> {
        self.run("pause", name);
        Frozen { control: self, name }
    }
}

/// A service that stands still.
pub(crate) struct Frozen<'a> {
    control: &'a Control,
    name: &'a str,
}

impl Frozen<'_> {
    pub(crate) fn thaw(self) {}
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // The test may have failed already; the next ones need the service.
        let _ = Command::new(&self.control.0).args(["resume", self.name]).status();
    }
}

/// A service that is stopped.
pub(crate) struct Stopped<'a> {
    control: &'a Control,
    name: &'a str,
    running: bool,
}

impl Stopped<'_> {
    pub(crate) fn start(mut self) {
        self.control.run("start", self.name);
        self.running = true;
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if !self.running {
            // The test has failed already; the next ones need the service.
            let _ = Command::new(&self.control.0).args(["start", self.name]).status();
        }
    }
}

/// A database of a test's own.
pub(crate) struct Database {
    server: String,
    pub(crate) name: String,
    runtime: tokio::runtime::Runtime,
}

impl Database {
    /// Makes a database on the server that `FIELDSTREAM_TEST_POSTGRES` names.
    pub(crate) fn new(name: &str) -> Option<Self> {
        Some(Self::on(&service("FIELDSTREAM_TEST_POSTGRES")?, name))
    }

    /// Makes a database on the server of `url`.
    pub(crate) fn on(url: &str, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (server, admin) = url.rsplit_once('/').expect("a database in FIELDSTREAM_TEST_POSTGRES");
        let database = Self { server: server.to_owned(), name: admin.to_owned(), runtime };
        database.ask(&format!("CREATE DATABASE {name}")).expect("the role may create databases");
        Self { name: name.to_owned(), ..database }
    }

    /// `postgres://user:password@host:port/database`.
    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }

    /// The variables that the examples read.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let rest = self.server.trim_start_matches("postgresql://").trim_start_matches("postgres://");
        let (login, address) = rest.rsplit_once('@').expect("a user in FIELDSTREAM_TEST_POSTGRES");
        let (user, password) = login.split_once(':').unwrap_or((login, "none"));
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "5432"));
        let pairs = [("HOST", host), ("PORT", port), ("DB", &self.name), ("USER", user), ("PASSWORD", password)];
        let names = ["TIMESCALE_HOST", "TIMESCALE_PORT", "TIMESCALE_DB", "TIMESCALE_USER", "TIMESCALE_PASSWORD"];
        names.into_iter().zip(pairs.map(|(_, value)| value.to_owned())).collect()
    }

    fn ask(&self, sql: &str) -> Result<Vec<String>, sqlx::Error> {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await?;
            connection.close().await?;
            Ok(rows.iter().map(|row| row.get::<String, _>(0)).collect())
        })
    }

    /// The rows of a query, one text column each, in its order.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        eventually(sql, || match self.ask(sql) {
            Ok(rows) => Some(rows),
            // A server that is starting says so with an error of this class (57, operator intervention).
            Err(sqlx::Error::Database(error)) if !error.code().is_some_and(|c| c.starts_with("57")) => panic!("{sql}: {error}"),
            Err(_) => None,
        })
    }

    /// The number of rows of a table.
    pub(crate) fn count(&self, table: &str) -> u64 {
        let rows = self.rows(&format!("SELECT count(*)::text FROM {table}"));
        rows.first().and_then(|count| count.parse().ok()).expect("a number")
    }
}
