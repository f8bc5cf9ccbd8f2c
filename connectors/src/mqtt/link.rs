//! One face for the client library's two protocol versions. What it does not do for us is noted where it is done here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as packets5;
use rumqttc::{Outgoing, TlsConfiguration, Transport, v5};

use super::acks::{Ack, Qos};
use super::options::{Broker, Protocol};

/// Largest packet of the protocol, bytes. The library's own limit of 10 KiB would break the connection at the first larger
/// message, again and again, since the broker sends it again; a limit on message size is the broker's affair.
const MAX_PACKET: u32 = 268_435_455;

/// Requests that may wait for the socket: more than there are packet ids, so that an acknowledgement always finds room.
const REQUESTS: usize = 66_000;

/// A connection as the options want it.
#[derive(Clone)]
pub(crate) struct LinkConfig {
    pub(crate) broker: Broker,
    pub(crate) protocol: Protocol,
    /// User name and password.
    pub(crate) credentials: Option<(String, String)>,
    pub(crate) client_id: String,
    pub(crate) clean_session: bool,
    pub(crate) keep_alive: Duration,
    pub(crate) session_expiry: Duration,
    pub(crate) receive_maximum: u16,
    pub(crate) inflight: u16,
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
}

/// A message that came in.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) ack: Ack,
    pub(crate) again: bool,
}

/// What happened on the connection.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    Connected {
        session_present: bool,
    },
    Publish(Publish),
    /// PUBREL: the broker forgets the packet id.
    Released(u16),
    /// SUBACK: what was granted for each filter.
    Granted(Vec<Result<Qos, String>>),
    /// A publish of ours was written to the socket.
    Written,
    /// PUBACK or PUBCOMP: a publish of ours is the broker's now.
    Settled,
    /// The broker does not take a publish of ours.
    Refused(String),
    Other,
}

/// Why the connection broke or was not made.
#[derive(Debug)]
pub(crate) struct LinkError {
    /// The library's words; they hold no credentials.
    pub(crate) cause: String,
    /// True when the broker said that trying again is useless.
    pub(crate) refused: bool,
}

/// Hands requests to the connection, from any task.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    V4(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// The connection, driven by polling it.
pub(crate) enum Link {
    V4(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// Makes a client; the connection itself begins with the first poll.
pub(crate) fn open(config: &LinkConfig, manual_acks: bool) -> (Client, Link) {
    match config.protocol {
        Protocol::V311 => {
            let (client, link) = rumqttc::AsyncClient::new(options4(config, manual_acks), REQUESTS);
            (Client::V4(client), Link::V4(Box::new(link)))
        }
        Protocol::V5 => {
            let (client, link) = v5::AsyncClient::new(options5(config, manual_acks), REQUESTS);
            (Client::V5(client), Link::V5(Box::new(link)))
        }
    }
}

fn transport(config: &LinkConfig) -> Transport {
    config.tls.as_ref().map_or_else(Transport::tcp, |tls| Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))))
}

fn options4(config: &LinkConfig, manual_acks: bool) -> rumqttc::MqttOptions {
    let mut options = rumqttc::MqttOptions::new(&config.client_id, &config.broker.host, config.broker.port);
    options.set_keep_alive(config.keep_alive);
    options.set_clean_session(config.clean_session);
    options.set_manual_acks(manual_acks);
    options.set_inflight(config.inflight);
    options.set_max_packet_size(MAX_PACKET as usize, MAX_PACKET as usize);
    options.set_transport(transport(config));
    if let Some((username, password)) = &config.credentials {
        options.set_credentials(username, password);
    }
    options
}

fn options5(config: &LinkConfig, manual_acks: bool) -> v5::MqttOptions {
    let mut options = v5::MqttOptions::new(&config.client_id, &config.broker.host, config.broker.port);
    options.set_keep_alive(config.keep_alive);
    options.set_clean_start(config.clean_session);
    options.set_manual_acks(manual_acks);
    options.set_outgoing_inflight_upper_limit(config.inflight);
    options.set_max_packet_size(Some(MAX_PACKET));
    options.set_receive_maximum(Some(config.receive_maximum));
    let expiry = if config.clean_session { 0 } else { u32::try_from(config.session_expiry.as_secs()).unwrap_or(u32::MAX) };
    options.set_session_expiry_interval(Some(expiry));
    options.set_transport(transport(config));
    if let Some((username, password)) = &config.credentials {
        options.set_credentials(username, password);
    }
    options
}

impl Client {
    /// Acknowledges a publish. False when the connection's task is gone.
    pub(crate) fn acknowledge(&self, ack: Ack) -> bool {
        match self {
            Self::V4(client) => {
                let mut publish = rumqttc::Publish::new("", qos4(ack.qos), Vec::new());
                publish.pkid = ack.packet;
                client.try_ack(&publish).is_ok()
            }
            Self::V5(client) => {
                let mut publish = packets5::Publish::new("", qos5(ack.qos), Bytes::new(), None);
                publish.pkid = ack.packet;
                client.try_ack(&publish).is_ok()
            }
        }
    }

    /// Asks for `topics`. False when the connection's task is gone.
    pub(crate) fn subscribe(&self, topics: &[String], qos: Qos) -> bool {
        match self {
            Self::V4(client) => {
                let filters = topics.iter().map(|t| rumqttc::SubscribeFilter::new(t.clone(), qos4(qos)));
                client.try_subscribe_many(filters).is_ok()
            }
            Self::V5(client) => {
                // Kept messages come with a new subscription only, not with each new connection.
                let filters = topics.iter().map(|topic| packets5::Filter {
                    retain_forward_rule: packets5::RetainForwardRule::OnNewSubscribe,
                    ..packets5::Filter::new(topic.clone(), qos5(qos))
                });
                client.try_subscribe_many(filters).is_ok()
            }
        }
    }

    /// Publishes; waits while the connection has no room. False when the connection's task is gone.
    pub(crate) async fn publish(&self, topic: String, qos: Qos, retain: bool, payload: Vec<u8>, content_type: &str) -> bool {
        match self {
            Self::V4(client) => client.publish(topic, qos4(qos), retain, payload).await.is_ok(),
            Self::V5(client) => {
                let properties = packets5::PublishProperties { content_type: Some(content_type.to_owned()), ..Default::default() };
                client.publish_with_properties(topic, qos5(qos), retain, payload, properties).await.is_ok()
            }
        }
    }

    /// Says goodbye to the broker.
    pub(crate) fn disconnect(&self) {
        let sent = match self {
            Self::V4(client) => client.try_disconnect().is_ok(),
            Self::V5(client) => client.try_disconnect().is_ok(),
        };
        if !sent {
            tracing::debug!("the connection's task is gone before it could say goodbye");
        }
    }
}

impl Link {
    /// Drives the connection up to the next event. Not safe to drop half-way: a packet may be lost in writing.
    pub(crate) async fn poll(&mut self) -> Result<LinkEvent, LinkError> {
        match self {
            Self::V4(link) => link.poll().await.map(event4).map_err(|error| error4(&error)),
            Self::V5(link) => link.poll().await.map(event5).map_err(|error| error5(&error)),
        }
    }

    /// After an error: what had come in before it and was not handed out yet. The library would hand it out on the next
    /// connection, as if it had come by that one.
    pub(crate) fn leftover(&mut self) -> Vec<LinkEvent> {
        match self {
            Self::V4(link) => link.state.events.drain(..).map(event4).collect(),
            Self::V5(link) => link.state.events.drain(..).map(event5).collect(),
        }
    }

    /// After an error: forgets requests that belong to the old connection. The library keeps all but PUBACKs for the next one.
    pub(crate) fn forget_requests(&mut self) {
        match self {
            Self::V4(link) => {
                link.clean();
                link.pending.clear();
            }
            Self::V5(link) => {
                link.clean();
                link.pending.clear();
            }
        }
    }

    /// Makes every PUBREL welcome. The library forgets at each reconnect which QoS 2 publishes are open and then breaks the
    /// connection at the PUBREL that the broker sends for one of them, for ever.
    pub(crate) fn welcome_releases(&mut self) {
        for packet in 1..=u16::MAX {
            let marked = match self {
                Self::V4(link) => {
                    let mut publish = rumqttc::Publish::new("", rumqttc::QoS::ExactlyOnce, Vec::new());
                    publish.pkid = packet;
                    let marked = link.state.handle_incoming_packet(rumqttc::Packet::Publish(publish)).is_ok();
                    link.state.events.pop_back();
                    marked
                }
                Self::V5(link) => {
                    let mut publish = packets5::Publish::new("x", v5::mqttbytes::QoS::ExactlyOnce, Bytes::new(), None);
                    publish.pkid = packet;
                    let marked = link.state.handle_incoming_packet(packets5::Packet::Publish(publish)).is_ok();
                    link.state.events.pop_back();
                    marked
                }
            };
            if !marked {
                break;
            }
        }
    }
}

fn qos4(qos: Qos) -> rumqttc::QoS {
    match qos {
        Qos::AtMost => rumqttc::QoS::AtMostOnce,
        Qos::AtLeast => rumqttc::QoS::AtLeastOnce,
        Qos::Exactly => rumqttc::QoS::ExactlyOnce,
    }
}

fn qos5(qos: Qos) -> v5::mqttbytes::QoS {
    match qos {
        Qos::AtMost => v5::mqttbytes::QoS::AtMostOnce,
        Qos::AtLeast => v5::mqttbytes::QoS::AtLeastOnce,
        Qos::Exactly => v5::mqttbytes::QoS::ExactlyOnce,
    }
}

fn from4(qos: rumqttc::QoS) -> Qos {
    match qos {
        rumqttc::QoS::AtMostOnce => Qos::AtMost,
        rumqttc::QoS::AtLeastOnce => Qos::AtLeast,
        rumqttc::QoS::ExactlyOnce => Qos::Exactly,
    }
}

fn from5(qos: v5::mqttbytes::QoS) -> Qos {
    match qos {
        v5::mqttbytes::QoS::AtMostOnce => Qos::AtMost,
        v5::mqttbytes::QoS::AtLeastOnce => Qos::AtLeast,
        v5::mqttbytes::QoS::ExactlyOnce => Qos::Exactly,
    }
}

fn event4(event: rumqttc::Event) -> LinkEvent {
    use rumqttc::{Event, Packet};
    match event {
        Event::Incoming(Packet::ConnAck(ack)) => LinkEvent::Connected { session_present: ack.session_present },
        Event::Incoming(Packet::Publish(p)) => LinkEvent::Publish(Publish {
            topic: Bytes::from(p.topic),
            payload: p.payload,
            ack: Ack { packet: p.pkid, qos: from4(p.qos) },
            again: p.dup,
        }),
        Event::Incoming(Packet::PubRel(release)) => LinkEvent::Released(release.pkid),
        Event::Incoming(Packet::SubAck(ack)) => LinkEvent::Granted(
            ack.return_codes
                .into_iter()
                .map(|code| match code {
                    rumqttc::SubscribeReasonCode::Success(qos) => Ok(from4(qos)),
                    rumqttc::SubscribeReasonCode::Failure => Err("refused".to_owned()),
                })
                .collect(),
        ),
        Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)) => LinkEvent::Settled,
        Event::Outgoing(Outgoing::Publish(_)) => LinkEvent::Written,
        _ => LinkEvent::Other,
    }
}

fn event5(event: v5::Event) -> LinkEvent {
    use packets5::{Packet, PubAckReason, PubRecReason};
    match event {
        v5::Event::Incoming(Packet::ConnAck(ack)) => LinkEvent::Connected { session_present: ack.session_present },
        v5::Event::Incoming(Packet::Publish(p)) => {
            LinkEvent::Publish(Publish { topic: p.topic, payload: p.payload, ack: Ack { packet: p.pkid, qos: from5(p.qos) }, again: p.dup })
        }
        v5::Event::Incoming(Packet::PubRel(release)) => LinkEvent::Released(release.pkid),
        v5::Event::Incoming(Packet::SubAck(ack)) => LinkEvent::Granted(
            ack.return_codes
                .into_iter()
                .map(|code| match code {
                    packets5::SubscribeReasonCode::Success(qos) => Ok(from5(qos)),
                    other => Err(format!("{other:?}")),
                })
                .collect(),
        ),
        v5::Event::Incoming(Packet::PubAck(ack)) => match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => LinkEvent::Settled,
            other => LinkEvent::Refused(format!("{other:?}")),
        },
        v5::Event::Incoming(Packet::PubRec(ack)) => match ack.reason {
            PubRecReason::Success | PubRecReason::NoMatchingSubscribers => LinkEvent::Other,
            other => LinkEvent::Refused(format!("{other:?}")),
        },
        v5::Event::Incoming(Packet::PubComp(_)) => LinkEvent::Settled,
        v5::Event::Outgoing(Outgoing::Publish(_)) => LinkEvent::Written,
        _ => LinkEvent::Other,
    }
}

fn error4(error: &rumqttc::ConnectionError) -> LinkError {
    use rumqttc::ConnectReturnCode as Code;
    let refused = matches!(
        error,
        rumqttc::ConnectionError::ConnectionRefused(
            Code::BadUserNamePassword | Code::NotAuthorized | Code::BadClientId | Code::RefusedProtocolVersion
        )
    );
    LinkError { cause: error.to_string(), refused }
}

fn error5(error: &v5::ConnectionError) -> LinkError {
    use packets5::ConnectReturnCode as Code;
    let refused = matches!(
        error,
        v5::ConnectionError::ConnectionRefused(
            Code::BadUserNamePassword
                | Code::NotAuthorized
                | Code::ClientIdentifierNotValid
                | Code::UnsupportedProtocolVersion
                | Code::BadAuthenticationMethod
                | Code::Banned
        )
    );
    LinkError { cause: error.to_string(), refused }
}
