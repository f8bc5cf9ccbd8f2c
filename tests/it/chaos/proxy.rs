//! A TCP proxy on loopback that can cut its connections and hold back what flows through them.

use std::net::{SocketAddr, TcpListener as StdListener};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Passes them on.
    Open,
    /// Holds them back; connections stay, new ones hang.
    Stalled,
    /// Ends every connection, new ones too.
    Cut,
}

/// A running proxy. It listens for as long as it lives, so that nobody else gets its port.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    flow: watch::Sender<Flow>,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// Starts a proxy for `target`.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (flow, state) = watch::channel(Flow::Open);
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let port = listener.local_addr().expect("an address").port();
        runtime.spawn(accept(listener, target, state));
        Self { port, flow, _runtime: runtime }
    }

    /// From now on.
    pub(crate) fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

async fn accept(listener: StdListener, target: SocketAddr, flow: watch::Receiver<Flow>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        // An error is of one connection that has gone already.
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(link(client, target, flow.clone()));
        }
    }
}

/// One connection. A client that leaves has its last bytes delivered all the same, as by a network.
async fn link(client: TcpStream, target: SocketAddr, mut flow: watch::Receiver<Flow>) {
    let now = flow.wait_for(|flow| *flow != Flow::Stalled).await.map(|flow| *flow);
    if !now.is_ok_and(|flow| flow == Flow::Open) {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Small packets are the rule here; if it fails they are only slower.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let both = async { tokio::join!(copy(from_client, to_server, flow.clone()), copy(from_server, to_client, flow.clone())) };
    let mut cut = flow.clone();
    tokio::select! {
        _ = both => {}
        _ = cut.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        let alive = flow.wait_for(|flow| *flow != Flow::Stalled).await.is_ok();
        if !alive || read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    // The other side may be gone.
    let _ = to.shutdown().await;
}
