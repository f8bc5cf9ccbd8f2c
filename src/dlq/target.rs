//! Where dead letters are sent again: an MQTT topic, or a file of lines.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
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
    /// `file:PATH`: appended, one payload a line.
    File(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file:") {
            return if path.is_empty() { Err("file: needs a path".to_owned()) } else { Ok(Self::File(path.to_owned())) };
        }
        let wrong = || format!("`{text}` is no target: write mqtt://host:port/topic or file:PATH");
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

/// An open target.
pub(crate) enum Outlet {
    Mqtt { client: Client, connection: Box<Connection>, topic: String },
    File { file: File, path: String },
}

impl Outlet {
    /// Opens `target`; `name` becomes the MQTT client id.
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

fn topic_of(template: &str, letter: &Letter) -> Result<String, String> {
    if !template.contains("{device}") {
        return Ok(template.to_owned());
    }
    match letter.text("deviceId") {
        Some(device) if !device.is_empty() && !device.contains(['+', '#', '/', '\0']) => Ok(template.replace("{device}", device)),
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
        assert_eq!("file:out.ndjson".parse(), Ok(Target::File("out.ndjson".to_owned())));
        for wrong in ["mqtt://broker", "mqtt:///a", "mqtt://b:x/a", "mqtt://b/a/+", "mqtt://u:p@b/a", "kafka://b/t", "file:", ""] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
