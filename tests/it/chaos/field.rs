//! Where it happens: services of its own, proxies between them and the workers, and a small disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::proxy::Proxy;
use crate::services::Database;
use crate::{topics, topics::Record};

/// Bytes of the small disk.
const DISK: &str = "256m";
/// Partitions of the topic of readings.
const PARTITIONS: i32 = 6;
/// Topic of readings.
pub(crate) const READINGS: &str = "chaos.readings";
/// Topic of alerts.
pub(crate) const ALERTS: &str = "chaos.alerts";

/// Kafka, PostgreSQL and Mosquitto that nobody else uses.
pub(crate) struct Services {
    script: PathBuf,
    state: PathBuf,
    addresses: BTreeMap<String, String>,
}

impl Services {
    /// Starts those of `names`.
    pub(crate) fn up(script: &Path, state: &Path, names: &[&str]) -> Self {
        let output = Command::new(script).arg("up").args(names).env("FIELDSTREAM_TEST_STATE", state).output().expect("the script runs");
        assert!(output.status.success(), "services did not start: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let pairs = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let addresses = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { script: script.to_owned(), state: state.to_owned(), addresses }
    }

    /// What the script says of a variable.
    pub(crate) fn value(&self, name: &str) -> &str {
        self.addresses.get(name).unwrap_or_else(|| panic!("the script names {name}"))
    }

    /// `stop`, `kill`, `start`, `pause` or `resume`.
    pub(crate) fn run(&self, verb: &str, name: &str) {
        let mut command = Command::new(&self.script);
        let output = command.args([verb, name]).env("FIELDSTREAM_TEST_STATE", &self.state).output().expect("the script runs");
        assert!(output.status.success(), "{verb} {name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Kafka tells its clients where to connect: those that come by a second listener are sent to the proxy.
    fn listen_behind(&self, proxy: impl FnOnce(u16) -> u16) -> u16 {
        let path = self.state.join("kafka.properties");
        let mut text = std::fs::read_to_string(&path).expect("Kafka's properties");
        let before = text.lines().find_map(|line| line.strip_prefix("listeners=")).expect("its listeners").to_owned();
        let (plain, controller) = before.split_once(',').expect("two listeners");
        let behind = self.port();
        let port = proxy(behind);
        text += &format!(
            "listeners={plain},PROXIED://127.0.0.1:{behind},{controller}\nadvertised.listeners={plain},PROXIED://127.0.0.1:{port}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=PLAINTEXT\n"
        );
        std::fs::write(&path, text).expect("Kafka's properties");
        self.run("stop", "kafka");
        self.run("start", "kafka");
        port
    }

    /// A port as the script takes them: below those the kernel hands out, and noted, so that others leave it alone.
    fn port(&self) -> u16 {
        let reserve = |port: &u16| {
            let place = std::env::temp_dir().join(format!(".fieldstream-port-{port}"));
            TcpListener::bind(("127.0.0.1", *port)).is_ok() && std::fs::create_dir(&place).is_ok() && {
                let mut list = File::options().append(true).open(self.state.join("ports")).expect("the script's list");
                writeln!(list, "{}", place.display()).is_ok()
            }
        };
        (20_000..32_000).find(reserve).expect("a free port")
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // What cannot be stopped is said by the script.
        let _ = Command::new(&self.script).arg("down").env("FIELDSTREAM_TEST_STATE", &self.state).status();
    }
}

/// A small file system in memory that can be filled to its last byte.
pub(crate) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts it; `None`, loudly, where that is not allowed.
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).expect("a directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "none"]).arg(path).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: no small disk can be mounted here (it needs root), chaos ran without full disks");
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    /// Takes every byte that is left.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(self.path.join("ballast")).expect("a file");
        for block in [1 << 20, 4 << 10, 1] {
            let bytes = vec![0; block];
            let full = loop {
                if let Err(error) = ballast.write_all(&bytes) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        }
    }

    /// What lies on it, the largest folders first, for whoever finds it full.
    pub(crate) fn usage(&self) -> String {
        let script = "df -k . | tail -1; df -i . | tail -1; du -k --max-depth=4 . | sort -rn | head -30; ls -la . shared";
        let told = Command::new("sh").args(["-c", script]).current_dir(&self.path).output();
        told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }

    pub(crate) fn free(&self) {
        std::fs::remove_file(self.path.join("ballast")).expect("the ballast is there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process of a failed test may still sit on it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Everything around the workers. Fields are dropped in this order.
pub(crate) struct Field {
    pub(crate) database: Database,
    pub(crate) to_postgres: Proxy,
    pub(crate) to_mqtt: Proxy,
    pub(crate) to_kafka: Proxy,
    pub(crate) disk: Option<Disk>,
    pub(crate) services: Services,
    pub(crate) dir: PathBuf,
}

impl Field {
    pub(crate) fn new(script: &Path, dir: &Path) -> Self {
        let services = Services::up(script, &dir.join("services"), &["kafka", "postgres", "mosquitto"]);
        let mut to_kafka = None;
        services.listen_behind(|behind| to_kafka.insert(Proxy::to(SocketAddr::from(([127, 0, 0, 1], behind)))).port);
        let database = Database::on(services.value("FIELDSTREAM_TEST_POSTGRES"), "chaos");
        let address = |url: &str| -> SocketAddr {
            let place = url.rsplit(['/', '@']).find(|part| part.contains(':')).expect("host and port");
            place.parse().unwrap_or_else(|e| panic!("{place}: {e}"))
        };
        let to_postgres = Proxy::to(address(services.value("FIELDSTREAM_TEST_POSTGRES")));
        let to_mqtt = Proxy::to(address(services.value("FIELDSTREAM_TEST_MQTT")));
        let disk = Disk::mount(&dir.join("disk"));
        let field = Self { database, to_postgres, to_mqtt, to_kafka: to_kafka.expect("a proxy"), disk, services, dir: dir.to_owned() };
        topics::create(&field.kafka(), READINGS, PARTITIONS);
        topics::create(&field.kafka(), ALERTS, 2);
        field
    }

    /// What the workers of a group share.
    pub(crate) fn shared(&self) -> PathBuf {
        self.dir.join("disk/shared")
    }

    /// Kafka itself, past the proxy.
    pub(crate) fn kafka(&self) -> String {
        self.services.value("FIELDSTREAM_TEST_KAFKA").to_owned()
    }

    /// Mosquitto itself, past the proxy.
    pub(crate) fn mqtt(&self) -> SocketAddr {
        let url = self.services.value("FIELDSTREAM_TEST_MQTT");
        url.trim_start_matches("mqtt://").parse().expect("an address")
    }

    /// Where the workers find the services: by the proxies.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let url = self.database.url();
        let (user, _) = url.trim_start_matches("postgres://").split_once('@').expect("a user");
        vec![
            ("CHAOS_POSTGRES", format!("postgres://{user}@127.0.0.1:{}/{}", self.to_postgres.port, self.database.name)),
            ("CHAOS_MQTT", format!("mqtt://127.0.0.1:{}", self.to_mqtt.port)),
            ("CHAOS_KAFKA", format!("127.0.0.1:{}", self.to_kafka.port)),
        ]
    }

    /// Everything in a topic.
    pub(crate) fn topic(&self, name: &str) -> Vec<Record> {
        topics::read(&self.kafka(), name)
    }
}
