//! `fieldstream state inspect`: what a running node keeps of one device, asked over its admin server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::commands::run::ADMIN;
use crate::output;

const TIMEOUT: Duration = Duration::from_secs(10);

/// More than a device with thousands of series takes.
const MAX_ANSWER: u64 = 64 << 20;

/// Arguments of `state`.
#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// Print partition, slots, position and the state of every operator for one device.
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Device id.
    device: String,
    /// Name of the pipeline.
    #[arg(long)]
    pipeline: String,
    /// Address of the node's admin server.
    #[arg(long, env = "FIELDSTREAM_ADMIN", value_name = "ADDR", default_value_t = ADMIN)]
    admin: SocketAddr,
}

/// Does what the arguments say.
pub(crate) fn state(args: &StateArgs) -> Result<ExitCode> {
    let StateCommand::Inspect(inspect) = &args.command;
    let path = format!("/v1/pipelines/{}/devices/{}", encoded(&inspect.pipeline), encoded(&inspect.device));
    let (status, body) = get(inspect.admin, &path)?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status != 200 {
        let why = ["detail", "title"].iter().find_map(|member| answer.get(member)?.as_str()).unwrap_or("no reason given");
        bail!("the node at {} answered {status}: {why}", inspect.admin);
    }
    output::json_pretty(&answer)?;
    Ok(ExitCode::SUCCESS)
}

/// Status and body of a GET (HTTP/1.1, RFC 9112; the connection ends with the answer).
fn get(address: SocketAddr, path: &str) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("no node answers at {address}: is `fieldstream run` up with its admin server there (--admin)?"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(|| format!("the node at {address} does not listen"))?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).with_context(|| format!("the node at {address} does not answer"))?;
    parse(&answer).with_context(|| format!("what answers at {address} is no fieldstream node"))
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let (head, rest) = answer.split_at(head_end);
    let status = std::str::from_utf8(head).ok()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, rest.get(4..)?.to_vec()))
}

/// Percent-encodes everything but unreserved characters (RFC 3986 section 2.3).
fn encoded(segment: &str) -> String {
    let mut out = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_status_and_body() {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(answer), Some((404, b"{}".to_vec())));
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n"), None);
    }

    #[test]
    fn names_become_path_segments() {
        assert_eq!(encoded("hall 1/pump-7"), "hall%201%2Fpump-7");
        assert_eq!(encoded("ä?#"), "%C3%A4%3F%23");
    }
}
