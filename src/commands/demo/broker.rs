//! An MQTT broker inside the process, on loopback, for the demo only: no TLS, no accounts, gone with the process.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// What the broker keeps for a subscriber that lags: `SEGMENTS` times this. It forgets beyond that, acknowledged or not, so the
/// fleet never runs further ahead of the pipeline than a small part of it (see `fleet::LEAD_READINGS`).
const SEGMENT_BYTES: usize = 8 << 20;
const SEGMENTS: usize = 8;
const MAX_PAYLOAD: usize = 1 << 20;

/// Starts the broker on a free port of 127.0.0.1 and gives its address. It cannot be stopped, so it runs on a thread of its own.
///
/// # Errors
/// If there is no free port, or no thread to be had.
pub(super) fn start() -> Result<SocketAddr> {
    // The broker binds by itself; the port is free from here until then unless somebody is very quick.
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    let listen = probe.local_addr()?;
    drop(probe);
    let connections = ConnectionSettings {
        connection_timeout_ms: 60_000,
        max_payload_size: MAX_PAYLOAD,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: false,
    };
    let server = ServerSettings { name: "demo-broker".to_owned(), listen, tls: None, next_connection_delay_ms: 1, connections };
    let router = RouterConfig {
        max_connections: 16,
        max_outgoing_packet_count: 200,
        max_segment_size: SEGMENT_BYTES,
        max_segment_count: SEGMENTS,
        ..RouterConfig::default()
    };
    let config = Config { router, v4: Some(HashMap::from([("demo".to_owned(), server)])), ..Config::default() };
    let mut broker = Broker::new(config);
    let run = move || {
        if let Err(error) = broker.start() {
            tracing::error!("the demo's MQTT broker: {error}");
        }
    };
    std::thread::Builder::new().name("demo-broker".to_owned()).spawn(run).context("start the demo's MQTT broker")?;
    Ok(listen)
}
