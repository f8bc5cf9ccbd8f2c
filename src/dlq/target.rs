//! Where dead letters are sent again: an MQTT topic, a Kafka topic, or a file of lines.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
#[cfg(feature = "kafka")]
use fieldstream_connectors::kafka::resend::{LARGEST, Record, Resend};
use rumqttc::{Client, Connection, Event, MqttOptions, Packet, QoS};

use super::letter::Letter;

/// How long the broker may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Largest MQTT packet (MQTT 3.1.1, section 2.2.3).
const MAX_PACKET: usize = 268_435_455;

/// Where to, as written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `mqtt://host:port/topic`; `{device}` in the topic stands for the letter's device.
    Mqtt { host: String, port: u16, topic: String },
    /// `kafka://host:port/topic`, several brokers separated by commas.
    #[cfg(feature = "kafka")]
    Kafka { brokers: String, topic: String },
    /// `file:PATH`: appended, one payload a line.
    File(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file:") {
            return if path.is_empty() { Err("file: needs a path".to_owned()) } else { Ok(Self::File(path.to_owned())) };
        }
        #[cfg(feature = "kafka")]
        if let Some(rest) = text.strip_prefix("kafka://") {
            return kafka_target(rest).ok_or_else(|| format!("`{text}` is no target: write kafka://host:port/topic"));
        }
        let wrong = || format!("`{text}` is no target: write mqtt://host:port/topic, kafka://host:port/topic or file:PATH");
        let (address, topic) = text.strip_prefix("mqtt://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
        let bracketed = address.ends_with(']');
        let (host, port) = match address.rsplit_once(':').filter(|_| !bracketed) {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (address, 1883),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || topic.is_empty() || topic.contains(['+', '#']) || host.contains('@') {
            return Err(wrong());
        }
        Ok(Self::Mqtt { host: host.to_owned(), port, topic: topic.to_owned() })
    }
}

/// `host:port,host:port/topic`; 9092 where no port is given.
#[cfg(feature = "kafka")]
fn kafka_target(rest: &str) -> Option<Target> {
    let (brokers, topic) = rest.split_once('/')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || !topic.chars().all(legal) {
        return None;
    }
    let with_port = |broker: &str| {
        let (host, port) = broker.rsplit_once(':').filter(|_| !broker.ends_with(']')).unwrap_or((broker, "9092"));
        let good = !host.is_empty() && !host.contains('@') && port.parse::<u16>().is_ok();
        good.then(|| format!("{host}:{port}"))
    };
    let brokers = brokers.split(',').map(with_port).collect::<Option<Vec<_>>>()?.join(",");
    Some(Target::Kafka { brokers, topic: topic.to_owned() })
}

/// An open target.
pub(crate) enum Outlet {
    Mqtt {
        client: Client,
        connection: Box<Connection>,
        topic: String,
    },
    #[cfg(feature = "kafka")]
    Kafka(Resend),
    File {
        file: File,
        path: String,
    },
}

impl Outlet {
    /// Opens `target`; `name` becomes the client id.
    ///
    /// # Errors
    /// If it cannot be used.
    pub(crate) fn open(target: &Target, name: &str, in_flight: u16) -> Result<Self> {
        match target {
            Target::Mqtt { host, port, topic } => {
                let mut options = MqttOptions::new(name, host, *port);
                options.set_max_packet_size(MAX_PACKET, MAX_PACKET).set_inflight(in_flight.max(1));
                let (client, connection) = Client::new(options, usize::from(in_flight) + 2);
                Ok(Self::Mqtt { client, connection: Box::new(connection), topic: topic.clone() })
            }
            #[cfg(feature = "kafka")]
            Target::Kafka { brokers, topic } => Ok(Self::Kafka(Resend::open(brokers, topic, name)?)),
            Target::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path).with_context(|| format!("cannot write {path}"))?;
                Ok(Self::File { file, path: path.clone() })
            }
        }
    }

    /// Why `letter` cannot go there, if it cannot.
    pub(crate) fn refuses(&self, letter: &Letter) -> Option<String> {
        match self {
            Self::Mqtt { topic, .. } => topic_of(topic, letter).err(),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => record_of(letter).err(),
            Self::File { .. } => {
                let broken = letter.redriven_payload().contains(&b'\n');
                broken.then(|| "its payload has several lines and would not be one in a file".to_owned())
            }
        }
    }

    /// Sends `letters`, none of which it refuses; they are safe there when this returns.
    ///
    /// # Errors
    /// If the target fails; some of the letters may have got there.
    pub(crate) fn send(&mut self, letters: &[Letter]) -> Result<()> {
        match self {
            Self::File { file, path } => {
                let lines: Vec<u8> = letters.iter().flat_map(|letter| [letter.redriven_payload(), b"\n".to_vec()].concat()).collect();
                file.write_all(&lines).and_then(|()| file.sync_all()).with_context(|| format!("cannot write {path}"))
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(resend) => {
                let records: Result<Vec<Record>, String> = letters.iter().map(record_of).collect();
                Ok(resend.send(&records.map_err(|why| anyhow!(why))?)?)
            }
            Self::Mqtt { client, connection, topic } => {
                for letter in letters {
                    let topic = topic_of(topic, letter).map_err(|why| anyhow!(why))?;
                    client.publish(topic, QoS::AtLeastOnce, false, letter.redriven_payload()).context("cannot publish")?;
                }
                acknowledged(connection, letters.len())
            }
        }
    }

    /// Says goodbye.
    pub(crate) fn close(self) {
        if let Self::Mqtt { client, mut connection, .. } = self {
            // Everything is acknowledged; a broker that goes first does no harm.
            let _ = client.disconnect();
            while matches!(connection.recv_timeout(Duration::from_secs(1)), Ok(Ok(_))) {}
        }
    }
}

/// Waits until the broker has acknowledged `count` publishes.
fn acknowledged(connection: &mut Connection, count: usize) -> Result<()> {
    let mut missing = count;
    while missing > 0 {
        match connection.recv_timeout(TIMEOUT) {
            Ok(Ok(Event::Incoming(Packet::PubAck(_)))) => missing -= 1,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => bail!("the broker cannot be used: {error}"),
            Err(_) => bail!("the broker has not answered for {} s", TIMEOUT.as_secs()),
        }
    }
    Ok(())
}

/// The record that `letter` becomes, keyed by its device: all readings of a device are in one partition.
#[cfg(feature = "kafka")]
fn record_of(letter: &Letter) -> Result<Record, String> {
    let Some(key) = letter.device() else { return Err("its device is not known, and a Kafka record needs it as key".to_owned()) };
    let payload = letter.redriven_payload();
    if payload.len() + key.len() > LARGEST {
        return Err(format!("its {} bytes are more than a Kafka broker takes", payload.len()));
    }
    Ok(Record { key, payload, redriven_from: letter.id().to_owned() })
}

fn topic_of(template: &str, letter: &Letter) -> Result<String, String> {
    if !template.contains("{device}") {
        return Ok(template.to_owned());
    }
    match letter.device() {
        Some(device) if !device.contains(['+', '#', '/', '\0']) => Ok(template.replace("{device}", &device)),
        Some(device) => Err(format!("`{device}` cannot be a level of a topic")),
        None => Err("its device is not known, and the topic needs it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        let mqtt = |host: &str, port, topic: &str| Ok(Target::Mqtt { host: host.to_owned(), port, topic: topic.to_owned() });
        assert_eq!("mqtt://broker/devices/{device}/telemetry".parse(), mqtt("broker", 1883, "devices/{device}/telemetry"));
        assert_eq!("mqtt://[::1]:1884/a".parse(), mqtt("::1", 1884, "a"));
        assert_eq!("mqtt://[::1]/a".parse(), mqtt("::1", 1883, "a"));
        let kafka = |brokers: &str| Ok(Target::Kafka { brokers: brokers.to_owned(), topic: "readings.v1".to_owned() });
        assert_eq!("kafka://a:1,b/readings.v1".parse(), kafka("a:1,b:9092"));
        assert_eq!("kafka://[::1]/readings.v1".parse(), kafka("[::1]:9092"));
        assert_eq!("file:out.ndjson".parse(), Ok(Target::File("out.ndjson".to_owned())));
        for wrong in [
            "mqtt://broker",
            "mqtt:///a",
            "mqtt://b:x/a",
            "mqtt://b/a/+",
            "mqtt://u:p@b/a",
            "kafka://b",
            "kafka:///t",
            "kafka://b:x/t",
            "kafka://b/t t",
            "kafka://u@b/t",
            "file:",
            "",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
