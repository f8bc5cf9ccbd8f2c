//! TLS and passwords against the real broker `mosquitto`, where it and `openssl` are installed.

use std::path::Path;
use std::process::{Command, Stdio};

use fieldstream_engine_api::{ReceiveError, Receiver};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tests::{Broker, PATIENCE, receiver};

fn run(dir: &Path, program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

/// An authority `ca.pem`, the broker's `server.pem` and a client's `client.pem`, made by `openssl`.
fn certificates(dir: &Path) -> bool {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let authority = [&["req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority"], &key[..]].concat();
    let issue = |name: &str, subject: &str, extension: &str| {
        let (private, public) = (format!("{name}.key"), format!("{name}.pem"));
        let own = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", &private, "-out", &public, "-subj", subject];
        let extensions = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", extension];
        run(dir, "openssl", &[&own[..], &key[..], &extensions[..]].concat())
    };
    run(dir, "openssl", &authority)
        && issue("server", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        && issue("client", "/CN=gateway", "extendedKeyUsage=clientAuth")
}

/// A broker that wants TLS, a client's certificate and a password.
fn secure_broker() -> Option<Broker> {
    let dir = tempfile::tempdir().expect("a directory");
    let made = certificates(dir.path()) && run(dir.path(), "mosquitto_passwd", &["-b", "-c", "passwords", "gateway", "right"]);
    if !made {
        eprintln!("SKIPPED: openssl 3 or mosquitto_passwd is missing, TLS was not tried");
        return None;
    }
    readable(&dir);
    let path = dir.path().display();
    let security = format!(
        "allow_anonymous false\npassword_file {path}/passwords\ncafile {path}/ca.pem\ncertfile {path}/server.pem\nkeyfile {path}/server.key\nrequire_certificate true"
    );
    Broker::start_with(dir, security)
}

/// mosquitto gives up root before it reads its files.
fn readable(dir: &TempDir) {
    for entry in std::fs::read_dir(dir.path()).expect("the directory is there") {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(entry.expect("an entry").path(), open).expect("permissions are set");
    }
}

fn options(broker: &Broker, protocol: &str, password: &str, certificate: bool) -> Value {
    let path = |file: &str| broker.dir.path().join(file).display().to_string();
    let mut tls = json!({ "ca": path("ca.pem") });
    if certificate {
        tls["cert"] = json!(path("client.pem"));
        tls["key"] = json!(path("client.key"));
    }
    json!({
        "url": format!("mqtts://localhost:{}", broker.port), "protocol": protocol, "client_id": format!("secure-{protocol}"),
        "username": "gateway", "password": password, "topics": ["t"], "tls": tls
    })
}

async fn outcome(source: &mut Box<dyn Receiver>) -> Result<String, ReceiveError> {
    let received = tokio::time::timeout(PATIENCE, source.next()).await.expect("an outcome")?.expect("no end");
    Ok(String::from_utf8_lossy(received.block.payload(0)).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_a_certificate_and_a_password_lets_us_in_and_a_wrong_password_is_final() {
    let Some(broker) = secure_broker() else { return };
    let port = broker.port.to_string();
    let publish = ["-h", "localhost", "-p", &port, "--cafile", "ca.pem", "--cert", "client.pem", "--key", "client.key", "-u", "gateway"];
    let kept = [&publish[..], &["-P", "right", "-t", "t", "-q", "1", "-r", "-m", "kept"]].concat();
    if !run(broker.dir.path(), "mosquitto_pub", &kept) {
        eprintln!("SKIPPED: mosquitto_pub is missing, TLS was not tried");
        return;
    }
    for protocol in ["3.1.1", "5"] {
        let mut wrong = receiver(&options(&broker, protocol, "wrong-password", true));
        let error = outcome(&mut wrong).await.expect_err("refused");
        assert!(matches!(error, ReceiveError::Fatal { .. }) && !error.to_string().contains("wrong-password"), "{error}");
        drop(wrong);
        let mut source = receiver(&options(&broker, protocol, "right", true));
        assert_eq!(outcome(&mut source).await.expect("let in"), "kept");
    }
    let mut without = receiver(&options(&broker, "3.1.1", "right", false));
    let patience = std::time::Duration::from_secs(1);
    assert!(tokio::time::timeout(patience, without.next()).await.is_err(), "no certificate, no reading; it keeps trying");
}
