//! The real binary: started, asked, told to stop, killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for what must come. Long, because a test machine may be busy; nothing waits this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How long a node may take for what it has at hand.
const ANSWER: Duration = Duration::from_secs(10);

/// A command line that starts with the binary and inherits nothing that would change what it does. A long run may use a copy of
/// the binary, which FIELDSTREAM_TEST_BINARY names, so that a build meanwhile does not change it.
pub(crate) fn fieldstream() -> Command {
    let copy = std::env::var_os("FIELDSTREAM_TEST_BINARY");
    let mut command = Command::new(copy.unwrap_or_else(|| env!("CARGO_BIN_EXE_fieldstream").into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["FIELDSTREAM_", "TIMESCALE_", "KAFKA_", "MQTT_", "BATCH_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Waits until `look` gives something; says `what` it waited for when it never does.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: did not come within {PATIENCE:?}");
        // A breath between looks: what is looked for needs the processor too.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// An address on loopback that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

/// The body of a GET, or `None` while nobody answers with 200.
pub(crate) fn get(address: SocketAddr, path: &str) -> Option<String> {
    let (status, body) = ask(address, path)?;
    (status == 200).then_some(body)
}

/// Status and body of a GET, or `None` while nobody answers.
fn ask(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let text = exchange(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"), ANSWER)?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// A connection that is kept, so that a node answers on it which can accept no other.
pub(crate) struct KeptOpen(BufReader<TcpStream>);

impl KeptOpen {
    /// The body of a GET whatever its status, while the node answers.
    pub(crate) fn body(&mut self, path: &str) -> Option<String> {
        write!(self.0.get_mut(), "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").ok()?;
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            self.0.read_line(&mut line).ok()?;
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", bytes)) => length = bytes.parse().ok()?,
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        String::from_utf8(body).ok()
    }
}

/// Sends a request and reads to the end, at most for `patience`.
fn exchange(address: SocketAddr, request: &str, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Status and answer of a request with a body; nothing from one that is killed meanwhile.
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, kind: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}");
    let text = exchange(address, &request, PATIENCE).unwrap_or_default();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return (0, Value::Null) };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// A running `fieldstream run` of one pipeline, killed when it goes out of scope.
pub(crate) struct Node {
    child: Child,
    admin: SocketAddr,
    pipeline: String,
    log: PathBuf,
    out: PathBuf,
}

/// What an ended node left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The last line of stdout, which is the account.
    pub(crate) fn account(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_else(|| panic!("no line on stdout; stderr:\n{}", self.stderr));
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{line} is not JSON: {e}"))
    }
}

impl Node {
    /// Starts `command` (made by [`fieldstream`]: `run`, files, variables) with an admin server, its state and logs in `dir`.
    pub(crate) fn start(command: Command, pipeline: &str, dir: &Path) -> Self {
        Self::start_logging(command, pipeline, dir, dir)
    }

    /// Like [`Self::start`], with what it says in a folder of its own.
    pub(crate) fn start_logging(mut command: Command, pipeline: &str, dir: &Path, logs: &Path) -> Self {
        let admin = free_address();
        let (log, out) = (logs.join("stderr.log"), logs.join("stdout.log"));
        let file = |path: &Path| File::options().create(true).append(true).open(path).expect("a log file");
        command.arg("--data-dir").arg(dir.join("state")).arg("--admin").arg(admin.to_string()).arg("--json").current_dir(dir);
        let child = command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&log)).spawn().expect("the binary runs");
        Self { child, admin, pipeline: pipeline.to_owned(), log, out }
    }

    /// What it has logged.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The body of an admin path, while it answers.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        get(self.admin, path)
    }

    /// Sends a body as `kind`; status and answer.
    pub(crate) fn send(&self, method: &str, path: &str, kind: &str, body: &str) -> (u16, Value) {
        send(self.admin, method, path, kind, body)
    }

    /// Where its admin server listens.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The body of an admin path whatever its status, while the server answers.
    pub(crate) fn body(&self, path: &str) -> Option<String> {
        ask(self.admin, path).map(|(_, body)| body)
    }

    /// A connection to its admin server for several requests.
    pub(crate) fn keep_open(&self) -> KeptOpen {
        let stream = TcpStream::connect(self.admin).expect("the node listens");
        stream.set_read_timeout(Some(ANSWER)).expect("a time");
        KeptOpen(BufReader::new(stream))
    }

    /// The account of the pipeline, while the admin server answers.
    pub(crate) fn ledger(&self) -> Option<Value> {
        serde_json::from_str(&self.get(&format!("/v1/pipelines/{}/ledger", self.pipeline))?).ok()
    }

    /// Waits until the account is as `wanted`; a process that ended meanwhile fails the test with its log.
    pub(crate) fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = self.child.try_wait().expect("the child is ours") {
                panic!("waiting for {what}, the process ended with {ended}:\n{}", self.stderr());
            }
            if let Some(ledger) = self.ledger() {
                last = ledger;
                if wanted(&last) {
                    return last;
                }
            }
            assert!(Instant::now() < deadline, "waiting for {what}, the last account was {last}; its log:\n{}", self.stderr());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Waits until this many readings have arrived and all of them have an end on disk or in the services.
    pub(crate) fn until_settled(&mut self, received: u64) -> Value {
        let ledger = self.until(&format!("{received} readings received and none in flight"), |l| {
            l["received"].as_u64() >= Some(received) && l["in_flight"] == 0
        });
        assert_eq!(ledger["received"], received, "{ledger}");
        // The account may have been taken between a turn and a commit's report.
        self.until("a balanced ledger", |l| l["balanced"] == true)
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return Ended { status, stdout: std::fs::read_to_string(&self.out).unwrap_or_default(), stderr: self.stderr() };
            }
            assert!(Instant::now() < deadline, "it did not end; its log:\n{}", self.stderr());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// SIGTERM: it must drain, say its account and end well.
    pub(crate) fn stop(self) -> Value {
        let ended = self.stop_now();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        let account = ended.account();
        assert_eq!(account["state"], "stopped", "{account}");
        assert_eq!(account["ledger"]["balanced"], true, "{account}");
        assert_eq!(account["ledger"]["in_flight"], 0, "{account}");
        account
    }

    /// SIGTERM while others go on with what it leaves: it must end well.
    pub(crate) fn stop_unsettled(self) {
        let ended = self.stop_now();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    }

    /// Sends a signal: `TERM`, `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let told = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().expect("kill runs");
        assert!(told.success(), "kill -{name}");
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; gives what it left.
    pub(crate) fn stop_now(self) -> Ended {
        self.signal("TERM");
        self.wait()
    }

    /// SIGKILL: no last words.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the child is ours");
        self.child.wait().expect("it ends");
    }

    /// True when it ended by itself.
    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().expect("the child is ours").is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Gone already after `wait` or `kill`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
